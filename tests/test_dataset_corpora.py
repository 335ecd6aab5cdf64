"""What `datasets` reads: parquet folders, save_to_disk and streams; the audio stays encoded, every oddity has its line."""

import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from corpora import (
    TEXTS,
    audio_bytes,
    audio_table,
    content_of,
    open_sources,
    outcome,
    rows_of,
    utterances,
    with_audio_feature,
    write_clips,
    write_parquet,
)

from wavtrain import InputError
from wavtrain.speech.rows import Rejection, Row

FLAC = audio_bytes("61-70-0000")
BOTH = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def audio_of(folder: Path, **options) -> list[bytes | str]:
    """The audio of each row, the reason of each rejection."""
    return [row.reason if isinstance(row, Rejection) else content_of(source, row)
            for source in open_sources(folder, **options) for row in source.rows()]


@BOTH
def test_values_stay_what_they_are(tmp_path, streaming):
    words = ["null", "NA", "", "  ", None, "007", "gr\u00f6\u00dfe\r\n"]
    audio = [{"bytes": FLAC, "path": None}] * 7
    table = audio_table(*audio, text=words, speaker_id=list(range(7)), locale=["de"] * 7, id=words)
    rows = rows_of(write_parquet(tmp_path / "c", table), streaming=streaming)
    assert [row.text for row in rows] == words
    assert [row.speaker for row in rows] == list("0123456")
    assert {row.language for row in rows} == {"de"}
    assert [row.utterance_id for row in rows if row.text and row.text.strip()] == ["null", "NA", "007", "gr\u00f6\u00dfe\r\n"]
    assert all(row.utterance_id for row in rows)
    assert {row.num_bytes for row in rows} == {len(FLAC)}


@BOTH
def test_rows_without_usable_audio(tmp_path, streaming):
    audio = [{"bytes": FLAC, "path": "x/a.flac"}, {"bytes": None, "path": "gone.flac"}, {"bytes": b"", "path": None}, None,
             {"bytes": None, "path": "/etc/hostname"}, {"bytes": None, "path": "../b.flac"}, {"bytes": None, "path": "b.flac"}]
    folder = write_parquet(write_clips(tmp_path / "c", "b.flac"), audio_table(*audio))
    rows = rows_of(folder, streaming=streaming)
    assert [row.reason if isinstance(row, Rejection) else row.utterance_id for row in rows] == [
        "a.flac", "missing_file", "malformed_row", "malformed_row", "outside_folder", "outside_folder", "b.flac"]
    sources = [row.source.replace("#0", "") for row in rows]
    assert sources == [f"{folder}[0] x/a.flac", f"{folder}/gone.flac", f"{folder}[2]", f"{folder}[3]", f"{folder}[4]",
                       f"{folder}[5]", f"{folder}/b.flac"]


@BOTH
@pytest.mark.parametrize("column", [
    pa.array([FLAC, FLAC]), pa.array([FLAC, FLAC], pa.large_binary()), pa.array(["a.flac", "b.flac"]),
    pa.array(["a.flac", "b.flac"], pa.large_string()), pa.array(["a.flac", "b.flac"]).dictionary_encode(),
    pa.array([{"bytes": FLAC}, {"bytes": FLAC}]), pa.array([{"path": "a.flac"}, {"path": "b.flac"}]),
    pa.array([{"path": "a", "bytes": FLAC, "more": 1}] * 2), pa.array([FLAC, FLAC], pa.binary(len(FLAC))),
], ids=["binary", "large_binary", "string", "large_string", "dictionary", "bytes only", "path only", "more", "fixed size"])
def test_every_type_that_holds_audio(tmp_path, column, streaming):
    folder = write_parquet(write_clips(tmp_path / "c", "a.flac", "b.flac"), pa.table({"audio": column}))
    assert audio_of(folder, streaming=streaming) == [FLAC, FLAC]


@BOTH
@pytest.mark.parametrize("column", [
    pa.array([[0.1, 0.2]]), pa.array([1]), pa.array([0.5]), pa.array([True]), pa.array([None]),
    pa.array([{"array": [0.1], "sampling_rate": 16_000}]), pa.array([[{"bytes": FLAC}]]),
], ids=["list", "integer", "float", "boolean", "null", "decoded", "list of audio"])
def test_types_that_hold_none(tmp_path, column, streaming):
    """An error that names the column, or a rejection for each row; no traceback."""
    folder = write_parquet(tmp_path / "c", pa.table({"audio": column, "text": ["x"]}))
    try:
        assert audio_of(folder, streaming=streaming) == ["malformed_row"]
    except InputError as error:
        assert "audio" in str(error)  # noqa: PT017


