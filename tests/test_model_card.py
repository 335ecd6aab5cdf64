"""The card of a run: its numbers are those of the files, its metadata is valid, its lines work, a person's words stay."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import yaml
from conftest import write_folder, write_model
from corpora import write_table
from huggingface_hub import ModelCard, metadata_load
from training_runs import SMALL, records, weights, words_of

import run_ctc_decoding
import run_ctc_finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.hub import model_card
from wavtrain.hub.card_text import shown, signed, was_edited, write_card
from wavtrain.hub.model_scores import digest_of_weights
from wavtrain.speech.prepared_directory import open_prepared

HOSTILE = "<script>alert(1)</script> |`![x](http://x)` \x1b[31m\u202e ]\n---\nlicense: mit"
SCRIPTS = {"pretrained": pretraining, "recogniser": run_ctc_finetuning}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of both scripts on the same speech, and a decoding."""
    folder = tmp_path_factory.mktemp("cards")
    names = "".join(f"{number:03d}.flac,ab c,{'de' if number else 'en'},{number}\n" for number in range(8))
    write_table(write_folder(folder / "corpus", [1.0, 1.5, 2.0, 1.2, 1.1, 1.3, 1.2, 0.05]) / "metadata.csv",
                f"file_name,text,language,speaker\n{names}")
    write_model(folder / "model")
    run_preprocessing.main(words_of({"dataset_name": folder / "corpus", "output_dir": folder / "prepared",
                                     "preprocessing_num_workers": 1, "validation_split_percentage": 30}))
    flags = {**SMALL, "dataset_name": folder / "prepared", "max_train_steps": 3, "eval_steps": 1, "license": "cc-by-4.0"}
    pretraining.main(words_of({**flags, "model_name_or_path": folder / "model", "output_dir": folder / "pretrained"}))
    run_ctc_finetuning.main(words_of({**flags, "config_name": folder / "model", "output_dir": folder / "recogniser"}))
    run_ctc_decoding.main(words_of({"dataset_name": folder / "prepared", "model_name_or_path": folder / "recogniser",
                                    "output_dir": folder / "scores", "dataloader_num_workers": 0}))
    return folder


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def cells(card, first):
    """The table line that begins with this."""
    line = next(line for line in reversed(card.splitlines()) if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def facts_of_weights(folder):
    return sum(each.numel() for each in weights(folder).values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_is_one_of_the_files(runs, name):
    card, run = card_of(runs / name), runs / name
    report = json.loads((runs / "prepared" / "preparation.json").read_text())
    assert f"{facts_of_weights(run):,} weights" in card
    for split, total in report["splits"].items():
        found = cells(card, split)
        assert (found[1], float(found[2])) == (str(total["clips"]), pytest.approx(total["hours"], rel=5e-3))
    assert "- Left out, by reason: too_short 1 clips" in card
    assert "- Languages: de, en" in card
    last = records(run, "train")[-1]
    steps, heard = re.search(r"^(\d+) updates, (\S+) hours of speech heard", card, re.MULTILINE).groups()
    assert (int(steps), float(heard)) == (last["step"], pytest.approx(last["audio_hours"], rel=5e-3))
    arguments = yaml.safe_load((run / "arguments.yaml").read_text())
    for flag, value in re.findall(r"^\| `--(\w+)` \| (\S+) \|", card, re.MULTILINE):
        assert str(arguments[flag]) == value
    assert "![Curves of the training](training_curves.png)" in card


def test_measures_of_a_pretraining_are_those_of_its_last_validation(runs):
    last = records(runs / "pretrained", "validation")[-1]
    card = card_of(runs / "pretrained")
    assert f"| held-out speech, step {last['step']} |" in card
    for title, name in (("loss, nats per masked frame", "loss"), ("code perplexity", "code_perplexity"),
                        ("contrastive accuracy, strict", "contrastive_accuracy")):
        assert float(cells(card, title)[1]) == pytest.approx(last[name], rel=1e-3)


def test_scores_are_those_of_the_served_model_and_of_decodings(runs):
    run, scores = runs / "recogniser", json.loads((runs / "scores" / "scores.json").read_text())
    best = min(records(run, "validation"), key=lambda each: (each["wer"], each["cer"], each["loss"]))
    found = cells(card_of(run).partition("## What it heard")[0], "validation")
    assert found[1:3] == [f"`greedy, of step {best['step']}`", f"{100 * best['wer']:.2f}"]
    model_card.main([str(run), str(runs / "scores")])
    found = cells(card_of(run), "scores")
    low, high = scores["wer_95_percent_interval"]
    assert found[2:4] == [f"{100 * scores['wer']:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"]
    results = ModelCard.load(run / "README.md").data.eval_results
    assert {(each.dataset_name, each.metric_type): each.metric_value for each in results} == {
        (label, kind): round(100 * rates[kind], 2) for label, rates in (("validation", best), ("scores", scores))
        for kind in ("wer", "cer")}


def test_scores_stay_when_a_run_goes_on_and_go_with_their_model(runs, tmp_path):
    run = shutil.copytree(runs / "recogniser", tmp_path / "run")
    model_card.main([str(run), str(runs / "scores")])
    scored = cells(card_of(run), "scores")
    flags = {**SMALL, "dataset_name": runs / "prepared", "max_train_steps": 3, "eval_steps": 1, "license": "cc-by-4.0"}
    run_ctc_finetuning.main(words_of({**flags, "config_name": runs / "model", "output_dir": run,
                                      "resume_from_checkpoint": "latest"}))
    assert cells(card_of(run), "scores") == scored
    other = weights(run)
    safetensors.torch.save_file({name: each + 1 for name, each in other.items()}, run / "model.safetensors")
    model_card.write_model_card(str(run))
    assert "| scores |" not in card_of(run)


def test_scores_of_folders_that_end_alike_are_told_apart(runs, tmp_path):
    run, folders = shutil.copytree(runs / "recogniser", tmp_path / "run"), [tmp_path / place / "test" for place in "ab"]
    for folder in folders:
        shutil.copytree(runs / "scores", folder)
    model_card.main([str(run), *map(str, folders)])
    rows = card_of(run).partition("## How good it is")[2].partition("## What it heard")[0]
    assert [str(folder) in rows for folder in folders] == [True, True]


def test_the_command_says_how_a_card_gets_to_its_repository(runs, tmp_path):
    run = shutil.copytree(runs / "recogniser", tmp_path / "run")
    model_card.write_model_card(str(run), "me/mine")
    assert model_card.main([str(run)]).endswith(f"hf upload me/mine {run}/README.md README.md")


def test_datasets_are_those_of_the_hub(runs, tmp_path):
    def facts(corpus, num_bytes, name):
        report = {**prepared.report, "sources": [{"corpus": corpus, "bytes": num_bytes}], "asked_for": {"dataset_name": [name]}}
        model_card.write_facts(str(tmp_path), {"model_name_or_path": name}, replace(prepared, report=report), 2)
        return json.loads((tmp_path / "run.json").read_text())

    prepared = open_prepared(str(runs / "prepared"))
    assert facts("speech", None, "someone/speech")["hub_datasets"] == ["someone/speech"]
    assert facts("speech", 8000, "folder/speech")["hub_datasets"] == []  # one that has been removed since
    found = facts("prepared", None, str(runs / "prepared"))
    assert (found["hub_datasets"], found["base_model"], found["num_processes"]) == ([], None, 2)


@pytest.mark.parametrize("name", SCRIPTS)
def test_metadata_is_valid(runs, name):
    data = ModelCard.load(runs / name / "README.md").data
    assert data.to_dict() == metadata_load(runs / name / "README.md")
    assert (data.library_name, data.license, data.language) == ("transformers", "cc-by-4.0", ["de", "en"])
    assert data.pipeline_tag == ("automatic-speech-recognition" if name == "recogniser" else "feature-extraction")
    assert ("model-index" in data.to_dict()) == (name == "recogniser")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_lines_of_use_work(runs, name, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    code = re.search(r"```python\n(.*?)```", card_of(runs / name), re.DOTALL)[1]
    known = {"samples": np.sin(np.arange(16_000) / 9).astype(np.float32)}
    assert len(code.strip().splitlines()) == 3
    exec(code, known)
    if name == "pretrained":
        assert known["states"].shape == (1, 49, 32)
    else:
        assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_repeats_the_run(runs, name, tmp_path):
    words = re.search(r"^    python (\S+\.py) (.*)$", card_of(runs / name), re.MULTILINE)
    assert f"{SCRIPTS[name].__name__}.py" == words[1]
    args = SCRIPTS[name].parse_arguments([*words[2].replace("arguments.yaml", str(runs / name / "arguments.yaml")).split()])
    assert (args.max_train_steps, args.dataset_name) == (3, [str(runs / "prepared")])


def test_names_are_harmless():
    assert shown("wav2vec2-base") == "wav2vec2-base"
    assert shown("runs/my model") == "runs/my model"
    for name in (HOSTILE, "a__b__", "# x", "[a](b)", "``` x", "<b>"):
        text = shown(name)
        assert text == f"`{text[1:-1]}`"
        assert not set(text[1:-1]) & set("`|\n\x1b\u202e")


def test_a_hostile_run_is_harmless(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl", "arguments.yaml", "run.json"):
        (run / name).write_bytes((runs / "recogniser" / name).read_bytes())
    facts = json.loads((run / "run.json").read_text())
    facts["speech"] |= {"corpora": [HOSTILE], "languages": [HOSTILE, "de"], "rejected": {HOSTILE: {"clips": 1, "hours": 0}}}
    facts |= {"scores": {HOSTILE: {"wer": math.pi, "cer": 1.0, "decoder": HOSTILE, "weights": digest_of_weights(str(run))}}}
    card = model_card.model_card(str(run), facts)
    assert not set(card) & set("\x1b\u202e")
    (run / "README.md").write_text(card)
    assert "license" not in {key for key, value in metadata_load(run / "README.md").items() if value == "mit"}
    outside_code = re.sub(r"`[^`]*`", "", card.split("---\n", 2)[2])
    assert "<script>" not in outside_code
    assert "http://x" not in outside_code


def test_a_card_that_a_person_has_edited_stays(runs, tmp_path):
    card = card_of(runs / "pretrained")
    assert not was_edited(card)
    assert not was_edited(card.replace("\n", "\r\n"))
    for edited in (card.replace("speech", "SPEECH", 1), card[:-1] + "more", card.rsplit("\n<!--", 1)[0], "# mine", ""):
        assert was_edited(edited)
        (tmp_path / "README.md").write_text(edited)
        assert not write_card(str(tmp_path), card)
        assert (tmp_path / "README.md").read_text() == edited
    (tmp_path / "README.md").write_text(signed(ModelCard(card).data, ["# other"]))
    assert write_card(str(tmp_path), card)
    assert card_of(tmp_path) == card


def test_faults_of_the_command(runs, tmp_path):
    for words in ([], ["--run"], [str(tmp_path)], [str(runs / "pretrained"), str(tmp_path)]):
        with pytest.raises(InputError):
            model_card.main(words)


def test_a_card_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    model_card.write_model_card(str(tmp_path))
    assert "README.md is not written: InputError" in caplog.text
