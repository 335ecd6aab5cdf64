"""The check before a run: each finding where it belongs and nowhere else, and no trace of it in the run."""

import json
import re
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate import Accelerator
from conftest import ROOT, sound, write_model
from training_runs import SMALL, assert_same_run, codes, start, words_of
from transformers import AutoConfig

import run_ctc_finetuning as finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError, preflight
from wavtrain.batching import BatchBudget, plan_epoch
from wavtrain.checks import cost, speech_survey, timing
from wavtrain.checks.cost import cost_checks, disk_checks
from wavtrain.checks.findings import file_size, in_hours, percent, time_span
from wavtrain.checks.objective_checks import Annealing, objective_checks
from wavtrain.checks.published import BASE, FINE_TUNING, fine_tuning_recipe, pretraining_recipe
from wavtrain.checks.run_shape import BatchSizes, RunSettings, batch_checks, batch_sizes, recipe_checks, schedule_checks
from wavtrain.checks.speech_survey import Sound, corpus_checks, histogram, sound_checks, sound_of
from wavtrain.checks.timing import Timing, timed_micro_batches
from wavtrain.checks.transcript_checks import FineTuning, shared_with_train, transcript_checks, vocabulary_checks
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import build_vocabulary
from wavtrain.schedules import Schedule, gumbel_temperature

pytestmark = pytest.mark.usefixtures("quick_runs")
HEALTHY = RunSettings(
    output_dir="runs/x", learning_rate=5e-4, weight_decay=0.01, adam_beta2=0.98, adam_epsilon=1e-6,
    gradient_accumulation_steps=8, max_train_steps=400_000, num_train_epochs=3, per_device_train_batch_size=None,
    max_batch_duration_in_seconds=87.5, gradient_checkpointing=False, torch_compile=False, dataloader_num_workers=None,
    logging_steps=500, saving_steps=500, save_total_limit=2)
LIBRISPEECH = BatchSizes(*(np.full(39_500, 87.5 * 16_000) for _ in range(4)))  # 960 h in micro-batches of BASE
ANNEALING = Annealing(2.0, 0.5, 0.999)
TEXTS = ["one two three", "four five six", "seven eight nine", "a bird sings", "the night falls", "we walk home"]


def about(checked):
    """Which findings, with their severity."""
    return {(each.severity, each.about) for each in checked.findings}


def text_of(checked, name):
    (text,) = (each.text for each in checked.findings if each.about == name)
    return text


# The shape of a run


@pytest.mark.parametrize("crops", [True, False])
def test_sizes_are_those_of_the_plan(crops):
    num_samples = np.random.default_rng(0).integers(8_000, 320_000, 500)
    budget = BatchBudget(max_samples=1_400_000, longest=250_000)
    plan = plan_epoch(num_samples, 0, 0, budget)
    sizes = batch_sizes(num_samples, budget, crops, plan)
    for batch in range(plan.num_batches):
        stored = num_samples[plan.clips_of(batch)]
        loaded = np.minimum(stored, 250_000)
        width = loaded.min() if crops else loaded.max()
        heard = width * len(loaded) if crops else loaded.sum()
        assert [each[batch] for each in sizes] == [stored.sum(), heard, width * len(loaded), width]
    assert (sizes.padding == 0) == crops
    assert sizes.cropped > 0


def test_the_published_run_of_base_is_healthy():
    found = batch_checks(HEALTHY, LIBRISPEECH, 8, 400_000, BASE)
    found.add(recipe_checks(HEALTHY, found.numbers["hours_per_update"], 960, BASE))
    found.add(schedule_checks(Schedule(num_warmup_steps=32_000), HEALTHY, 400_000))
    assert not found.findings
    assert found.numbers["hours_per_update"] == pytest.approx(1.5556, abs=1e-4)
    assert found.numbers["epochs"] == pytest.approx(400_000 / np.ceil(39_500 / 64))


