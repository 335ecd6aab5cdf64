"""Hypotheses become an audiofolder that the corpus readers take: what is certain, and only text."""

import csv
import os

import datasets
import pytest
from conftest import sound
from corpora import rows_of

from wavtrain import InputError
from wavtrain.recognition.decoding import Hypothesis
from wavtrain.recognition.pseudo_labels import make_folder, write_pseudo_labels
from wavtrain.speech.clips import encode

TEXTS = {"sure": ("ja, \"nein\"\u00e4", 0.9), "unsure": ("ja", 0.2), "silent": ("", 0.99), "at the limit": ("nein", 0.5),
         "unknown": ("ja <unk>", 0.9)}
HYPOTHESES = [Hypothesis(text, -1.0, confidence, ()) for text, confidence in TEXTS.values()]


@pytest.fixture
def clips():
    audio = [{"bytes": encode(sound(0.5 + number / 10, number)), "path": None} for number in range(5)]
    return datasets.Dataset.from_dict({
        "utterance_id": list(TEXTS), "audio": audio, "num_samples": [8000 + 1600 * number for number in range(5)],
        "text": [None] * 5, "speaker": ["a", None, "c", "d", "e"], "language": ["de"] * 5, "corpus": [None] * 5})


def test_what_is_certain_enough_is_written_as_it_is_stored(clips, tmp_path):
    told = write_pseudo_labels(str(tmp_path), clips, HYPOTHESES, 0.5)
    assert told.startswith(f"{tmp_path}: a corpus of 2 of 5 clips, 0.00 h, that are certain enough")
    with open(tmp_path / "metadata.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["text"], row["utterance_id"], row["speaker"], row["confidence"]) for row in rows] == [
        ("ja, \"nein\"\u00e4", "sure", "a", "0.9000"), ("nein", "at the limit", "d", "0.5000")]
    assert sorted(os.listdir(tmp_path)) == ["00000000.flac", "00000003.flac", "metadata.csv"]
    assert (tmp_path / "00000003.flac").read_bytes() == clips[3]["audio"]["bytes"]


def test_the_corpus_readers_take_it(clips, tmp_path):
    write_pseudo_labels(str(tmp_path), clips, HYPOTHESES, 0.0)
    rows = rows_of(tmp_path)
    assert [(row.utterance_id, row.text, row.speaker or None, row.language) for row in rows] == [
        ("sure", "ja, \"nein\"\u00e4", "a", "de"), ("unsure", "ja", None, "de"), ("at the limit", "nein", "d", "de")]


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    make_folder(str(tmp_path / "new" / "folder"))
    make_folder(str(tmp_path / "new" / "folder"))
    (tmp_path / "new" / "folder" / "00000007.flac").touch()
    with pytest.raises(InputError, match=r"--pseudo_label .*: holds 00000007\.flac already: remove the folder"):
        make_folder(str(tmp_path / "new" / "folder"))
    with pytest.raises(InputError, match=r"--pseudo_label .*: no folder can be made there \(Not a directory\)"):
        make_folder(str(tmp_path / "new" / "folder" / "00000007.flac" / "x"))
