"""Folders: metadata tables, LibriSpeech's tree, bare audio; links, pipes, hidden files and odd names in them."""

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from corpora import audio_bytes, open_sources, outcome, rows_of, write_clips, write_table

from wavtrain import InputError
from wavtrain.speech.rows import Row

CSV = "file_name,text\n"


@contextmanager
def deadline(seconds: float):
    """What opens a pipe waits for ever: fail instead."""
    class TooLong(BaseException):
        pass

    def stop(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_metadata_and_audio_account_for_each_other(tmp_path):
    write_clips(tmp_path, "a.flac", "sub/b.flac", "sub/extra.flac")
    write_table(tmp_path / "metadata.csv", CSV + "sub/b.flac,two\n./a.flac,one\ngone.flac,x\na.flac,again\n")
    assert outcome(rows_of(tmp_path)) == [
        ("sub/b.flac", "two"), ("a.flac", "one"), ("gone.flac", "missing_file"), ("a.flac", "again"),
        ("extra.flac", "not_in_table")]


def test_metadata_of_several_folders(tmp_path):
    for speaker in ("ada", "bob"):
        write_table(write_clips(tmp_path / speaker, "0.flac") / "metadata.csv", f"{CSV}0.flac,{speaker}\n")
    write_clips(tmp_path, "top.flac", "bare/1.flac")
    assert [text for _, text in outcome(rows_of(tmp_path))] == ["ada", "bob", None, None]
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "top.flac", "text": "top"}])
    assert [text for _, text in outcome(rows_of(tmp_path))] == ["top", "not_in_table", "ada", "bob"]
    write_table(tmp_path / "metadata.csv", CSV + "top.flac,top\n")
    with pytest.raises(InputError, match=r"holds metadata.csv and metadata.jsonl: keep the one that counts"):
        rows_of(tmp_path)


def test_ids_tell_the_folders_of_a_corpus_apart(tmp_path):
    for speaker in ("ada", "bob"):
        write_table(write_clips(tmp_path / speaker, "0.flac") / "metadata.csv", f"{CSV}0.flac,{speaker}\n")
    assert [name for name, _ in outcome(rows_of(tmp_path))] == ["ada/0.flac", "bob/0.flac"]


SHARED = "train/a.flac,a\ntrain/gone.flac,b\ntest/c.flac,c\nx,y,z\n,d\n../out.flac,e\n"


def test_a_table_above_the_splits(tmp_path):
    write_clips(tmp_path, "train/a.flac", "train/b.flac", "test/c.flac")
    write_table(tmp_path / "metadata.csv", CSV + SHARED)
    assert outcome(rows_of(tmp_path, dataset_split_names=("test",)))[0] == ("test/c.flac", "c")
    found = outcome(rows_of(tmp_path))
    assert [each for each in found if each[1] in ("a", "missing_file", "not_in_table")] == [
        ("train/a.flac", "a"), ("gone.flac", "missing_file"), ("b.flac", "not_in_table")]
    # rows that belong to no split must not vanish
    assert [each for each in found if each[1] in ("malformed_row", "outside_folder")] == [
        ("metadata.csv line 5", "malformed_row"), ("metadata.csv line 6", "malformed_row"), ("out.flac", "outside_folder")]


@pytest.mark.parametrize("split", ["", "train"])
@pytest.mark.parametrize("name", ["corpus", "./corpus/", "link", "{}/corpus", "{}/link"])
def test_absolute_paths_in_metadata(tmp_path, monkeypatch, split, name):
    """However the folder is named on the command line, its table names the files in it."""
    audio = write_clips(tmp_path / "corpus" / split, "a.flac") / "a.flac"
    write_table(tmp_path / "corpus" / "metadata.csv", f"{CSV}{audio},one\n")
    (tmp_path / "link").symlink_to("corpus")
    monkeypatch.chdir(tmp_path)
    row, = rows_of(name.format(tmp_path))
    assert (getattr(row, "text", None), row.source) == ("one", str(audio))


TRANSCRIPT = b"\xef\xbb\xbf1-2-0 A  B\r\n1-2-9 GONE\r\n\r\n1-2-1\r\n"


def test_librispeech(tmp_path):
    write_clips(tmp_path / "1" / "2", "1-2-0.flac", "1-2-1.flac", "1-2-3.flac")
    table = write_table(tmp_path / "1" / "2" / "1-2.trans.txt", TRANSCRIPT)
    write_table(write_clips(tmp_path / "7" / "8", "7-8-0.flac") / "7-8.trans.txt", "7-8-0 C\n")
    rows = rows_of(tmp_path)
    assert outcome(rows) == [
        ("1-2-0", "A  B"), ("1-2-1", ""), ("1/2/1-2-3.flac", None), ("1-2-9", "missing_file"), ("7-8-0", "C")]
    assert [row.speaker for row in rows if isinstance(row, Row)] == ["1", "1", None, "7"]
    assert rows[3].detail == f"{table} line 2: no audio file of this name beside it"