def test_the_accumulation_that_is_advised_reaches_the_recipe():
    little = replace(HEALTHY, gradient_accumulation_steps=1)
    hours = batch_checks(little, LIBRISPEECH, 1, 400_000, BASE).numbers["hours_per_update"]
    found = recipe_checks(little, hours, 960, BASE)
    assert ("warning", "hours_per_update") in about(found)
    advised = int(re.search(r"--gradient_accumulation_steps (\d+) reaches", text_of(found, "hours_per_update"))[1])
    assert advised == 64
    enough = replace(HEALTHY, gradient_accumulation_steps=advised)
    hours = batch_checks(enough, LIBRISPEECH, 1, 400_000, BASE).numbers["hours_per_update"]
    assert not recipe_checks(enough, hours, 960, BASE).findings
    little_speech = recipe_checks(little, hours / 64, 1.2, BASE)
    assert "an epoch is 1.2 h in all, so more speech reaches that" in text_of(little_speech, "hours_per_update")
    assert about(recipe_checks(enough, 4.0, 960, BASE)) == {("note", "hours_per_update")}


@pytest.mark.parametrize(("changes", "expected"), [
    ({"heard": 70.0}, {("note", "padding")}), ({"stored": 130.0}, {("note", "cropping")}),
    ({"heard": 80.0, "stored": 90.0}, set())], ids=str)
def test_padding_and_cropping(changes, expected):
    sizes = LIBRISPEECH._replace(**{name: np.full(39_500, seconds * 16_000) for name, seconds in changes.items()})
    assert about(batch_checks(HEALTHY, sizes, 8, 400_000, None)) == expected


def test_an_epoch_of_less_than_an_update_and_a_run_of_less_than_an_epoch():
    few = BatchSizes(*(each[:20] for each in LIBRISPEECH))
    found = batch_checks(HEALTHY, few, 4, 400_000, None)
    assert about(found) == {("warning", "accumulation")}
    assert "to 5 at most" in text_of(found, "accumulation")
    assert "5 x 87.5 s on 4 processes" in found.facts["update"]
    fewer = batch_checks(HEALTHY, BatchSizes(*(each[:3] for each in LIBRISPEECH)), 4, 400_000, None)
    assert text_of(fewer, "accumulation").endswith("launch 3 of the 4 processes")
    assert found.numbers["hours_per_update"] == pytest.approx(20 * 87.5 / 3600)
    assert about(batch_checks(HEALTHY, LIBRISPEECH, 8, 100, None)) == {("note", "epochs")}


@pytest.mark.parametrize(("rate", "hours", "recipe", "expected"), [
    (5e-4, 1.56, BASE, None), (5e-3, 1.56, BASE, "warning"), (5e-4, 0.1, BASE, "note"), (1.3e-4, 0.1, BASE, None),
    (5e-5, 1.56, BASE, "note"), (3e-5, 0.44, FINE_TUNING[24], None), (3e-4, 0.44, FINE_TUNING[24], None),
    (3e-4, 0.44, FINE_TUNING[12], "warning"), (1e-6, 0.44, FINE_TUNING[12], "note")])
def test_the_learning_rate_beside_the_recipe(rate, hours, recipe, expected):
    found = recipe_checks(replace(HEALTHY, learning_rate=rate), hours, 960, recipe)
    assert {severity for severity, name in about(found) if name == "learning_rate"} == ({expected} if expected else set())


def test_adam_and_models_without_a_recipe():
    other = replace(HEALTHY, adam_beta2=0.999, weight_decay=0.0)
    assert text_of(recipe_checks(other, 1.56, 960, BASE), "adam") == (
        "the recipes' Adam differs: --adam_beta2 0.98 (here 0.999), --weight_decay 0.01 (here 0)")
    assert not recipe_checks(other, 1.56, 960, None).findings
    assert not recipe_checks(replace(other, learning_rate=5e-5), 0.44, 960, FINE_TUNING[12]).findings


@pytest.mark.parametrize(("schedule", "expected"), [
    ({"num_warmup_steps": 80}, set()), ({"num_warmup_steps": 300}, {("note", "warmup")}),
    ({"num_warmup_steps": 800}, {("warning", "warmup")}), ({}, {("note", "warmup")}),
    ({"lr_scheduler_type": "tri_stage"}, set()),
    ({"lr_scheduler_type": "tri_stage", "tri_stage_ratios": (0.9, 0.0, 0.1)}, {("warning", "warmup")}),
    ({"lr_scheduler_type": "constant_with_warmup", "num_warmup_steps": 80}, {("note", "decay")})], ids=str)
def test_warmup_and_decay_against_the_run(schedule, expected):
    assert about(schedule_checks(Schedule(**schedule), HEALTHY, 1000)) == expected