@BOTH
def test_a_column_of_type_audio_goes_before_known_names(tmp_path, streaming):
    data = with_audio_feature(utterances()).rename_column("audio", "speech").add_column("path", ["p", "q", "r"])
    (tmp_path / "c" / "data").mkdir(parents=True)
    data.to_parquet(tmp_path / "c" / "data" / "train.parquet")
    assert audio_of(tmp_path / "c", streaming=streaming) == [audio_bytes(name) for name in TEXTS]
    with pytest.raises(InputError, match="--audio_column_name audio: there are only speech, text, path"):
        rows_of(tmp_path / "c", audio_column_name="audio", streaming=streaming)
    assert audio_of(tmp_path / "c", audio_column_name="path", streaming=streaming) == ["missing_file"] * 3


@BOTH
def test_more_rows_than_a_batch(tmp_path, streaming):
    audio = [{"bytes": b"%d" % number, "path": None} for number in range(250)]
    folder = write_parquet(tmp_path / "c", audio_table(*audio, text=[str(number) for number in range(250)]))
    rows = rows_of(folder, streaming=streaming)
    assert [row.text for row in rows] == [str(number) for number in range(250)]
    assert audio_of(folder, streaming=streaming) == [b"%d" % number for number in range(250)]
    assert len({row.utterance_id for row in rows}) == 250


def test_the_audio_itself_is_not_read_to_list_the_rows(tmp_path):
    audio = [{"bytes": bytes(100_000), "path": None}] * 100
    with_audio_feature(audio_table(*audio)).save_to_disk(tmp_path / "c")
    source, = open_sources(tmp_path / "c")
    before, rows = pa.total_allocated_bytes(), source.rows()
    assert next(rows).num_bytes == 100_000
    assert pa.total_allocated_bytes() - before < 1_000_000


@BOTH
def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path, monkeypatch, streaming):
    """What is held out for validation is a function of them."""
    table = audio_table({"bytes": FLAC, "path": None})
    for place in ("here", "there"):
        write_parquet(tmp_path / place / "corpus", table)
    monkeypatch.chdir(tmp_path / "there")
    ids = {row.utterance_id for name in (tmp_path / "here" / "corpus", "corpus", "./corpus/", tmp_path / "there" / "corpus")
           for row in rows_of(name, streaming=streaming)}
    assert len(ids) == 1


def test_a_stream_has_a_source_for_each_file(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / "c", utterances().slice(number, 1), f"data/train-{number:05d}-of-00003.parquet")
    sources = open_sources(tmp_path / "c", streaming=True)
    assert [outcome(source.rows()) for source in sources] == [[(f"{name}.flac", text)] for name, text in TEXTS.items()]
    assert len({source.signature for source in sources}) == 3
    assert outcome(rows_of(tmp_path / "c")) == [(f"{name}.flac", text) for name, text in TEXTS.items()]


@BOTH
@pytest.mark.parametrize("write", [
    write_parquet, lambda folder, table: with_audio_feature(table).save_to_disk(folder)], ids=["parquet", "on disk"])
def test_sources_may_be_walked_again_and_know_their_content(tmp_path, write, streaming):
    def signatures(table: pa.Table, **options) -> list:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        write(tmp_path / "c", table)
        sources = open_sources(tmp_path / "c", streaming=streaming, **options)
        assert [outcome(source.rows()) for source in sources] == [outcome(source.rows()) for source in sources]
        return [source.signature for source in sources]

    if streaming and write is not write_parquet:
        pytest.skip("is not streamed")
    table = utterances()
    was = signatures(table)
    assert None not in was
    assert signatures(table.set_column(1, "text", pa.array(["A", "B", "C"]))) != was
    assert signatures(table.append_column("other", pa.array(["A", "B", "C"])), text_column_name="other") != was


