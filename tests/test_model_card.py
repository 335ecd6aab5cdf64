"""The card of a run: its numbers are those of the files, its metadata is valid, its lines work, a person's words stay."""

import json
import math
import os
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
from wavtrain.hub.card_recipe import recipe
from wavtrain.hub.card_text import shown, signed, was_edited, write_card
from wavtrain.hub.run_facts import read_facts, write_facts
from wavtrain.run_options import CHANGES_NO_NUMBER, FREE_TO_CHANGE, OF_THE_MACHINE
from wavtrain.speech.prepared_directory import open_prepared

pytestmark = pytest.mark.usefixtures("quick_runs")
HOSTILE = "<script>alert(1)</script> |`![x](http://x)` \x1b[31m\u202e ]\n---\nlicense: mit"
PARTS = {"train": "corpus (all but the 30 % held out)", "validation": "corpus (the 30 % held out)"}
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


def score_row(run, part):
    """Of the table of scores; None where there is none."""
    rows = [line for line in card_of(run).splitlines() if line.startswith(f"| `{PARTS[part]}` |")]
    return [cell.strip() for cell in rows[0].strip("|").split("|")] if rows else None


def facts_of_weights(folder):
    return sum(each.numel() for each in weights(folder).values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_is_one_of_the_files(runs, name):
    card, run = card_of(runs / name), runs / name
    report = json.loads((runs / "prepared" / "preparation.json").read_text())
    assert f"{facts_of_weights(run):,} weights" in card
    for split, total in report["splits"].items():
        found = cells(card, split)
        speakers = len(open_prepared(str(runs / "prepared")).load(split).unique("speaker"))
        assert (found[2], found[4]) == (str(total["clips"]), str(speakers))
        assert float(found[3]) == pytest.approx(total["hours"], rel=5e-3)
    assert [cells(card, split)[1] for split in report["splits"]] == [f"`{PARTS[split]}`" for split in report["splits"]]
    assert "- Left out, by reason: too_short 1 clips" in card
    assert "- Languages: de, en" in card
    last = records(run, "train")[-1]
    heard, steps, times = re.search(r"It heard (\S+) hours in (\d+) updates, (\S+) times all of it", card).groups()
    assert (int(steps), float(heard)) == (last["step"], pytest.approx(last["audio_hours"], rel=5e-3))
    assert float(times) == pytest.approx(last["audio_hours"] / report["splits"]["train"]["hours"], rel=5e-3)
    seconds = re.search(r"^3 updates, (\S+) seconds of speech in each on average\.$", card, re.MULTILINE)[1]
    assert float(seconds) == pytest.approx(last["audio_hours"] * 1200, rel=5e-3)
    assert "It began from random weights." in card
    assert "![Curves of the training](training_curves.png)" in card


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_recipe_is_every_argument_that_changes_a_number(runs, name):
    arguments, config = (yaml.safe_load((runs / name / file).read_text()) for file in ("arguments.yaml", "config.json"))
    table = dict(re.findall(r"`--(\w+)` \| (.*?) (?=\|)", card_of(runs / name)))
    assert [table.pop(flag) for flag in ("dataset_name", "mixed_precision")] == ["prepared", "no"]
    assert (table.pop("model_name_or_path", None) or table.pop("config_name")) == "model"
    assert table.pop("uneven_clips", "a flag of pretraining") == ("crop" if name == "pretrained" else "a flag of pretraining")
    for flag, shown_value in table.items():
        value = config[flag] if arguments[flag] is None else arguments[flag]
        assert shown_value == " ".join(map(str, np.atleast_1d(value)))
    wanted = {"adam_epsilon", "seed", "learning_rate", "mask_time_prob", "layerdrop", "per_device_train_batch_size"}
    wanted |= {"max_gumbel_temperature", "feature_penalty_weight"} if name == "pretrained" else {"unicode_form", "mean_over"}
    assert wanted <= set(table)
    assert not set(table) & {*CHANGES_NO_NUMBER, "tri_stage_ratios", "num_train_epochs"}
    schedule = {"lr_scheduler_type": "tri_stage", "tri_stage_ratios": [0.1, 0.4, 0.5], "max_train_steps": None}
    assert {"tri_stage_ratios", "num_train_epochs"} <= set(recipe({**arguments, **schedule}, config))


def test_what_changes_no_number_are_flags():
    known = {name for script in SCRIPTS.values() for name in vars(script.parse_arguments(
        ["--dataset_name", "corpus", "--preprocessing_only"]))}
    assert known >= FREE_TO_CHANGE
    assert OF_THE_MACHINE <= CHANGES_NO_NUMBER <= FREE_TO_CHANGE


def test_measures_of_a_pretraining_are_those_of_its_last_validation(runs):
    last = records(runs / "pretrained", "validation")[-1]
    card = card_of(runs / "pretrained")
    assert f"| held-out speech, step {last['step']} |" in card
    for title, name in (("loss, nats per masked frame", "loss"), ("code perplexity, of 16", "code_perplexity"),
                        ("contrastive accuracy, strict (chance 0.0909)", "contrastive_accuracy")):
        assert float(cells(card, title)[1]) == pytest.approx(last[name], rel=1e-3)


def test_scores_are_those_of_the_served_model_and_of_decodings(runs):
    run, scores = runs / "recogniser", json.loads((runs / "scores" / "scores.json").read_text())
    best = min(records(run, "validation"), key=lambda each: (each["wer"], each["cer"], each["loss"]))
    held_out = open_prepared(str(runs / "prepared")).load("validation")
    counts = [str(len(held_out)), str(len(set(held_out["speaker"])))]
    found = score_row(run, "validation")
    assert found[1:5] == [*counts, f"`greedy, at step {best['step']}`", f"{100 * best['wer']:.2f}"]
    assert f"Its weights are those of step {best['step']}." in card_of(run) or best["step"] == 3
    model_card.main([str(run), str(runs / "scores")])
    found = score_row(run, "train")
    low, high = scores["wer_95_percent_interval"]
    assert found[1:4] == [str(scores["num_utterances"]), str(len(scores["per_speaker"])), "greedy"]
    assert found[4:6] == [f"{100 * scores['wer']:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"]
    assert "the speakers were drawn anew 1,000 times" in card_of(run)
    results = ModelCard.load(run / "README.md").data.eval_results
    assert {(each.dataset_name, each.metric_type): each.metric_value for each in results} == {
        (PARTS[part], kind): round(100 * rates[kind], 2) for part, rates in (("validation", best), ("train", scores))
        for kind in ("wer", "cer")}


def test_scores_stay_when_a_run_goes_on_and_go_with_their_model(runs, tmp_path, caplog):
    run = shutil.copytree(runs / "recogniser", tmp_path / "run")
    model_card.main([str(run), str(runs / "scores")])
    scored = score_row(run, "train")
    flags = {**SMALL, "dataset_name": runs / "prepared", "max_train_steps": 3, "eval_steps": 1, "license": "cc-by-4.0"}
    run_ctc_finetuning.main(words_of({**flags, "config_name": runs / "model", "output_dir": run,
                                      "resume_from_checkpoint": "latest"}))
    assert score_row(run, "train") == scored
    other = weights(run)
    safetensors.torch.save_file({name: each + 1 for name, each in other.items()}, run / "model.safetensors")
    assert "leaves out the scores" not in caplog.text
    model_card.main([str(run), str(runs / "scores")])
    assert f"leaves out the scores on {PARTS['train']} (greedy): they are of recogniser, which has other weights" in caplog.text
    assert score_row(run, "train") is None


def test_scores_on_the_same_speech_take_the_place_of_older_ones(runs, tmp_path):
    run, folders = shutil.copytree(runs / "recogniser", tmp_path / "run"), [tmp_path / place / "test" for place in "abc"]
    for folder in folders:
        shutil.copytree(runs / "scores", folder)
    scores = json.loads((folders[2] / "scores.json").read_text())
    scores["speech"] = {"corpora": [{"name": "me/other", "is_on_hub": True, "config": "en", "split": "test"}], "share": None,
                        "fingerprint": "0"}
    scores["decoding"]["text"]["text_case"] = "lower"
    (folders[2] / "scores.json").write_text(json.dumps(scores))
    model_card.main([str(run), *map(str, folders)])
    card = card_of(run)
    speech = [line.split("`")[1] for line in card.splitlines() if line.count("|") == 9 and line.startswith("| `")]
    assert speech == [PARTS["validation"], PARTS["train"], "me/other, en, test"]
    assert "- Transcripts of `me/other, en, test` are compared after `--text_case lower`." in card
    (other,) = {(each.dataset_type, each.dataset_config, each.dataset_split) for each in ModelCard(card).data.eval_results
                if each.dataset_name == "me/other"}
    assert other == ("me/other", "en", "test")
    model_card.main([str(run), "--forget_scores"])
    assert score_row(run, "train") is None


def test_the_command_says_how_a_card_gets_to_its_repository(runs, tmp_path):
    run = shutil.copytree(runs / "recogniser", tmp_path / "run")
    model_card.write_model_card(str(run), "me/mine")
    assert model_card.main([str(run)]).endswith(
        f"hf upload me/mine {run} . --include=README.md --include=run.json")


def facts_of(prepared, folder, arguments, checkpoint=None, **report):
    """run.json of a run that begins."""
    folder.mkdir(exist_ok=True)
    prepared = replace(prepared, report={**prepared.report, **report})
    write_facts(str(folder), arguments, prepared, {"train": prepared.load("train")}, checkpoint, {"num_processes": 2})
    return json.loads((folder / "run.json").read_text())


def test_datasets_are_those_of_the_hub(runs, tmp_path):
    def facts(corpus, num_bytes, name):
        sources = [{"corpus": corpus, "bytes": num_bytes, "split": "train", "fingerprint": "0"}]
        return facts_of(prepared, tmp_path, {"model_name_or_path": name}, sources=sources, asked_for={"dataset_name": [name]})

    prepared = open_prepared(str(runs / "prepared"))
    assert facts("speech", None, "someone/speech")["hub_datasets"] == ["someone/speech"]
    assert facts("speech", 8000, "folder/speech")["hub_datasets"] == []  # one that has been removed since
    found = facts("prepared", None, str(runs / "prepared"))
    assert (found["hub_datasets"], found["base_model"], found["num_processes"]) == ([], None, 2)


def test_what_the_origin_was_trained_on_is_carried_on(runs, hub, tmp_path):
    prepared, repository = open_prepared(str(runs / "prepared")), hub / "models" / "me" / "speech"
    shutil.copytree(runs / "pretrained", repository, ignore=shutil.ignore_patterns("checkpoints"))
    hours = facts_of(prepared, tmp_path / "x", {})["parts"]["train"]["hours"]
    heard = {"speech": PARTS["train"], "hours": hours, "hub_datasets": [], "is_told_by": "run.json"}
    second = facts_of(prepared, tmp_path / "second", {"init_from": "me/speech", "cache_dir": str(tmp_path / "cache")})
    assert (second["base_model"], second["origins"]) == ("me/speech", [{"name": "me/speech", **heard}])
    checkpoint = str(tmp_path / "second" / "checkpoints" / "step_00000001")
    os.makedirs(checkpoint)
    third = facts_of(prepared, tmp_path / "third", {"model_name_or_path": checkpoint})
    assert third["origins"] == [{"name": "second", **heard}, {"name": "me/speech", **heard}]
    resumed = facts_of(prepared, tmp_path / "elsewhere", {"model_name_or_path": "me/it_itself"}, checkpoint)
    assert (resumed["base_model"], resumed["origins"]) == ("me/speech", second["origins"])
    for odd in ('{"origins": []}', '{"base_model": null, "origins": [{"name": "x"}]}', '{"base_model": 1, "origins": 2}'):
        (tmp_path / "second" / "run.json").write_text(odd)
        assert facts_of(prepared, tmp_path / "elsewhere", {"model_name_or_path": "me/it_itself"}, checkpoint)["base_model"] == (
            "me/it_itself")
    (hub / "models" / "me" / "base").mkdir()
    (hub / "models" / "me" / "base" / "README.md").write_text("---\ndatasets:\n- librispeech_asr\n- '|hostile|'\n---\n")
    by_card = facts_of(prepared, tmp_path / "by_card", {"init_from": "me/base", "cache_dir": str(tmp_path / "cache")})
    assert by_card["origins"] == [{"name": "me/base", "speech": "librispeech_asr, |hostile|", "hours": None,
                                   "hub_datasets": ["librispeech_asr"], "is_told_by": "its card"}]
    no_facts = '{"parts": {"train": {"corpora": 3}}}'
    for facts, card in (("[]", "---\ndatasets: 3\n---\n"), (no_facts, "---\na: [\n---\n"), ("{", "")):
        (repository / "run.json").write_text(facts)
        (repository / "README.md").write_text(card)
        damaged = facts_of(prepared, tmp_path / "damaged", {"init_from": str(repository)})["origins"]
        assert [(each["name"], each["speech"]) for each in damaged] == [("speech", None)]
    nothing = facts_of(prepared, tmp_path / "nothing", {"init_from": str(runs / "model")})["origins"]
    assert nothing == [{"name": "model", **dict.fromkeys(("speech", "hours", "is_told_by")), "hub_datasets": []}]
    for origins, line in ((third["origins"], f"- Before that, second was trained on `{PARTS['train']}`, "),
                          (nothing, "- What model was trained on is not known here: ")):
        card = model_card.model_card(str(runs / "pretrained"), {**read_facts(str(runs / "pretrained")), "origins": origins})
        assert f"It began from {origins[0]['name']}." in card
        assert line in card


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
    assert (args.max_train_steps, args.dataset_name, args.output_dir) == (3, [str(runs / "prepared")], f"runs/{name}")


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
    speech = {"corpora": [{"name": HOSTILE, "config": HOSTILE, "split": HOSTILE, "is_on_hub": False}], "share": None}
    facts["parts"]["train"] |= speech
    facts |= {"languages": [HOSTILE, "de"], "rejected": {HOSTILE: {"clips": 1, "hours": 0}}, "origins": [
        {"name": HOSTILE, "speech": HOSTILE, "hours": 1.0, "hub_datasets": [], "is_told_by": "its card"}], "scores": [
        {"wer": math.pi, "cer": 1.0, "decoder": HOSTILE, "speech": speech, "decoding": {"text": {"text_case": HOSTILE}},
         "num_utterances": 1, "num_speakers": 1, "has_unknown_speakers": False}]}
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
    old = shutil.copytree(runs / "scores", tmp_path / "old")
    scores = json.loads((old / "scores.json").read_text())
    (old / "scores.json").write_text(json.dumps({name: scores[name] for name in ("wer", "cer", "num_utterances")}))
    run = runs / "recogniser"
    for words, said in (([], "required: RUN; --help"), ([run, "--run"], "unrecognized arguments: --run"),
                        ([tmp_path], "no --output_dir of a training script"), ([run, tmp_path], "has no scores.json"),
                        ([run, old], "decode again")):
        with pytest.raises(InputError, match=said):
            model_card.main([str(word) for word in words])


def test_the_command_says_how_it_is_called(capsys):
    with pytest.raises(SystemExit) as left:
        model_card.main(["--help"])
    assert left.value.code == 0
    assert "usage: python -m wavtrain.hub.model_card [-h] [--forget_scores] RUN [SCORES ...]" in " ".join(
        capsys.readouterr().out.split())


def test_a_card_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    model_card.write_model_card(str(tmp_path))
    assert "README.md is not written: InputError" in caplog.text
