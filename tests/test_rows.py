"""A record becomes a row: where its audio may lie, which columns count, and what segments mean."""

import os
from pathlib import Path

import pytest
from corpora import CLIP_BYTES, MANY, write_clips
from hypothesis import given
from hypothesis import strategies as st

from wavtrain import InputError
from wavtrain.speech.audio_paths import AudioRoot
from wavtrain.speech.rows import KNOWN_NAMES, Columns, Rejection, Row, row_of_file
from wavtrain.speech.table_corpora import row_of_record


@pytest.fixture
def place(tmp_path) -> Path:
    """corpus/ with a.flac and sub/b.flac, links in it, and outside.flac beside it."""
    corpus = write_clips(tmp_path / "corpus", "a.flac", "sub/b.flac")
    write_clips(tmp_path, "outside.flac", "corpus2/c.flac")
    for name, target in (("in.flac", "sub/b.flac"), ("out.flac", "../outside.flac"), ("gone.flac", "nothing.flac"),
                         ("loop.flac", "loop.flac"), ("folder_in", "sub"), ("folder_out", "../corpus2"),
                         ("twice.flac", "out.flac")):
        (corpus / name).symlink_to(target)
    return corpus


@pytest.mark.parametrize(("path", "leads_to"), [
    ("a.flac", "a.flac"), ("./a.flac", "./a.flac"), ("sub/b.flac", "sub/b.flac"), ("sub/../a.flac", "sub/../a.flac"),
    ("in.flac", "in.flac"), ("folder_in/b.flac", "folder_in/b.flac"), ("gone.flac", "gone.flac"),
    ("absent/x.flac", "absent/x.flac"), ("$data_root/a.flac", "a.flac"), ("${data_root}/a.flac", "a.flac"),
    ("{data_root}/a.flac", "a.flac"), ("$root/a.flac", "a.flac"), ("~/a.flac", "~/a.flac"), ("..a.flac", "..a.flac"),
    ("../outside.flac", None), ("..", None), ("sub/..", None), ("sub/../../outside.flac", None), ("/etc/hostname", None),
    ("out.flac", None), ("twice.flac", None), ("folder_out/c.flac", None), ("../corpus2/c.flac", None),
    ("$data_root/../outside.flac", None),
])
def test_paths_stay_in_their_folder(place, path, leads_to):
    assert AudioRoot(str(place)).resolve(path) == (None if leads_to is None else os.path.join(str(place), leads_to))


def test_relative_folders_are_those_of_now(place, monkeypatch):
    for folder, absolute in ((place, place / "a.flac"), (place / "sub", place / "sub" / "b.flac")):
        monkeypatch.chdir(folder)
        assert AudioRoot(".").resolve(absolute.name) == f"./{absolute.name}"
        assert AudioRoot(".").resolve(str(absolute)) == str(absolute)
        assert AudioRoot(".").resolve("../outside.flac") is None


def test_absolute_paths_count_where_they_lead(place):
    inside, outside = str(place / "a.flac"), str(place.parent / "outside.flac")
    assert AudioRoot(str(place)).resolve(inside) == inside
    assert AudioRoot(str(place)).resolve(outside) is None
    assert AudioRoot(str(place.parent)).resolve(outside) == outside
    assert AudioRoot("/").resolve(outside) == outside


VALUES = st.sampled_from(["a.flac", "a.flac/x", "loop.flac/x", "x\0y/z", "\0", "x" * 5000, "\udc80", "\udc80/x", "nan", "-1",
                          "3", "0.5", "1e400"])
RECORDS = st.dictionaries(
    st.sampled_from([*(name for names in KNOWN_NAMES.values() for name in names), "start", "stop", "offset", "duration"]),
    st.recursive(st.none() | st.booleans() | st.text(max_size=6) | VALUES, lambda inner: st.dictionaries(
        st.sampled_from(["file", "path", "bytes", "start", "stop"]), inner) | st.lists(inner), max_leaves=4))


@MANY
@given(record=RECORDS.filter(lambda record: not record.keys().isdisjoint(KNOWN_NAMES["audio"])))
def test_any_record_is_a_row_or_a_rejection(place, record):
    row = row_of_record(record, Columns().among(list(record), "t"), AudioRoot(str(place)), "t line 1")
    assert isinstance(row, (Row, Rejection))
    if isinstance(row, Row):
        assert 0 <= row.start < float("inf")
        assert row.stop is None or row.start < row.stop < float("inf")
        row.utterance_id.encode()