def test_transcripts_of_a_folder_without_audio(tmp_path):
    write_clips(tmp_path / "1" / "2", "1-2-0.flac")
    write_table(tmp_path / "7" / "8" / "7-8.trans.txt", "7-8-0 C\n")
    assert outcome(rows_of(tmp_path)) == [("1/2/1-2-0.flac", None), ("7-8-0", "missing_file")]


def test_a_second_transcript_does_not_replace_the_first_in_silence(tmp_path):
    table = write_table(write_clips(tmp_path, "1-2-0.flac") / "1-2.trans.txt", "1-2-0 A\n1-2-0 A\n")
    assert outcome(rows_of(tmp_path)) == [("1-2-0", "A")]
    write_table(table, "1-2-0 A\n1-2-0 B\n")
    with pytest.raises(InputError, match=r"1-2.trans.txt line 2: .*1-2-0"):
        rows_of(tmp_path)


def test_transcripts_in_latin1(tmp_path):
    write_table(write_clips(tmp_path, "a.flac") / "a.trans.txt", b"a OK\nb gr\xf6\xdfe\n")
    with pytest.raises(InputError, match=r"a.trans.txt line 2: is not UTF-8 \(byte 0xF6\)"):
        rows_of(tmp_path)


def test_what_counts_as_audio(tmp_path):
    write_clips(tmp_path, "a.flac", "b.WAV", "._a.flac", ".hidden.flac", ".git/a.flac", "sub/._b.flac", "sub/c.flac")
    for name, kind in (("no_ending", "WAV"), ("odd.2024-01-01", "FLAC"), ("ogg.xyz", "OGG"), ("named.txt", "WAV")):
        content = audio_bytes("61-70-0000", kind) if kind != "OGG" else b"OggS and so on"
        (tmp_path / name).write_bytes(content)
    for name in ("notes", "README.md", "page.html", "table.csv", "empty", "lyrics.xyz"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"words")
    for name in ("empty.wav", "film.mp4", "old.wma"):  # audio by their names: counted, to be refused by name later
        (tmp_path / name).write_bytes(b"")
    assert [row.utterance_id for row in rows_of(tmp_path)] == [
        "a.flac", "b.WAV", "empty.wav", "film.mp4", "no_ending", "odd.2024-01-01", "ogg.xyz", "old.wma", "sub/c.flac"]


def test_links(tmp_path):
    folder = write_clips(tmp_path / "corpus", "a.flac")
    write_clips(tmp_path, "other/b.flac", "c.flac")
    for name, target in (("in.flac", "a.flac"), ("out.flac", "../c.flac"), ("dangling.flac", "x.flac"), ("folder", "../other"),
                         ("up", "..")):
        (folder / name).symlink_to(target)
    rows = rows_of(folder)
    assert outcome(rows) == [
        ("folder", "outside_folder"), ("up", "outside_folder"), ("a.flac", None), ("dangling.flac", "missing_file"),
        ("in.flac", None), ("out.flac", "outside_folder")]
    assert rows[0].detail == "links to folders are not followed: give its target as a corpus too"
    assert rows[5].detail == f"a link that leads outside {folder}; --audio_root DIR allows a wider folder"
    assert outcome(rows_of(folder, audio_root=str(tmp_path)))[2:] == [
        ("a.flac", None), ("dangling.flac", "missing_file"), ("in.flac", None), ("out.flac", None)]
    write_table(folder / "metadata.csv", CSV + "out.flac,x\nfolder/b.flac,y\nin.flac,z\na.flac,w\n")
    assert outcome(rows_of(folder))[:4] == [
        ("out.flac", "outside_folder"), ("b.flac", "outside_folder"), ("in.flac", "z"), ("a.flac", "w")]


def test_links_that_lead_to_themselves(tmp_path):
    folder = write_clips(tmp_path / "corpus", "a.flac")
    (folder / "loop.flac").symlink_to("loop.flac")
    assert ("a.flac", None) in outcome(rows_of(folder))
    assert dict(outcome(rows_of(folder)))["loop.flac"] in ("unreadable", "outside_folder")


@pytest.mark.parametrize("name", ["pipe.wav", "pipe", "metadata.csv", "train.csv", "1-2.trans.txt", "train"])
def test_pipes_do_not_make_it_wait(tmp_path, name):
    write_clips(tmp_path, "a.flac")
    os.mkfifo(tmp_path / name)
    with deadline(3):
        try:
            found = outcome(rows_of(tmp_path))
        except InputError as error:
            found = [("a.flac", None)] if name in str(error) else []
    assert ("a.flac", None) in found