def test_records_that_make_no_curve():
    found = schedule_checks(Schedule(num_warmup_steps=8), HEALTHY, 100)
    assert about(found) == {("note", "records")}
    assert "2 makes 50 points" in text_of(found, "records")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_table_agrees_with_the_configs(path):
    """The recipes in configs/, as they are, are told nothing of their rates; hours are those of their comments."""
    flags, text = yaml.safe_load(path.read_text()), path.read_text()
    if not re.search("^# (recipes.yaml|.*: recipes.yaml|.*fairseq)", text, re.MULTILINE) or "model_name_or_path" not in flags:
        pytest.skip("no published recipe")
    name = flags["model_name_or_path"]
    if path.stem.startswith("ctc_"):
        recipe = FINE_TUNING[12 if "base" in name else 24]
    else:
        recipe = pretraining_recipe(AutoConfig.from_pretrained(ROOT / name)) if (ROOT / name).is_dir() else BASE
    found = recipe_checks(replace(HEALTHY, learning_rate=float(flags["learning_rate"])), recipe.hours, 960, recipe)
    assert not found.findings
    hours = re.search(r"^# hours per update: (?:at most )?([\d.]+)", text, re.MULTILINE)
    assert float(hours[1]) <= 1.25 * recipe.hours


# The speech itself


def tone(level, seconds=1.0):
    return (sound(seconds) / 32768 * level / 0.6).astype(np.float32)


def test_sound_is_measured():
    assert sound_of(tone(0.5)).silence == 0
    assert sound_of(tone(0.5)).clipped == 0
    assert not sound_of(tone(0.5)).is_narrow
    louder = sound_of(tone(0.5)).loudness - sound_of(tone(0.05)).loudness
    assert louder == pytest.approx(20, abs=0.1)
    assert sound_of(np.zeros(16_000, np.float32)).is_empty
    half = sound_of(np.concatenate([tone(0.5), np.zeros(16_000, np.float32)]))
    assert half.silence == pytest.approx(0.5, abs=0.05)
    assert not half.is_empty
    assert half.loudness == pytest.approx(sound_of(tone(0.5)).loudness, abs=0.3), "of the speech alone"
    assert sound_of(np.clip(3 * tone(0.5), -1, 1)).clipped > 0.05
    time = np.arange(16_000) / 16_000
    assert sound_of((0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)).is_narrow
    assert sound_of(np.zeros(10, np.float32)).is_empty


def test_a_histogram_of_durations():
    assert histogram(np.array([0.5, 3.0, 3.5, 40.0])) == "0.5 to 40.0 s: 0-1 s 25 %, 2-5 s 50 %, over 30 s 25 %"
    assert histogram(np.array([3.0, 4.0])) == "3.0 to 4.0 s"
    assert histogram(np.array([9.96, 10.0])) == "10.0 s each: 5-10 s 50 %, 10-15 s 50 %"
    assert histogram(np.array([2.7, 10.5])) == "2.7 to 10.5 s: 2-5 s 50 %, 10-15 s 50 %"


def test_numbers_for_people():
    assert [percent(share) for share in (0, 0.004, 0.123, 1)] == ["0 %", "0.4 %", "12 %", "100 %"]
    assert [time_span(seconds) for seconds in (0.26, 100, 7200, 3e5)] == ["0.26 s", "1.7 min", "2.0 h", "3.5 days"]
    assert [in_hours(hours) for hours in (0.001, 0.0123, 6406)] == ["3.6 s", "0.0123 h", "6,406 h"]
    assert [file_size(size) for size in (5e6, 2.5e9, 3e12)] == ["5 MB", "2.5 GB", "3.0 TB"]


