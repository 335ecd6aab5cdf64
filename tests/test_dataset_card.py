"""Prepared speech on the Hub: read back by our own preparation, by `datasets`, and as a prepared directory, clip for clip."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import stand_in_hub
from conftest import ROOT, write_folder
from corpora import write_table
from huggingface_hub import DatasetCard, HfApi
from training_runs import refusal, words_of

import run_preprocessing
from wavtrain.hub.card_text import was_edited
from wavtrain.hub.dataset_card import NotPushedError
from wavtrain.speech.prepared_directory import features, open_prepared

PUSH = {"push_to_hub": True, "hub_dataset_id": "someone/speech", "hub_token": stand_in_hub.TOKEN, "license": "cc-by-4.0"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "corpus"
    names = "".join(f"{number:03d}.flac,{'ab c' if number else ''},en,s{number}\n" for number in range(9))
    write_table(write_folder(folder, [1.0, 1.5, 2.0, 1.2, 1.1, 1.3, 1.2, 1.4, 0.05]) / "metadata.csv",
                f"file_name,text,language,speaker\n{names}")
    return folder


def flags(corpus, output_dir, **more):
    return words_of({"dataset_name": corpus, "output_dir": output_dir, "preprocessing_num_workers": 1, **more})


def clips(folder):
    """All that is known of each clip, by split; the corpus is called as the place it was read from."""
    prepared = open_prepared(str(folder))
    return {split: sorted((row | {"corpus": None} for row in prepared.load(split)), key=lambda row: row["utterance_id"])
            for split in prepared.report["splits"]}


def test_what_is_pushed_is_read_back_in_every_way(corpus, hub, tmp_path):
    here = tmp_path / "here"
    report = run_preprocessing.main(flags(corpus, here, validation_split_percentage=30, hub_private_repo=True, **PUSH))
    (commit,) = stand_in_hub.commits(hub)
    assert not [path for path in commit["files"] if "rejected" in path]
    assert sorted(report["splits"]) == ["train", "validation"]

    environ = {**os.environ, **stand_in_hub.environment(os.environ["HF_ENDPOINT"], tmp_path), "HF_TOKEN": stand_in_hub.TOKEN}
    words = flags("someone/speech", tmp_path / "again", dataset_split_names="train", validation_split_names="validation")
    words = [sys.executable, "run_preprocessing.py", *words]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert clips(tmp_path / "again") == clips(here)

    code = ("import datasets, json; s = datasets.load_dataset('someone/speech'); print(json.dumps([{n: len(s[n]) for n in s}, "
            "s['train'].features['audio'].decode, s['train'].column_names]))")
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = {split: total["clips"] for split, total in report["splits"].items()}
    assert json.loads(done.stdout.splitlines()[-1]) == [counts, True, list(features())]

    HfApi(token=stand_in_hub.TOKEN).snapshot_download("someone/speech", repo_type="dataset", local_dir=tmp_path / "copy")
    assert clips(tmp_path / "copy") == clips(here)


def test_the_card_says_what_preparation_json_says(corpus, hub, tmp_path):
    report = run_preprocessing.main(flags(corpus, tmp_path / "p", validation_split_percentage=30, **PUSH))
    path = tmp_path / "p" / "README.md"
    card, text = DatasetCard.load(path), path.read_text()
    assert not was_edited(text)
    assert text == (hub / "someone" / "speech" / "README.md").read_text()
    assert (card.data.license, card.data.language, card.data.size_categories) == ("cc-by-4.0", ["en"], "n<1K")
    read = datasets.Features._from_yaml_list(card.data.to_dict()["dataset_info"]["features"])
    assert read == {**features(), "audio": datasets.Audio(sampling_rate=16_000)}
    for split, total in report["splits"].items():
        _, name, num_clips, hours, _ = next(line for line in text.splitlines() if line.startswith(f"| {split} ")).split("|")
        assert (name.strip(), int(num_clips)) == (split, total["clips"])
        assert float(hours) == pytest.approx(total["hours"], rel=5e-3)
    assert "| too_short | 1 |" in text
    assert f"{sum(total['clips'] for total in report['splits'].values())} clips, " in text


def test_the_same_command_pushes_what_could_not_be_pushed(corpus, hub, tmp_path):
    stand_in_hub.trouble(hub, {"at": "/commit/", "status": 503, "times": 4})
    with pytest.raises(NotPushedError, match="the same command pushes it") as raised:
        run_preprocessing.main(flags(corpus, tmp_path / "p", **PUSH))
    assert raised.value.exit_code == 1
    assert open_prepared(str(tmp_path / "p"))
    assert not list((tmp_path / "p").glob("*.part"))
    run_preprocessing.main(flags(corpus, tmp_path / "p", **PUSH))
    assert len(stand_in_hub.commits(hub)) == 1


def test_what_cannot_be_pushed_is_told_before_the_work(corpus, hub, tmp_path):
    for more, why in (({"hub_token": "hf_bad"}, "cannot be pushed to ("), ({"license": "My Own"}, "is no name of a licence"),
                      ({"num_shards": 2, "shard_index": 0}, "--push_to_hub has no place in a job array")):
        assert why in refusal(run_preprocessing, flags(corpus, tmp_path / "p", **{**PUSH, **more}))
    assert not (tmp_path / "p").exists()