def test_pipes_as_tables(tmp_path):
    write_table(write_clips(tmp_path, "a.flac") / "list.csv", CSV + "a.flac,x\npipe.wav,y\n")
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "list.wrd")
    os.mkfifo(tmp_path / "pipe.csv")
    with deadline(3):
        assert outcome(rows_of(tmp_path / "list.csv"))[0] == ("a.flac", "x")
        with pytest.raises(InputError, match=r"pipe.csv: no such file or folder"):
            rows_of(tmp_path / "pipe.csv")


def test_names_that_are_not_utf8(tmp_path):
    folder = write_clips(tmp_path / os.fsdecode(b"gr\xf6\xdfe"), os.fsdecode(b"\xff.flac"))
    source, = open_sources(folder)
    row, = source.rows()
    assert (row.utterance_id, Path(row.audio).read_bytes()) == (r"\udcff.flac", audio_bytes("61-70-0000"))
    write_table(folder / "metadata.csv", CSV + "a.flac,x\n")
    assert [row.reason for row in source.rows()] == ["missing_file", "not_in_table"]
    assert source.corpus.encode() == rb"gr\udcf6\udcdfe"  # it becomes a value of a column


def test_a_folder_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    write_clips(tmp_path, "a.flac", "closed/b.flac")
    (tmp_path / "closed").chmod(0)
    with pytest.raises((InputError, PermissionError), match="closed"):
        rows_of(tmp_path)
    (tmp_path / "closed").chmod(0o700)


THREE = [(f"{number}.flac", "zero") for number in range(3)]
BROKEN_TABLES = {  # what becomes of each: the outcome, or the one line of the error
    "ok_reference": THREE, "utf8_bom": THREE, "crlf": THREE,
    "missing_files": [*THREE, ("absent_a.flac", "missing_file"), ("absent_b.flac", "missing_file")],
    "all_files_missing": [("a.flac", "missing_file"), ("b.flac", "missing_file")],
    "empty_transcript": [("0.flac", ""), ("1.flac", "   "), ("2.flac", "zero")],
    "null_words": [(f"{n}.flac", word) for n, word in enumerate(["null", "NA", "nan", "None", "true", "007"])],
    "duplicate_rows": [("0.flac", "zero")] * 3 + [("1.flac", "zero"), ("1.flac", "one"), ("2.flac", "zero")],
    "latin1": r"metadata.csv line 2: is not UTF-8 \(byte 0xF6\)",
    "invalid_utf8": r"metadata.csv line 3: is not UTF-8 \(byte 0xFF\)",
    "semicolons": r"metadata.csv: no column with audio .* it seems to be separated by ';'",
    "header_only": r"metadata.csv: has no rows",
    "empty_file": r"metadata.csv: is empty",
    "truncated_jsonl": r"metadata.jsonl line 3: the last line is cut off",
    "ragged_rows": [("metadata.csv line 2", "malformed_row"), ("metadata.csv line 3", "malformed_row"), ("2.flac", "zero"),
                    ("0.flac", "not_in_table"), ("1.flac", "not_in_table")],
    "quotes_and_newlines": [("0.flac", "zero, oh"), ("1.flac", 'he said "zero"'), ("2.flac", "zero\nzero")],
    "absolute_path": [("hostname", "outside_folder"), *THREE[1:], ("0.flac", "not_in_table")],
    "path_traversal": [("hostname", "outside_folder"), *THREE[1:], ("0.flac", "not_in_table")],
    "odd_characters": [("0.flac", "zero \U0001F600"), ("1.flac", "\u0635\u0641\u0631"),
                       ("2.flac", "ze\u200bro\tze\u00adro \ufb01ve")],
    "nfc_nfd": [("0.flac", "gr\u00f6\u00dfe"), ("1.flac", "gro\u0308\u00dfe"), ("2.flac", "zero")],
    "mixed_case": [("0.flac", "zero"), ("1.flac", "ZERO"), ("2.flac", "Zero")],
    "good_and_bad_mixed": [(name, "zero") for name in (
        "ok_reference.wav zero_bytes.wav truncated.flac header_only_0_samples.wav one_sample.wav silence_5s.wav "
        "nan_all_float.wav text_renamed.wav 0.flac 1.flac 2.flac 3.flac").split()],
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_broken_tables(shared_data, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(shared_data / "broken" / "tables" / name, folder)
    expected = BROKEN_TABLES[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            rows_of(folder)
    else:
        assert outcome(rows_of(folder)) == expected


def test_every_broken_table_is_spoken_of(shared_data):
    cases = (shared_data / "broken" / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert {line.split(",")[1] for line in cases if line.startswith("table,")} == BROKEN_TABLES.keys()
    assert {path.name for path in (shared_data / "broken" / "tables").iterdir()} == BROKEN_TABLES.keys()