def row_of(place: Path, **record: object) -> Row | Rejection:
    return row_of_record(record, Columns().among(list(record), "t"), AudioRoot(str(place)), "t.csv line 2")


@pytest.mark.parametrize(("record", "expected"), [
    ({"wav": "a.flac"}, (0, None, "seconds")),
    ({"wav": "a.flac", "start": "", "stop": ""}, (0, None, "seconds")),
    ({"wav": "a.flac", "start": None, "stop": None}, (0, None, "seconds")),
    ({"wav": "a.flac", "start": "100", "stop": "300"}, (100, 300, "samples")),
    ({"wav": "a.flac", "start": "0", "stop": "300.0"}, (0, 300, "samples")),
    ({"wav": "a.flac", "start": "100", "stop": ""}, (100, None, "samples")),
    ({"wav": {"file": "a.flac"}}, (0, None, "seconds")),
    ({"wav": {"file": "a.flac", "start": "8", "stop": "9"}}, (8, 9, "samples")),
    ({"audio": {"path": "a.flac", "bytes": None}}, (0, None, "seconds")),
    ({"audio_filepath": "a.flac", "duration": "1.5"}, (0, 1.5, "seconds")),
    ({"audio_filepath": "a.flac", "duration": "1.5", "offset": "2"}, (2, 3.5, "seconds")),
    ({"audio_filepath": "a.flac", "offset": "2"}, (2, None, "seconds")),
    ({"file_name": "a.flac", "duration": "1.5"}, (0, None, "seconds")),  # a remark, no segment
    ({"file_name": "a.flac", "duration": "1.5", "offset": "2"}, (2, 3.5, "seconds")),
    ({"file_name": "a.flac", "start": "0.5", "end": "2"}, (0.5, 2, "seconds")),
    ({"file_name": "a.flac", "start": "500", "stop": "2000"}, (500, 2000, "samples")),
])
def test_segments(place, record, expected):
    row = row_of(place, **record)
    assert (row.start, row.stop, row.unit) == expected


@pytest.mark.parametrize("segment", [
    {"start": "-1", "stop": "5"}, {"start": "5", "stop": "5"}, {"start": "6", "stop": "5"}, {"start": "nan", "stop": "5"},
    {"start": "1", "stop": "nan"}, {"start": "1", "stop": "inf"}, {"start": "x", "stop": "5"}, {"start": [1], "stop": "5"},
    {"offset": "-0.5", "duration": "1"}, {"offset": "1", "duration": "-1"}, {"offset": "1", "duration": "0"},
    {"offset": "1", "duration": "nan"}, {"offset": "1e400"}, {"offset": "1e300", "duration": "1e400"}, {"offset": "1 s"},
])
def test_segments_that_make_no_sense(place, segment):
    row = row_of(place, wav="a.flac", **segment)
    assert (row.reason, row.source) == ("malformed_row", str(place / "a.flac"))
    assert row.detail == "t.csv line 2: its segment is not made of numbers that grow from 0"


@pytest.mark.parametrize("segments", [
    [("1234567", "1334567"), ("1234568", "1334567")],  # two minutes in, at 16 kHz
    [("16000000", "16100000"), ("16000100", "16100000")],
    [("100", "200"), ("100", "300")],
])
@pytest.mark.parametrize("id_of", [{}, {"ID": ""}, {"ID": None}])
def test_segments_of_a_recording_have_ids_of_their_own(place, segments, id_of):
    ids = [row_of(place, wav="a.flac", start=start, stop=stop, **id_of).utterance_id for start, stop in segments]
    assert len(set(ids)) == 2
    assert all(name.startswith(f"a.flac-{start}") for name, (start, _) in zip(ids, segments, strict=True))


def test_ids(place):
    assert row_of(place, wav="sub/b.flac").utterance_id == "sub/b.flac"
    assert row_of(place, wav="sub/b.flac", start="100").utterance_id == "sub/b.flac-100"
    assert row_of(place, audio_filepath="a.flac", offset="2.5").utterance_id == "a.flac-2.5"
    assert row_of(place, audio_filepath="a.flac", duration="2.5").utterance_id == "a.flac"
    assert row_of(place, audio_filepath="a.flac", utt_id="own", offset="2").utterance_id == "own"


