"""Any corpus: every form gives the same rows; names, configurations and splits pair up; splits are found or asked for."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from corpora import (
    FORMS,
    SAMPLES,
    TEXTS,
    audio_bytes,
    content_of,
    open_sources,
    outcome,
    rows_of,
    samples_of,
    utterances,
    with_audio_feature,
    write_clips,
    write_parquet,
    write_table,
)

from wavtrain import InputError

CSV = "file_name,text\n"


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, name):
    form = FORMS[name]
    source, = open_sources(form.write(tmp_path / "corpus"), streaming=form.streaming)
    rows = list(source.rows())
    assert [Path(row.utterance_id).stem for row in rows] == list(TEXTS)
    assert [row.text for row in rows] == [text if form.has_text else None for text in TEXTS.values()]
    assert (source.corpus, source.split) == ("corpus", "train")
    for row, samples in zip(rows, SAMPLES.values(), strict=True):
        np.testing.assert_array_equal(samples_of(source, row), samples)
    if form.is_whole:
        assert [content_of(source, row) for row in rows] == [audio_bytes(utterance) for utterance in TEXTS]
        assert [row.num_bytes for row in rows] == [len(audio_bytes(utterance)) for utterance in TEXTS]
    assert list(source.rows()) == rows


def test_several_corpora_at_once(tmp_path):
    forms = [form for form in FORMS.values() if not form.streaming]
    names = [form.write(tmp_path / f"c{number}") for number, form in enumerate(forms)]
    sources = open_sources(*names)
    assert [source.corpus for source in sources] == [f"c{number}" for number in range(len(names))]
    assert sum(len(list(source.rows())) for source in sources) == 3 * len(names)


@pytest.fixture
def two(tmp_path) -> list[Path]:
    """Two corpora, each with the configurations en, de and the splits train, dev."""
    for corpus in ("a", "b"):
        for config in ("en", "de"):
            write_clips(tmp_path / corpus / config, "train/0.flac", "dev/0.flac")
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(("number", "options", "expected"), [
    (2, {"dataset_config_names": ("en",)}, ["a/en/train", "b/en/train"]),
    (2, {"dataset_config_names": ("en", "de")}, ["a/en/train", "b/de/train"]),
    (1, {"dataset_config_names": ("en", "de")}, ["a/en/train", "a/de/train"]),
    (1, {"dataset_config_names": ("en", "en"), "dataset_split_names": ("train", "dev")}, ["a/en/train", "a/en/dev"]),
    (1, {"dataset_config_names": ("en",), "dataset_split_names": ("train", "dev")}, ["a/en/train", "a/en/dev"]),
    (1, {"dataset_config_names": ("en", "de"), "dataset_split_names": ("dev",)}, ["a/en/dev", "a/de/dev"]),
    (2, {"dataset_config_names": ("en", "de"), "dataset_split_names": ("train", "dev")}, ["a/en/train", "b/de/dev"]),
    (1, {"dataset_config_names": ("en",), "validation_split_names": ("dev",)}, ["a/en/train", "a/en/dev*"]),
    (2, {"dataset_config_names": ("en",), "validation_split_names": ("dev",)}, [
        "a/en/train", "b/en/train", "a/en/dev*", "b/en/dev*"]),
    (1, {"dataset_config_names": ("en", "de"), "validation_split_names": ("validation",)}, [
        "a/en/train", "a/de/train", "a/en/dev*", "a/de/dev*"]),
])
def test_names_pair_up(two, number, options, expected):
    sources = open_sources(*two[:number], **options)
    places = [str(Path(source.description).relative_to(two[0].parent)) for source in sources]
    assert [place + "*" * (source.split == "validation") for place, source in zip(places, sources, strict=True)] == expected


def test_utterances_of_configurations_can_be_told_apart(two):
    sources = [source for name in two for source in open_sources(name, dataset_config_names=("en", "de"))]
    assert [source.corpus for source in sources] == ["a", "a", "b", "b"]
    assert len({(source.corpus, row.utterance_id) for source in sources for row in source.rows()}) == 4


@pytest.mark.parametrize(("number", "options", "message"), [
    (2, {"dataset_config_names": ("en", "de", "fr")}, "--dataset_name: 2 values do not pair with 3; give one, or 3"),
    (1, {"dataset_config_names": ("en", "de"), "dataset_split_names": ("train",) * 3},
     "--dataset_config_names: 2 values do not pair with 3; give one, or 3"),
    (2, {"dataset_split_names": ("train",) * 4}, "--dataset_name: 2 values do not pair with 4"),
    (2, {"dataset_config_names": ("en",), "validation_split_names": ("dev",) * 3}, "2 values do not pair with 3"),
    (1, {"dataset_config_names": ("en", "en")}, "--dataset_name: .*/a en is asked for twice"),
    (1, {"dataset_config_names": ("en",), "dataset_split_names": ("train", "train")}, "/a en train is asked for twice"),
    (1, {"dataset_config_names": ("en",), "dataset_split_names": ("dev",), "validation_split_names": ("dev",)},
     "/a en dev is asked for twice"),
    (1, {"dataset_config_names": ("fr",)}, "--dataset_config_names fr: .*/a has no folder of that name"),
    (1, {"dataset_config_names": ("en",), "dataset_split_names": ("test",)}, "_split_names test: .*/a/en has dev, train"),
    (1, {"streaming": True}, "--streaming: .*/a is on this disk already and is not parquet"),
])
def test_names_that_do_not_pair_up(two, number, options, message):
    with pytest.raises(InputError, match=message):
        open_sources(*two[:number], **options)


@pytest.mark.parametrize("other", ["{}/", "{}/.", "{}/../a"])
def test_one_corpus_by_two_names_is_asked_for_twice(two, other):
    with pytest.raises(InputError, match="asked for twice"):
        open_sources(two[0], other.format(two[0]), dataset_config_names=("en",))


LIBRISPEECH = [f"{name}/1/0.flac" for name in ("train-clean-100", "train-other-500", "dev-clean", "dev-other", "test")]


@pytest.mark.parametrize(("files", "split", "found"), [
    (LIBRISPEECH, None, ["train-clean-100", "train-other-500"]),
    (LIBRISPEECH, "train", ["train-clean-100", "train-other-500"]),
    (LIBRISPEECH, "train-clean-100", ["train-clean-100"]),
    (LIBRISPEECH, "validation", ["dev-clean", "dev-other"]),
    (LIBRISPEECH, "dev-other", ["dev-other"]),
    (LIBRISPEECH, "test", ["test"]),
    (["Train/0.flac", "Valid/0.flac"], None, ["Train"]),
    (["training/0.flac", "evaluation/0.flac"], "test", ["evaluation"]),
    (["validation/0.flac", ".hidden/0.flac"], None, ["validation"]),
    (["train/0.flac", "speaker/0.flac"], "speaker", ["speaker"]),
    (["ada/0.flac", "bob/0.flac"], None, ["."]),
    (["ada/0.flac", "bob/0.flac"], "train", ["."]),
    (["ada/0.flac", "bob/0.flac"], "bob", ["bob"]),
    (["0.flac"], None, ["."]),
    (["trainer/0.flac", "developer/0.flac"], None, ["."]),
    (["data/train/0.flac", "data/test/0.flac", "docs/0.flac"], None, ["data/train"]),
    (["data/train/0.flac", "data/test/0.flac"], "test", ["data/test"]),
    (["data/0.flac"], None, ["."]),
])
def test_splits_that_are_folders(tmp_path, files, split, found):
    write_clips(tmp_path, *files)
    sources = open_sources(tmp_path, dataset_split_names=(split,) if split else ())
    assert [str(Path(source.description).relative_to(tmp_path)) for source in sources] == found
    assert {source.corpus for source in sources} == {tmp_path.name}


@pytest.mark.parametrize(("files", "split", "message"), [
    (LIBRISPEECH, "train-clean-360", "train-clean-360: .* has dev-clean, dev-other, test, train-clean-100, train-other-500"),
    (["train/0.flac"], "dev", "--dataset_split_names dev: .* has train"),
    (["dev/0.flac", "test/0.flac"], None, "--dataset_split_names: .* has dev, test"),
    (["ada/0.flac"], "validation", "--dataset_split_names validation: .* is not divided into splits"),
    (["train/0.flac"], "../other", "--dataset_split_names"),
])
def test_splits_that_are_not_there(tmp_path, files, split, message):
    write_clips(tmp_path / "corpus", *files)
    with pytest.raises(InputError, match=message):
        open_sources(tmp_path / "corpus", dataset_split_names=(split,) if split else ())


@pytest.mark.parametrize(("tables", "split", "found"), [
    (["train.csv", "dev.csv", "test.csv"], None, ["train.csv"]),
    (["train.tsv", "dev.tsv", "validated.tsv"], "validation", ["dev.tsv"]),
    (["train.tsv", "validated.tsv"], "validated", ["validated.tsv"]),
    (["manifests/train.csv", "train.json"], None, ["train.json"]),
    (["data/train.csv", "data/test.csv"], None, ["data/train.csv"]),
    (["train_clean.csv", "train-other.csv"], "train", ["train-other.csv", "train_clean.csv"]),
])
def test_splits_that_are_tables(tmp_path, tables, split, found):
    for table in tables:
        rows = [{"file_name": "0.flac"}] if table.endswith(".json") else [["path", "sentence"], ["0.flac", "x"]]
        write_table(tmp_path / table, rows)
        write_clips((tmp_path / table).parent, "clips/0.flac", "0.flac")
    sources = open_sources(tmp_path, dataset_split_names=(split,) if split else ())
    assert [str(Path(source.description).relative_to(tmp_path)) for source in sources] == found


def test_a_table_goes_before_the_folder_it_describes(tmp_path):
    write_table(write_clips(tmp_path, "train/0.flac") / "train.csv", CSV + "train/0.flac,x\n")
    assert outcome(rows_of(tmp_path)) == [("train/0.flac", "x")]
    write_table(tmp_path / "train.jsonl", [{"file_name": "train/0.flac"}])
    with pytest.raises(InputError, match=r"holds train.csv and train.jsonl: name the one to read"):
        rows_of(tmp_path)


def test_no_clip_is_read_twice_for_a_table_and_a_folder(tmp_path):
    write_table(write_clips(tmp_path, "train/0.flac") / "train_list.csv", CSV + "train/0.flac,x\n")
    try:
        assert len(rows_of(tmp_path)) == 1
    except InputError as error:
        assert "train_list.csv" in str(error)  # noqa: PT017


@pytest.mark.parametrize("split", ["validation", "train"])
@pytest.mark.parametrize("kind", ["file", "folder", "dataset on disk", "parquet"])
def test_training_speech_is_not_held_out_speech(tmp_path, kind, split):
    """What has no splits, or not that one, is not silently trained on and validated on."""
    name = tmp_path / "corpus"
    if kind in ("file", "folder"):
        write_clips(name, "0.flac")
    if kind == "file":
        name = write_table(name / "list.csv", CSV + "0.flac,x\n")
    elif kind == "parquet":
        write_parquet(name, utterances())
    elif kind != "folder":
        with_audio_feature(utterances()).save_to_disk(name)
    with pytest.raises(InputError, match=r"--\w+"):
        open_sources(name, validation_split_names=(split,))


def test_splits_saved_one_by_one(tmp_path):
    for split in ("train", "validation"):
        with_audio_feature(utterances()).save_to_disk(tmp_path / split)
    sources = open_sources(tmp_path, validation_split_names=("validation",))
    assert [(source.split, source.num_rows) for source in sources] == [("train", 3), ("validation", 3)]
    assert {source.corpus for source in sources} == {tmp_path.name}


@pytest.mark.parametrize(("name", "message"), [
    ("{}/gone", "gone: no such file or folder"), ("{}/gone.csv", "gone.csv: no such file or folder"),
    ("./gone", "gone: no such file or folder"), ("a/b/c", "a/b/c: no such file or folder"),
    ("gone.tsv", "gone.tsv: no such file or folder"),
    ("~/gone/for/ever", "gone/for/ever: no such file or folder"),
    ("{}/notes.txt", "notes.txt: neither audio nor a manifest, whose name ends in .csv, .tsv, .jsonl, .json"),
])
def test_names_that_lead_nowhere(tmp_path, name, message):
    (tmp_path / "notes.txt").write_text("words\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"^--dataset_name .*{message}"):
        open_sources(name.format(tmp_path))


def test_audio_files_are_corpora_of_one_clip(tmp_path):
    write_clips(tmp_path, "one.flac", "two.wav")
    sources = open_sources(tmp_path / "one.flac", tmp_path / "two.wav")
    rows = [row for source in sources for row in source.rows()]
    assert [(row.audio, row.utterance_id) for row in rows] == [(str(tmp_path / name),) * 2 for name in ("one.flac", "two.wav")]


def test_columns_and_roots_reach_every_form(tmp_path):
    write_clips(tmp_path / "audio", "0.flac")
    table = write_table(tmp_path / "c" / "train.csv", "sound,said,path\n0.flac,yes,no.flac\n")
    write_table(tmp_path / "d" / "metadata.csv", "sound,said,path\n0.flac,no,no.flac\n")
    for name in (table, table.parent, tmp_path / "d"):
        row = rows_of(name, audio_column_name="sound", text_column_name="said", audio_root=str(tmp_path / "audio"))[0]
        assert (row.utterance_id, row.text) == ("0.flac", "no" if name.name == "d" else "yes")
        with pytest.raises(InputError, match="--speaker_column_name who: there are only sound, said, path"):
            rows_of(name, speaker_column_name="who")
