"""The corpus that comes with the repository is what its README says, and goes through the same reader as anyone's."""

import os

import pytest
from conftest import ROOT

import run_preprocessing
from wavtrain.speech.prepared_directory import open_prepared

CORPUS = ROOT / "demo_corpus"


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    loaded = {}
    for split in ("train", "validation", "test"):
        folder = tmp_path_factory.mktemp("demo") / split
        argv = ["--dataset_name", str(CORPUS), "--dataset_split_names", split, "--output_dir", str(folder)]
        report = run_preprocessing.main([*argv, "--validation_split_percentage", "0"])
        assert report["rejected"] == {}
        assert report["remarks"] == {}
        loaded[split] = open_prepared(str(folder)).load("train")
    return loaded


def test_size(splits):
    minutes = {split: sum(data["num_samples"]) / 16_000 / 60 for split, data in splits.items()}
    assert 20 <= sum(minutes.values()) <= 30
    assert minutes["train"] > 8 * max(minutes["validation"], minutes["test"])
    assert sum(os.path.getsize(path) for path in CORPUS.rglob("*") if path.is_file()) <= 4_000_000


def test_voices_languages_and_transcripts(splits):
    assert len(set(splits["train"]["speaker"])) >= 8
    for data in splits.values():
        assert set(data["language"]) == {"en", "de"}
        assert all(text and text == text.strip() for text in data["text"])


def test_held_out_speakers_and_sentences_are_not_heard_in_training(splits):
    for column in ("speaker", "text"):
        train, validation, test = (set(splits[split][column]) for split in ("train", "validation", "test"))
        assert not train & validation
        assert not train & test
        assert not validation & test