@pytest.mark.parametrize(("value", "text"), [
    ("null", "null"), ("007", "007"), ("", ""), ("   ", "   "), (True, "true"), (False, "false"), (None, None)])
def test_texts_are_kept_verbatim(place, value, text):
    row = row_of(place, file_name="a.flac", text=value, speaker=value, language=value)
    assert (row.text, row.speaker, row.language) == (text, text, text)


@pytest.mark.parametrize(("audio", "source", "reason", "detail"), [
    ("", "t.csv line 2", "malformed_row", "t.csv line 2: its 'audio' names no file"),
    (None, "t.csv line 2", "malformed_row", "t.csv line 2: its 'audio' names no file"),
    (["a.flac"], "t.csv line 2", "malformed_row", "t.csv line 2: its 'audio' names no file"),
    ({"array": ["0.1"]}, "t.csv line 2", "malformed_row", "t.csv line 2: its 'audio' names no file"),
    ("x.flac", "{}/x.flac", "missing_file", "t.csv line 2: no such file"),
    ("gone.flac", "{}/gone.flac", "missing_file", "t.csv line 2: no such file"),
    ("a.flac/x", "{}/a.flac/x", "unreadable", "t.csv line 2: Not a directory"),
    ("loop.flac", "{}/loop.flac", "unreadable", "t.csv line 2: Too many levels of symbolic links"),
    ("x" * 300, "{}/" + "x" * 300, "unreadable", "t.csv line 2: File name too long"),
    ("a\0.flac", "{}/a\0.flac", "unreadable", "t.csv line 2: embedded null byte"),
    ("a\0b/c.flac", "{}/a\0b/c.flac", "unreadable", "t.csv line 2: embedded null byte"),
    ("../outside.flac", "../outside.flac", "outside_folder",
     "t.csv line 2: leads outside {}; --audio_root DIR allows a wider folder"),
])
def test_records_without_usable_audio(place, audio, source, reason, detail):
    row = row_of(place, audio=audio)
    assert (row.source, row.reason, row.detail) == (source.format(place), reason, detail.format(place))


def test_a_file_is_known_by_size_and_date(place):
    os.utime(place / "a.flac", ns=(5, 7))
    row = row_of_file(str(place / "a.flac"), str(place), text="t")
    assert row == Row(str(place / "a.flac"), str(place / "a.flac"), "a.flac", num_bytes=CLIP_BYTES, modified=7, text="t")


@pytest.mark.parametrize(("wanted", "names", "found"), [
    ({}, ["file_name", "text"], ("file_name", "text", None, None, None)),
    ({}, ["path", "sentence", "client_id", "locale", "id"], ("path", "sentence", "client_id", "locale", "id")),
    ({}, ["ID", "wav", "wrd", "spk_id"], ("wav", "wrd", "spk_id", None, "ID")),
    ({}, ["transcript", "audio", "path", "text"], ("audio", "text", None, None, None)),  # the most specific name
    ({"audio": "x", "text": "y"}, ["audio", "x", "y", "text"], ("x", "y", None, None, None)),
    ({"language": "audio"}, ["audio"], ("audio", None, None, "audio", None)),
])
def test_columns(wanted, names, found):
    columns = Columns(**wanted).among(names, "t")
    assert (columns.audio, columns.text, columns.speaker, columns.language, columns.id) == found


@pytest.mark.parametrize(("wanted", "names", "message"), [
    ({}, ["a", "b"], "t: no column with audio among 'a', 'b': --audio_column_name names it"),
    ({}, ["file_name;text"], "t: no column with audio among 'file_name;text': it seems to be separated by ';'"),
    ({}, ["id|text|norm"], "t: no column with audio among 'id|text|norm': it seems to be separated by '|'"),
    ({}, ["path\ttext"], r"t: no column with audio among 'path\\ttext': it seems to be separated by '\\t'"),
    ({"text": "sentence"}, ["audio", "text"], "t: --text_column_name sentence: there are only audio, text"),
    ({"audio": "wav"}, ["audio"], "t: --audio_column_name wav: there are only audio"),
    ({"id": ""}, ["audio"], "t: --id_column_name : there are only audio"),
])
def test_columns_that_are_not_there(wanted, names, message):
    with pytest.raises(InputError) as raised:
        Columns(**wanted).among(names, "t")
    assert str(raised.value) == message.replace(r"\\", "\\")