def write_corpus(folder, waves, texts, speakers):
    for split, some in (("train", slice(0, len(waves) - 2)), ("validation", slice(len(waves) - 2, None))):
        (folder / split).mkdir(parents=True)
        rows = ["file_name,text,speaker,language"]
        for number, (wave, text, speaker) in enumerate(zip(waves[some], texts[some], speakers[some], strict=True)):
            soundfile.write(folder / split / f"{number:02d}.flac", wave, 16_000)
            rows.append(f'{number:02d}.flac,"{text}",{speaker},en')
        (folder / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    run_preprocessing.main(["--dataset_name", str(folder), "--validation_split_names", "validation", "--output_dir",
                            str(folder.parent / "prepared"), "--preprocessing_num_workers", "1"])
    return folder.parent / "prepared"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """20 clips of three speakers to train on, 2 of a fourth to validate on; nothing is wrong with them."""
    waves = [sound(1.6 + 0.02 * number, number) for number in range(22)]
    speakers = [f"s{number % 3}" for number in range(20)] + ["new", "new"]
    texts = [f"{TEXTS[number % 6]} {TEXTS[number // 6]}" for number in range(20)] + ["nine five", "night home"]
    return write_corpus(tmp_path_factory.mktemp("speech") / "corpus", waves, texts, speakers)


@pytest.fixture(scope="module")
def bad_speech(tmp_path_factory):
    """Two of ten clips are all but silent, two clipped; the clips, voices and sentences of validation stand in train."""
    waves = [sound(0.9, number) for number in range(10)]
    waves[:2] = [np.random.default_rng(number).integers(-9, 10, 14_400).astype(np.int16) for number in range(2)]
    waves[2], waves[3] = (np.clip(4 * waves[number].astype(int), -32768, 32767).astype(np.int16) for number in (2, 3))
    return write_corpus(tmp_path_factory.mktemp("bad") / "corpus", [*waves, waves[9], waves[8]],
                        [*["Nine, nine 9 nights"] * 10, *["Nine, nine 9 nights"] * 2], ["s0"] * 9 + ["s1"] + ["s0"] * 2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny", layerdrop=0.2, hidden_dropout=0.1)


@pytest.fixture
def ahead(speech, model_dir, tmp_path):
    """(script, **flags) -> the run as it is planned."""
    def plan(script=pretraining, **flags):
        given = {"dataset_name": speech, "output_dir": tmp_path / "run", **SMALL, **flags}
        given = {**({"config_name": model_dir} if script is finetuning else {"model_name_or_path": model_dir}), **given}
        args = script.parse_arguments(words_of(given))
        accelerator = Accelerator(cpu=True)
        prepared = script.training_speech(*(script.arguments.options_of(kind, args) for kind in (
            script.CorpusOptions, script.ClipLimits, script.CacheOptions)), accelerator)
        return script.planned_run(args, accelerator, prepared)

    return plan


def test_healthy_speech_has_no_findings(ahead):
    run = ahead()
    found = corpus_checks(run)
    found.add(sound_checks(run))
    assert not found.findings
    assert found.numbers["clips"] == 20
    assert (found.numbers["speakers"], found.numbers["languages"]) == (3, 1)
    assert found.numbers["hours"] == pytest.approx(sum(1.6 + 0.02 * number for number in range(20)) / 3600, rel=1e-4)
    assert found.facts["voices"] == "3 speakers, 35 % s0; one language, en"


def test_speech_that_is_silent_clipped_doubled_or_of_one_voice(ahead, bad_speech):
    run = ahead(dataset_name=bad_speech)
    assert about(sound_checks(run)) == {("note", "empty"), ("note", "clipping")}
    assert about(corpus_checks(run)) == {("warning", "duplicates"), ("note", "speaker")}
    assert text_of(corpus_checks(run), "duplicates").startswith("2 clips of validation have a twin in train")


def test_speech_that_is_nothing_but_silence_is_a_warning(ahead, monkeypatch):
    empty = Sound(-80.0, 1.0, 0.0, False)
    for others, severity in ((1, "warning"), (3, "note")):
        heard = {"a": empty, "b": empty} | {str(number): Sound(-20.0, 0.1, 0.0, False) for number in range(others)}
        monkeypatch.setattr(speech_survey, "heard_sample", lambda *_, heard=heard: heard)
        assert about(sound_checks(ahead())) == {(severity, "empty")}


def test_speech_at_other_speeds_is_counted_as_it_was_recorded_and_as_it_is_heard(ahead):
    as_recorded, slower = (ahead(finetuning, speed_perturbation=speeds) for speeds in ((1.0,), (0.5, 1.0)))
    assert slower.sizes.heard.sum() == pytest.approx(1.5 * as_recorded.sizes.heard.sum(), rel=0.2)
    assert as_recorded.sizes.padding < 0.01 < slower.sizes.padding, "batch mates run at unlike speeds"
    for check in (corpus_checks, lambda run: transcript_checks(run, OPTIONS)):
        assert check(slower).numbers == pytest.approx(check(as_recorded).numbers, rel=0.02)


def test_a_damaged_clip_is_told_and_stops_nothing(ahead, monkeypatch):
    run = ahead()
    damaged = {"utterance_id": "x", "audio": {"bytes": b"no"}}
    monkeypatch.setattr(type(run.speech.clips), "__getitem__", lambda clips, row: damaged)
    assert about(sound_checks(run)) == {("warning", "sound")}


# What only pretraining or only CTC has


@pytest.mark.parametrize(("flags", "annealing", "expected"), [
    ({}, ANNEALING, set()),
    ({}, Annealing(2.0, 0.5, 0.999995), {("note", "temperature")}),
    ({}, Annealing(0.5, 0.5, 0.999995), set()),
    ({"mask_time_prob": 0.05}, ANNEALING, {("warning", "masks")}),
    ({"mask_time_prob": 1.0, "mask_time_length": 3, "require_same_masks": True}, ANNEALING, set()),
    ({"uneven_clips": "pad"}, ANNEALING, {("warning", "group_norm")})], ids=str)
def test_what_pretraining_has(flags, annealing, expected, ahead):
    assert about(objective_checks(ahead(max_train_steps=5000, **flags), annealing)) == expected


def test_a_temperature_that_hardly_falls_is_not_said_to_fall(ahead):
    found = objective_checks(ahead(max_train_steps=300), Annealing(2.0, 0.5, 0.999995))
    assert text_of(found, "temperature").startswith("the Gumbel temperature stays near 2, never near 0.5: --gumbel_temp")


def test_the_decay_that_is_advised_reaches_the_lowest_temperature(ahead):
    found = objective_checks(ahead(max_train_steps=5000), Annealing(2.0, 0.5, 0.999995))
    decay = float(re.search(r"--gumbel_temperature_decay ([\d.]+)", text_of(found, "temperature"))[1])
    assert gumbel_temperature(5000, 2.0, 0.5, decay) == 0.5 < gumbel_temperature(3000, 2.0, 0.5, decay)


OPTIONS = FineTuning(freeze_finetune_updates=0, validate_after_updates=0, eval_steps=1, saving_steps=1)


def test_what_ctc_has(ahead, bad_speech):
    run = ahead(finetuning)
    found = transcript_checks(run, OPTIONS)
    assert not found.findings
    assert found.facts["tokens"].startswith("25: <pad> <s> </s> <unk> |")
    assert found.numbers["labels_per_second"] > 10
    assert about(transcript_checks(run, replace(OPTIONS, freeze_finetune_updates=9, eval_steps=9))) == {
        ("warning", "frozen"), ("note", "validation")}
    expected = {("note", name) for name in ("known_voices", "known_sentences", "case", "punctuation", "digits")}
    assert about(transcript_checks(ahead(finetuning, dataset_name=bad_speech), OPTIONS)) == expected
    assert not shared_with_train(run.prepared).findings


def test_vocabularies_that_nobody_can_hear():
    rules = TextRules()
    assert not vocabulary_checks(build_vocabulary(["don't go"], "letters"), rules).findings
    assert about(vocabulary_checks(build_vocabulary(["Go go! 12"], "letters"), rules)) == {
        ("note", "case"), ("note", "punctuation"), ("note", "digits")}
    assert not vocabulary_checks(build_vocabulary(["Go 12 g o"], "phones"), rules).findings


# Cost


def test_disk_is_checkpoints_and_model(tmp_path, monkeypatch):
    options = replace(HEALTHY, output_dir=str(tmp_path / "a" / "b"))
    found = disk_checks(options, 1000, 900, 400_000)
    assert found.numbers["disk_bytes"] == 3 * (4 * 1000 + 8 * 900) + 4 * 1000
    assert not found.findings
    assert disk_checks(options, 1000, 900, 500).numbers["disk_bytes"] == 4 * 1000 + 8 * 900 + 4 * 1000, "one save"
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda folder: usage(30_000))
    assert about(disk_checks(options, 1000, 900, 400_000)) == {("warning", "disk")}
    (tmp_path / "a" / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "b" / "checkpoints" / "state").write_bytes(bytes(20_000))
    (tmp_path / "a" / "b" / "checkpoints" / "dropped").symlink_to(tmp_path / "nowhere")
    assert not disk_checks(options, 1000, 900, 400_000).findings, "a resumed run has most of it already"


@pytest.mark.parametrize(("measured", "expected"), [
    (Timing(0.01, 0.001, 10**9), set()), (Timing(0.01, 0.02, 10**9), {("warning", "loading")}),
    (Timing(0.01, 0.001, 10**15), {("warning", "memory")}), (Timing(0.01, 0.001, None), set()),
    (Timing(1e5, 1, 10**9), {("note", "saving")})], ids=str)
def test_time_and_memory(measured, expected, ahead):
    run = ahead(gradient_accumulation_steps=2, dataloader_num_workers=1, max_train_steps=40)
    found = cost_checks(run, measured)
    assert about(found) == expected
    seconds = run.sizes.computed.mean() / 16_000 * measured.seconds * 2
    assert found.numbers["seconds_per_update"] == pytest.approx(seconds)
    assert found.numbers["seconds"] == pytest.approx(40 * seconds)


def test_the_longest_micro_batch_that_does_not_fit_is_refused_in_one_line(ahead):
    def too_much(inputs):
        seen.append(inputs["input_values"].numel())
        if len(seen) > 2:  # before it, one clip twice
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs["input_values"].sum().requires_grad_()

    seen, run = [], ahead(max_train_steps=10)
    with pytest.raises(InputError) as caught:
        timed_micro_batches(run, too_much)
    assert seen[2] == run.sizes.computed.max()
    assert re.fullmatch(r"--per_device_train_batch_size 2: the longest micro-batch \(2 x 2.0 s\) does not fit into the memory "
                        r"of cpu: lower it, and raise --gradient_accumulation_steps by as much; memory is saved by "
                        "--gradient_checkpointing as well", str(caught.value))


def test_only_micro_batches_that_the_run_comes_to_are_timed(ahead):
    def heard(inputs):
        seen.append(inputs["input_values"].numel())
        return inputs["input_values"].sum().requires_grad_()

    seen, run = [], ahead(max_train_steps=1, gradient_accumulation_steps=3)
    timed_micro_batches(run, heard)
    assert seen[2] == run.sizes.computed[:3].max() < run.sizes.computed.max()
    assert set(seen[2:]) <= set(run.sizes.computed[:3].tolist())


@pytest.mark.parametrize(("frozen", "expected", "head_alone"), [
    (0, {False}, False), (1, {False, True}, False), (2, {True}, True)])
def test_an_encoder_that_is_frozen_is_timed_frozen(frozen, expected, head_alone, ahead):
    run, seen = ahead(finetuning, freeze_finetune_updates=frozen, max_train_steps=2), []
    timed_micro_batches(run, lambda inputs: seen.append(run.model.encoder_is_frozen) or run.model(**inputs)["loss"])
    assert set(seen) == expected
    assert seen[2] == head_alone, "the longest, which takes the most memory"
    assert not run.model.encoder_is_frozen
    assert (run.weights(only_learning=True) == run.model.lm_head.weight.numel() + run.model.lm_head.bias.numel()) == head_alone


def test_bf16_on_a_cpu_is_worth_a_word(ahead, monkeypatch):
    run = ahead()
    monkeypatch.setattr(type(run.accelerator), "mixed_precision", "bf16")
    assert about(cost_checks(run, Timing(0.01, 0.001, 10**9))) == {("note", "precision")}


def test_an_epoch_of_less_than_an_update_takes_no_longer_than_it_is(ahead):
    seconds = {steps: cost_checks(ahead(gradient_accumulation_steps=steps, max_train_steps=4), Timing(0.01, 0.001, 10**9))
               .numbers["seconds_per_update"] for steps in (10, 64)}
    assert seconds[10] == pytest.approx(seconds[64])


def test_a_model_that_is_slow_on_a_cpu_does_not_keep_waiting(ahead, monkeypatch):
    monkeypatch.setattr(timing, "MAX_SECONDS_OF_LONGEST", 0)
    run, seen = ahead(), []
    measured = timed_micro_batches(run, lambda inputs: seen.append(inputs) or inputs["input_values"].sum().requires_grad_())
    assert len(seen) == 2
    assert measured.memory is None
    assert "memory not tried" in cost_checks(run, measured).facts["takes"]


def test_what_is_compiled_or_sharded_is_not_timed(ahead):
    run = ahead(torch_compile=True)
    assert timed_micro_batches(run, None) is None
    assert "not measured with --torch_compile" in cost_checks(run, None).facts["takes"]


def test_a_damaged_clip_is_left_to_the_run(ahead, monkeypatch):
    def damaged(*_):
        raise InputError("the prepared clip 1 is damaged")

    run = ahead()
    monkeypatch.setattr(type(run.speech), "__getitem__", damaged)
    assert timed_micro_batches(run, None) is None
    assert "not measured with a damaged clip" in cost_checks(run, None).facts["takes"]


# In the scripts


@pytest.fixture(params=["wav2vec2", "wav2vec2-conformer", "ctc"])
def script_and_model(request, model_dir, tmp_path):
    """Conformers have batch norms, whose running means a forward pass changes."""
    if request.param == "ctc":
        return finetuning, {"config_name": model_dir, "mask_time_prob": 0.3, "mask_time_length": 2}
    if request.param == "wav2vec2":
        return pretraining, {"model_name_or_path": model_dir}
    return pretraining, {"model_name_or_path": write_model(tmp_path / "conformer", request.param, layerdrop=0.2)}


def test_a_run_is_the_same_to_the_bit_without_the_check(script_and_model, speech, tmp_path, monkeypatch):
    script, model = script_and_model
    flags = {"dataset_name": speech, **model, **SMALL, "max_train_steps": 3, "gradient_accumulation_steps": 2}
    script.main(words_of({**flags, "output_dir": tmp_path / "timed"}))
    monkeypatch.setattr(preflight, "timed_micro_batches", lambda run, loss_of: None)
    script.main(words_of({**flags, "output_dir": tmp_path / "not_timed"}))
    assert_same_run(tmp_path / "timed", tmp_path / "not_timed")


@pytest.mark.parametrize("script", [pretraining, finetuning], ids=["pretraining", "ctc"])
def test_check_only_writes_nothing_on_any_process(script, speech, model_dir, tmp_path):
    model = {"config_name": model_dir} if script is finetuning else {"model_name_or_path": model_dir}
    argv = words_of({"dataset_name": speech, "output_dir": tmp_path / "run", **model, **SMALL, "check_only": True})
    assert codes(start(script, argv, 2)) == [0, 0]
    assert not (tmp_path / "run").exists()


def test_what_is_said_is_also_returned(speech, model_dir, tmp_path, capsys):
    found = pretraining.main(words_of({
        "dataset_name": speech, "model_name_or_path": model_dir, "output_dir": tmp_path / "run", **SMALL, "check_only": True,
        "uneven_clips": "pad", "max_train_steps": 400, "num_warmup_steps": 300}))
    said = capsys.readouterr().out
    assert json.loads(json.dumps(found)) == found
    assert not (tmp_path / "run").exists()
    for fact in found["facts"].values():
        assert fact in said
    lines = [line for line in said.splitlines() if line.startswith(("  warning: ", "  note: "))]
    assert lines == [f"  {each['severity']}: {each['text']}" for each in sorted(
        found["findings"], key=lambda each: each["severity"] != "warning")]
    assert {each["about"] for each in found["findings"]} == {"group_norm", "warmup", "temperature"}
    assert found["updates"] == 400
    assert found["epochs"] == 40
    assert min(found["seconds"], found["memory_bytes"]) > 0


def test_a_warmup_longer_than_the_run_is_refused_before_anything_is_written(speech, model_dir, tmp_path):
    with pytest.raises(InputError, match="--num_warmup_steps 3: is longer than the run of 2 updates"):
        pretraining.main(words_of({"dataset_name": speech, "model_name_or_path": model_dir, "output_dir": tmp_path / "run",
                                   **SMALL, "num_warmup_steps": 3}))
    assert not (tmp_path / "run").exists()


def test_recipes_are_found_by_the_size_of_the_model():
    names = {path.name: pretraining_recipe(AutoConfig.from_pretrained(path)) for path in (ROOT / "configs" / "models").iterdir()
             if "wav2vec2" in path.name and "bert" not in path.name}
    assert {name: recipe and recipe.name for name, recipe in names.items()} == {
        "wav2vec2-base": "BASE", "wav2vec2-base-v2": "BASE", "wav2vec2-large": "LARGE", "wav2vec2-tiny": None,
        "wav2vec2-large-lv60": "LARGE LV-60 and XLSR", "wav2vec2-conformer-base": "conformer BASE",
        "wav2vec2-conformer-large": "conformer LARGE"}
    assert fine_tuning_recipe(AutoConfig.from_pretrained(ROOT / "configs" / "models" / "hubert-base")).name == "BASE"