@BOTH
@pytest.mark.parametrize(("content", "message"), [
    (b"PAR1 rubbish", "magic bytes"), (b"", "c"), (b"PAR1" + b"\0" * 50 + b"PAR1", "c")])
def test_parquet_that_is_damaged(tmp_path, content, message, streaming):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.parquet").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        rows_of(tmp_path / "c", streaming=streaming)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_dataset_on_disk_that_is_damaged(tmp_path, name, how):
    with_audio_feature(utterances()).save_to_disk(tmp_path / "c")
    if how == "cut":
        os.truncate(tmp_path / "c" / name, os.path.getsize(tmp_path / "c" / name) // 2)
    else:
        (tmp_path / "c" / name).unlink()
    try:
        assert audio_of(tmp_path / "c") == [audio_bytes(utterance) for utterance in TEXTS]
    except InputError as error:
        assert str(tmp_path / "c") in str(error)  # noqa: PT017


@BOTH
def test_parquet_beside_audio_files(tmp_path, streaming):
    """`datasets` would decode the audio, for which it takes torchcodec; the remedy is another, and is named."""
    folder = write_clips(tmp_path / "c", "audio/0.flac", "audio/1.flac")
    write_parquet(folder, pa.table({"x": [1.0]}), "other/x.parquet")
    with pytest.raises(InputError, match=str(folder)) as raised:
        rows_of(folder, streaming=streaming)
    assert "torchcodec" not in str(raised.value)


def test_splits_of_a_dataset_dict(tmp_path):
    data = with_audio_feature(utterances())
    datasets.DatasetDict(train=data, dev=data.select([1])).save_to_disk(tmp_path / "c")
    assert [(source.split, source.num_rows) for source in open_sources(tmp_path / "c", validation_split_names=("dev",))] == [
        ("train", 3), ("validation", 1)]
    with pytest.raises(InputError, match=r"--dataset_split_names test: .*/c has train, dev"):
        open_sources(tmp_path / "c", dataset_split_names=("test",))
    (tmp_path / "c" / "dataset_dict.json").write_text("{")
    with pytest.raises(InputError, match="/c"):
        open_sources(tmp_path / "c")


def test_a_dict_of_one_split_needs_no_name(tmp_path):
    datasets.DatasetDict(odd=with_audio_feature(utterances())).save_to_disk(tmp_path / "c")
    assert [source.num_rows for source in open_sources(tmp_path / "c")] == [3]


@BOTH
def test_splits_of_parquet(tmp_path, streaming):
    write_parquet(tmp_path / "c", utterances())
    write_parquet(tmp_path / "c", utterances().slice(2), "data/validation-00000-of-00001.parquet")
    found = open_sources(tmp_path / "c", validation_split_names=("validation",), streaming=streaming)
    assert [(source.split, len(list(source.rows()))) for source in found] == [("train", 3), ("validation", 1)]
    assert {source.corpus for source in found} == {"c"}
    for option, value in (("dataset_split_names", "test"), ("dataset_config_names", "clean")):
        with pytest.raises(InputError, match=value):
            open_sources(tmp_path / "c", streaming=streaming, **{option: (value,)})


@pytest.mark.parametrize("fault", [huggingface_hub.errors.HTTPError("no route"), OSError("reset")])
def test_a_hub_out_of_reach(monkeypatch, fault):
    def unreachable(*args, **kwargs):
        raise fault

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(InputError, match=f"--dataset_name nobody/nothing.*: {fault}$"):
        open_sources("nobody/nothing")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "not a name"])
@BOTH
def test_a_corpus_that_is_nowhere(name, streaming):
    with pytest.raises(InputError, match=f"--dataset_name {name}") as raised:
        open_sources(name, streaming=streaming)
    assert "\n" not in str(raised.value)


def test_rows_have_their_audio_from_anywhere(tmp_path):
    """Segments of files outside the folder take a wider root, as for tables."""
    write_clips(tmp_path / "audio", "a.flac")
    folder = write_parquet(tmp_path / "c", audio_table({"bytes": None, "path": str(tmp_path / "audio" / "a.flac")}))
    assert audio_of(folder) == ["outside_folder"]
    assert audio_of(folder, audio_root=str(tmp_path)) == [FLAC]
    row, = rows_of(folder, audio_root=str(tmp_path))
    assert isinstance(row, Row)
    assert row.utterance_id == "audio/a.flac"
