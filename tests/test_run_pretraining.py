"""The script itself: one exact update whatever the processes, exact resumption after any end, what each flag does to a run."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, sound, write_folder, write_model
from training_runs import (
    SMALL,
    assert_close_run,
    assert_same_run,
    codes,
    column,
    records,
    refusal,
    start,
    steps_saved,
    steps_saved_so_far,
    wait_until,
    weights,
    words_of,
)
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoModelForPreTraining, Wav2Vec2ForPreTraining

import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import arguments
from wavtrain.optimizers import OptimizerOptions, adamw

pytestmark = pytest.mark.usefixtures("quick_runs")
STEPS, SAVES = 7, [2, 4, 6, 7]
UNBROKEN = {"gradient_accumulation_steps": 4, "max_train_steps": STEPS, "saving_steps": 2, "num_warmup_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """22 clips to train on: an epoch is 11 micro-batches of 2, so of three updates of 4 the last is incomplete."""
    folder = tmp_path_factory.mktemp("speech")
    seconds = np.random.default_rng(0).uniform(0.5, 1.1, 27)
    write_folder(folder / "corpus" / "train", list(seconds[:22]))
    write_folder(folder / "corpus" / "validation", list(seconds[22:]))
    run_preprocessing.main(["--dataset_name", str(folder / "corpus"), "--validation_split_names", "validation", "--output_dir",
                            str(folder / "prepared"), "--preprocessing_num_workers", "1"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Group norm, so clips are cropped; dropout and layerdrop are on."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", layerdrop=0.2, hidden_dropout=0.1)


@pytest.fixture(scope="module")
def command(speech, model_dir):
    """(output_dir, **flags) -> the words of a command line."""
    given = {"dataset_name": speech, "model_name_or_path": model_dir, **SMALL}
    return lambda output_dir, **flags: words_of({**given, "output_dir": output_dir, **flags})


@pytest.fixture
def pretrain(command, tmp_path):
    """(name, **flags) -> the output directory of a run in this process."""
    def run(name="run", **flags):
        pretraining.main(command(tmp_path / name, **flags))
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """One process, 4 micro-batches an update, from the beginning to the end."""
    output_dir = tmp_path_factory.mktemp("unbroken") / "run"
    pretraining.main(command(output_dir, **UNBROKEN))
    return output_dir


def stopped_at(step, unbroken, output_dir):
    """As the run was when it had been killed some time after the checkpoint of this step."""
    shutil.copytree(unbroken, output_dir)
    (output_dir / "model.safetensors").unlink()
    for later in steps_saved(output_dir):
        if later > step:
            shutil.rmtree(output_dir / "checkpoints" / f"step_{later:08d}")
    return output_dir


# One exact update


def test_the_unbroken_run_is_as_long_as_it_should_be(unbroken):
    assert column(unbroken, "step") == list(range(1, STEPS + 1))
    assert column(unbroken, "epoch") == [0, 0, 0, 1, 1, 1, 2]
    assert column(unbroken, "step", "validation") == SAVES == steps_saved(unbroken)
    assert set(column(unbroken, "skipped_updates")) == {0}
    assert np.diff(column(unbroken, "audio_hours")).min() > 0


def test_four_processes_make_the_same_run(command, unbroken, tmp_path):
    """With dropout, layerdrop, Gumbel noise, crops; also the incomplete update, where processes repeat a micro-batch."""
    flags = {**UNBROKEN, "gradient_accumulation_steps": 1}
    assert codes(start(pretraining, command(tmp_path / "run", **flags), 4)) == [0] * 4
    assert_close_run(tmp_path / "run", unbroken)


# Resumption


@pytest.mark.parametrize(("step", "flags"), [(2, {"dataloader_num_workers": 2}), (4, {"gradient_checkpointing": False}),
                                             (6, {"resume_from_checkpoint": "step"})], ids=str)
def test_a_resumed_run_equals_the_unbroken_one(step, flags, command, unbroken, tmp_path):
    """In the middle of an epoch, after its first update, and at its end; with other loaders; by name."""
    output_dir = stopped_at(step, unbroken, tmp_path / "run")
    flags = {"resume_from_checkpoint": "latest", **flags}
    if flags["resume_from_checkpoint"] == "step":
        flags["resume_from_checkpoint"] = output_dir / "checkpoints" / f"step_{step:08d}"
    pretraining.main(command(output_dir, **UNBROKEN, **flags))
    assert_same_run(output_dir, unbroken)


def test_one_process_can_go_on_as_two(command, unbroken, tmp_path):
    """As launched in earnest, with a picture."""
    output_dir = stopped_at(2, unbroken, tmp_path / "run")
    argv = command(output_dir, **{**UNBROKEN, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
              "run_wav2vec2_pretraining_no_trainer.py", *argv]
    result = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "on 2 processes" in result.stdout
    assert_close_run(output_dir, unbroken)
    assert (output_dir / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert records(output_dir)[:3] == records(unbroken)[:3]  # what was before the checkpoint


def test_a_run_killed_at_any_moment_goes_on_exactly(command, unbroken, tmp_path):
    moment = random.SystemRandom().randrange(2, 5), random.SystemRandom().uniform(0, 0.15)
    (process,) = start(pretraining, command(tmp_path / "run", **UNBROKEN))
    wait_until(lambda: 2 in steps_saved_so_far(tmp_path / "run") and len(lines(tmp_path / "run")) > moment[0], process)
    process.join(moment[1])
    process.kill()
    assert codes([process]) == [-signal.SIGKILL], moment
    pretraining.main(command(tmp_path / "run", **UNBROKEN, resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", unbroken)


def lines(output_dir):
    path = output_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_two_processes_make_the_same_run_and_only_the_main_one_needs_the_output_directory(command, unbroken, tmp_path):
    """Nodes with disks of their own; a relative path is another folder on each."""
    folders = {f"FOLDER_OF_RANK_{rank}": str(tmp_path / f"node{rank}") for rank in range(2)}
    for folder in folders.values():
        os.mkdir(folder)
    argv = command("run", **{**UNBROKEN, "gradient_accumulation_steps": 2})
    assert codes(start(pretraining, argv, 2, **folders)) == [0, 0]
    assert_close_run(tmp_path / "node0" / "run", unbroken)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_saves_a_checkpoint_and_the_run_goes_on(num_processes, command, unbroken, tmp_path):
    """Of two processes only one gets it, and both stop after the same update."""
    flags = {**UNBROKEN, "gradient_accumulation_steps": 4 // num_processes, "saving_steps": 100, "eval_steps": 2}
    processes = start(pretraining, command(tmp_path / "run", **flags), num_processes)
    wait_until(lambda: len(lines(tmp_path / "run")) >= 2, processes[0])
    os.kill(processes[-1].pid, signal.SIGTERM)
    assert codes(processes) == [143] * num_processes
    (step,) = steps_saved(tmp_path / "run")
    assert 2 <= step < STEPS
    assert len(column(tmp_path / "run", "step")) == step
    pretraining.main(command(tmp_path / "run", **UNBROKEN, resume_from_checkpoint="latest"))
    check = assert_same_run if num_processes == 1 else assert_close_run
    check(tmp_path / "run", unbroken)


def test_latest_without_a_checkpoint_begins(pretrain):
    """The command of a job that is requeued is the same from the first time on."""
    assert column(pretrain(resume_from_checkpoint="latest"), "step") == [1, 2]


@pytest.mark.parametrize(("changed", "message"), [
    ({"learning_rate": 2e-3}, "--learning_rate was 0.001 and is 0.002"),
    ({"mask_time_prob": 0.5}, "--mask_time_prob was null and is 0.5"),
    ({"seed": 4}, "--seed was 3 and is 4"),
    ({"gradient_accumulation_steps": 2}, "micro_batches_per_update was 4 and is 2"),
    ({"max_train_steps": 3}, "4 updates are done, and 3 asked for"),
    ({"overwrite_output_dir": True}, "needs what --overwrite_output_dir removes")], ids=str)
def test_a_resumed_run_is_the_same_run(changed, message, command, unbroken, tmp_path):
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    message_got = refusal(pretraining, command(output_dir, **{**UNBROKEN, "resume_from_checkpoint": "latest", **changed}))
    assert message in message_got
    assert "--resume_from_checkpoint" in message_got


def test_a_run_killed_before_its_model_was_written_ends(command, unbroken, tmp_path):
    output_dir = stopped_at(STEPS, unbroken, tmp_path / "run")
    pretraining.main(command(output_dir, **UNBROKEN, resume_from_checkpoint="latest"))
    assert_same_run(output_dir, unbroken)


def test_another_config_is_not_the_same_run(command, unbroken, model_dir, tmp_path):
    """Of the same shapes, so the weights would load."""
    other = shutil.copytree(model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_dropout": 0.5}))
    flags = {**UNBROKEN, "resume_from_checkpoint": "latest", "model_name_or_path": other}
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    assert "hidden_dropout was 0.1 and is 0.5" in refusal(pretraining, command(output_dir, **flags))


def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_by_latest(command, unbroken, tmp_path, caplog):
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    path = output_dir / "checkpoints" / "step_00000004" / "optimizer.bin"
    path.write_bytes(path.read_bytes()[:999])
    argv = command(output_dir, **UNBROKEN, resume_from_checkpoint=path.parent)
    assert "step_00000004: optimizer.bin has 999 bytes" in refusal(pretraining, argv)
    pretraining.main(command(output_dir, **UNBROKEN, resume_from_checkpoint="latest"))
    assert "step_00000004: optimizer.bin has 999 bytes" in caplog.text
    assert_same_run(output_dir, unbroken)
    assert steps_saved(output_dir) == SAVES


def test_nothing_is_removed_for_a_command_that_is_refused(command, unbroken, tmp_path):
    output_dir = stopped_at(STEPS, unbroken, tmp_path / "run")
    flags = {**UNBROKEN, "report_to": "nonsense", "overwrite_output_dir": True}
    assert "--report_to nonsense" in refusal(pretraining, command(output_dir, **flags))
    assert records(output_dir) == records(unbroken)
    assert steps_saved(output_dir) == SAVES


def test_a_wrong_tracker_is_refused_before_anything_is_prepared_or_checked(command, tmp_path):
    flags = {"dataset_name": "/nowhere/corpus", "report_to": "nonsense"}
    assert "--report_to nonsense" in refusal(pretraining, command(tmp_path / "run", **flags))
    assert "--report_to nonsense" in refusal(pretraining, command(tmp_path / "run", **flags, check_only=True))
    assert "--dataset_name /nowhere/corpus" in refusal(pretraining, command(tmp_path / "run", **flags, preprocessing_only=True))


def test_output_dir_must_be_a_folder(command, tmp_path):
    (tmp_path / "run").write_text("")
    assert "no folder can be made there" in refusal(pretraining, command(tmp_path / "run"))


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_negatives": 0}, "num_negatives is 0"), ({"num_codevector_groups": 3}, "divisible"),
    ({"mask_time_prob": "much"}, "mask_time_prob"), ({"conv_kernel": [10, 3]}, "conv")], ids=str)
def test_a_config_that_cannot_be_is_refused(settings, message, command, model_dir, tmp_path):
    other = shutil.copytree(model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **settings}))
    assert message in refusal(pretraining, command(tmp_path / "run", model_name_or_path=other))


def test_other_speech_is_not_the_same_run(command, unbroken, tmp_path):
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    write_folder(tmp_path / "other", [1.0] * 8)
    flags = {**UNBROKEN, "dataset_name": tmp_path / "other", "resume_from_checkpoint": "latest", "cache_dir": tmp_path / "own"}
    assert "prepared_speech was" in refusal(pretraining, command(output_dir, **flags))


def test_a_run_that_is_there_is_not_written_over(command, unbroken, tmp_path):
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    message = refusal(pretraining, command(output_dir, **UNBROKEN, cache_dir=tmp_path / "cache_of_speech"))
    assert message.startswith(f"--output_dir {output_dir} holds a run already: --resume_from_checkpoint latest goes on with it")
    assert not (tmp_path / "cache_of_speech").exists(), "refused before anything is prepared"
    assert records(output_dir) == records(unbroken)
    flags = {**UNBROKEN, "max_train_steps": 1, "num_warmup_steps": 0}
    pretraining.main(command(output_dir, **flags, overwrite_output_dir=True))
    assert column(output_dir, "step") == [1]
    assert steps_saved(output_dir) == [1]


def test_more_updates_can_be_asked_for(pretrain, command):
    """With a learning rate that does not depend on the end, the run equals one that was asked for all of them at once."""
    flags = {"lr_scheduler_type": "constant"}
    longer, output_dir = pretrain("longer", **flags, max_train_steps=3), pretrain(**flags)
    pretraining.main(command(output_dir, **flags, max_train_steps=3, resume_from_checkpoint="latest"))
    assert records(output_dir, "train") == records(longer, "train")
    assert all(torch.equal(value, weights(longer)[name]) for name, value in weights(output_dir).items())


# What a run leaves


def test_arguments_yaml_repeats_the_run(unbroken, tmp_path):
    last = pretraining.main(["--config", str(unbroken / "arguments.yaml"), "--output_dir", str(tmp_path / "again")])
    assert_same_run(tmp_path / "again", unbroken)
    assert last.items() <= records(unbroken, "validation")[-1].items()  # main returns the last validation


@pytest.mark.parametrize("folder", [".", "checkpoints/step_00000007"])
def test_the_model_is_one_of_transformers(folder, unbroken):
    folder = unbroken / folder
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert type(model) is Wav2Vec2ForPreTraining
    saved = weights(unbroken)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Wav2Vec2ForPreTraining"]
    assert model.config.layerdrop == 0.2
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize is True
    recogniser = AutoModelForCTC.from_pretrained(folder, vocab_size=13)
    assert recogniser(torch.zeros(1, 4000)).logits.shape == (1, 12, 13)
    mine = recogniser.wav2vec2.state_dict()
    assert all(torch.equal(value, saved[f"wav2vec2.{name}"]) for name, value in mine.items())


@pytest.mark.parametrize("folder", [".", "checkpoints/step_00000007"])
def test_another_run_can_begin_with_the_weights(folder, unbroken, pretrain, model_dir):
    flags = {"model_name_or_path": None, "learning_rate": 1e-30, "lr_scheduler_type": "constant", "max_train_steps": 1,
             "seed": UNBROKEN["seed"]}
    output_dir = pretrain(**flags, init_from=unbroken / folder)
    assert all(torch.equal(value, weights(unbroken)[name]) for name, value in weights(output_dir).items())
    same, (new,) = records(unbroken, "validation")[-1], records(output_dir, "validation")
    assert {**new, "step": STEPS} == same


def test_init_from_trains_from_the_first_update_on(unbroken, pretrain):
    """Dropout is on: without it the first loss would be another."""
    flags = {"init_from": unbroken, "max_train_steps": 1}
    with_dropout, without = pretrain("with", **flags), pretrain("without", **flags, hidden_dropout=0, layerdrop=0)
    assert column(with_dropout, "loss") != column(without, "loss")
    assert column(with_dropout, "gradient_norm") != column(without, "gradient_norm")


# Records


def test_how_often_is_looked_changes_no_number(unbroken, pretrain):
    flags = {**UNBROKEN, "saving_steps": 100, "logging_steps": 3, "eval_steps": 7, "dataloader_num_workers": 1}
    output_dir = pretrain(**flags)
    assert column(output_dir, "step") == [3, 6, 7]
    assert column(output_dir, "step", "validation") == [7] == steps_saved(output_dir)
    whole = {record["step"]: record for record in records(unbroken, "train")}
    last_of = {record["step"]: record for record in records(output_dir, "train")}
    assert last_of[7] == whole[7]
    assert records(output_dir, "validation") == records(unbroken, "validation")[-1:]
    assert all(torch.equal(value, weights(unbroken)[name]) for name, value in weights(output_dir).items())


def test_validation_has_the_same_masks_every_time(pretrain):
    output_dir = pretrain(learning_rate=1e-30, eval_steps=1, hidden_dropout=0.3)
    one, two = records(output_dir, "validation")
    assert one == {**two, "step": 1}
    assert column(output_dir, "loss")[0] != column(output_dir, "loss")[1]


def test_speech_without_validation_runs(pretrain, tmp_path):
    write_folder(tmp_path / "corpus", [0.6] * 6)
    flags = {"dataset_name": tmp_path / "corpus", "validation_split_percentage": 0, "cache_dir": tmp_path / "own",
             "preprocessing_num_workers": 1}
    output_dir = pretrain(**flags, max_train_steps=None, num_train_epochs=2)
    assert column(output_dir, "epoch") == [0, 0, 0, 1, 1, 1]
    assert records(output_dir, "validation") == []


# Flags


def change(output_dir, start_weights):
    """By how much the weights moved."""
    return {name: weights(output_dir)[name] - value for name, value in start_weights.items()}


@pytest.fixture
def first_weights(command):
    """Random ones, as a run of this seed begins with."""
    def build(**flags):
        model, _ = pretraining.load_model(pretraining.parse_arguments(command("out", **flags)))
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    return build


def test_weights_decay_as_adamw_says(pretrain, first_weights):
    flags = {"max_train_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 0.01}
    begin = first_weights(**flags)
    plain = change(pretrain("plain", **flags), begin)
    decayed = change(pretrain("decayed", **flags, weight_decay=0.5), begin)
    exempt = change(pretrain("exempt", **flags, weight_decay=0.5, exempt_norms_and_biases=True), begin)
    for name, value in begin.items():
        shrink = -0.01 * 0.5 * value
        torch.testing.assert_close(decayed[name] - plain[name], shrink, rtol=0, atol=1e-6)
        torch.testing.assert_close(exempt[name] - plain[name], shrink * (value.ndim > 1), rtol=0, atol=1e-6)
    assert max(float(each.abs().max()) for each in plain.values()) == pytest.approx(0.01, rel=0.02)  # Adam's first step


def test_adam_is_as_its_flags_say(command):
    argv = command("out", adam_beta1=0.7, adam_beta2=0.9, adam_epsilon=1e-3, learning_rate=0.02, weight_decay=0.3)
    optimizer = adamw(torch.nn.Linear(2, 2), arguments.options_of(OptimizerOptions, pretraining.parse_arguments(argv)))
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"], group["weight_decay"]) == ((0.7, 0.9), 1e-3, 0.02, 0.3)


def test_max_grad_norm_clips_what_reaches_the_weights(pretrain, first_weights):
    """With an epsilon far above the gradients, Adam's first step is in proportion to them."""
    flags = {"max_train_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 100, "adam_epsilon": 1e3}
    begin, plain = first_weights(**flags), pretrain("plain", **flags)
    (norm,) = column(plain, "gradient_norm")
    clipped = pretrain("clipped", **flags, max_grad_norm=norm / 4)
    assert column(clipped, "gradient_norm") == [norm]  # the record is of what was before
    free, bound = (torch.cat([each.flatten() for each in change(run, begin).values()]).norm() for run in (plain, clipped))
    assert float(bound / free) == pytest.approx(0.25, rel=0.02)


RATES = {  # of updates 1 to 4, in parts of the highest
    "linear": [0.5, 1, 1, 0.5], "cosine": [0.5, 1, 1, 0.5], "cosine_with_restarts": [0.5, 1, 1, 0.5],
    "polynomial": [0.5, 1, 1, 0.25], "constant_with_warmup": [0.5, 1, 1, 1], "constant": [1, 1, 1, 1],
    "tri_stage": [0.1, 1, 1, 0.2**0.5]}


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_follows_its_schedule(name, pretrain):
    own = {"tri_stage": {"tri_stage_ratios": [0.25, 0.25, 0.5], "lr_init_scale": 0.1, "lr_final_scale": 0.2}, "constant": {},
           "polynomial": {"num_warmup_steps": 2, "polynomial_power": 2}}.get(name, {"num_warmup_steps": 2})
    rates = column(pretrain(lr_scheduler_type=name, max_train_steps=4, eval_steps=100, **own), "learning_rate")
    assert rates == pytest.approx([1e-3 * factor for factor in RATES[name]])


def test_gumbel_temperature_falls_as_its_flags_say(pretrain):
    flags = {"max_gumbel_temperature": 3, "min_gumbel_temperature": 1, "gumbel_temperature_decay": 0.5, "max_train_steps": 3}
    output_dir = pretrain("hot", **flags)
    assert column(output_dir, "gumbel_temperature") == [3, 1.5, 1]
    cold = pretrain("cold", **{**flags, "max_gumbel_temperature": 1})
    assert column(cold, "loss")[0] == column(output_dir, "loss")[0]  # codes are the same, their gradients are not
    assert column(cold, "gradient_norm")[0] != pytest.approx(column(output_dir, "gradient_norm")[0], rel=1e-6)


def test_flags_of_masks_and_batches_show_in_the_records(pretrain):
    flags = {"max_train_steps": 1}
    (plain,) = records(pretrain("plain", **flags), "train")
    (sparse,) = records(pretrain("sparse", **flags, mask_time_prob=0.2, mask_time_length=4), "train")
    (padded,) = records(pretrain("padded", **flags, uneven_clips="pad", max_batch_duration_in_seconds=9,
                                 per_device_train_batch_size=None), "train")
    (cropped,) = records(pretrain("cropped", **flags, random_crop_in_seconds=0.25), "train")
    (weighted,) = records(pretrain("weighted", **flags, diversity_loss_weight=5, feature_penalty_weight=7), "train")
    assert plain["masked_fraction"] > 0.4 > 0.3 > sparse["masked_fraction"] > 0.1
    assert plain["padding_fraction"] == 0 < padded["padding_fraction"] < 0.2
    assert padded["audio_hours"] > 1.3 * plain["audio_hours"]
    assert cropped["audio_hours"] * 3600 == pytest.approx(2 * 0.25)
    for record, diversity, penalty in ((plain, 0.1, 10), (weighted, 5, 7)):
        parts = record["contrastive_loss"] + diversity * record["diversity_loss"] + penalty * record["feature_penalty"]
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
    assert weighted["contrastive_loss"] == plain["contrastive_loss"]


def test_gradient_checkpointing_changes_no_number(unbroken, pretrain):
    output_dir = pretrain(**{**UNBROKEN, "saving_steps": 100}, gradient_checkpointing=True, eval_steps=2)
    assert_close_run(output_dir, unbroken)


@pytest.fixture
def another_precision():
    """Accelerate keeps that of the first Accelerator of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_is_nearly_float32(pretrain, another_precision):
    half = pretrain("bf16", mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    exact = pretrain("float32", mixed_precision="no")
    assert column(half, "loss") != column(exact, "loss")
    assert column(half, "loss") == pytest.approx(column(exact, "loss"), rel=0.03)
    assert {value.dtype for value in weights(half).values()} == {torch.float32}


@pytest.mark.parametrize(("kind", "settings"), [
    ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    ("wav2vec2-conformer", {"feat_extract_norm": "layer"}), ("wav2vec2-conformer", {"feat_extract_norm": "group"})], ids=str)
def test_other_models_run_and_resume(kind, settings, pretrain, command, tmp_path):
    model = write_model(tmp_path / "model", kind, **settings, layerdrop=0.2)
    flags = {"model_name_or_path": model, "saving_steps": 1, "seed": 1}
    output_dir, broken = pretrain("whole", **flags), tmp_path / "broken"
    pads = settings["feat_extract_norm"] == "layer"
    assert all((fraction > 0) is pads for fraction in column(output_dir, "padding_fraction"))
    assert column(output_dir, "contrastive_loss") == pytest.approx([math.log(11)] * 2, abs=0.7)  # chance among 10 negatives
    stopped_at(1, output_dir, broken)
    pretraining.main(command(broken, **flags, resume_from_checkpoint="latest"))
    assert_same_run(broken, output_dir)
    architecture = "Wav2Vec2ForPreTraining" if kind == "wav2vec2" else "Wav2Vec2ConformerForPreTraining"
    assert type(AutoModelForPreTraining.from_pretrained(output_dir)).__name__ == architecture
    assert (output_dir / "model.safetensors").stat().st_mode == (output_dir / "config.json").stat().st_mode


def test_a_run_that_goes_wrong_ends_and_says_why(command, tmp_path):
    message = refusal(pretraining, command(tmp_path / "run", learning_rate=1e9, max_skipped_in_a_row=2, max_train_steps=6))
    assert "the last 2 updates all had a gradient that is not finite" in message
    assert max(column(tmp_path / "run", "skipped_updates")) == 1
    assert steps_saved_so_far(tmp_path / "run") == []  # nothing that is no use is kept


def test_of_two_processes_one_says_what_is_refused_and_none_waits(command, tmp_path):
    flags = {**UNBROKEN, "push_to_hub": True, "hub_token": "hf bad"}
    assert codes(start(pretraining, command(tmp_path / "run", **flags), 2, SAID=str(tmp_path / "said"))) == [2, 2]
    said = (tmp_path / "said").read_text()
    assert said.count("--hub_token: holds spaces") == 1
    assert "Traceback" not in said


def test_a_run_driven_into_collapse_says_so_and_ends_with_code_3(command, tmp_path, monkeypatch, capfd):
    """A far too high learning rate with nothing that holds the codes apart."""
    driven = command(tmp_path / "run", learning_rate=0.1, diversity_loss_weight=0, max_train_steps=300, logging_steps=10,
                     saving_steps=300, on_collapse="stop")
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # of this process they are pytest's
    with pytest.raises(SystemExit) as ended:
        arguments.run_as_script(lambda: pretraining.main(driven))
    assert ended.value.code == 3
    said = capfd.readouterr().err
    assert "warning: collapse: of" in said
    assert "--on_collapse stop: ended after update" in said
    assert len(records(tmp_path / "run", "train")) >= 10


@pytest.mark.parametrize(("flags", "message"), [
    ({"adam_beta2": 1}, "--adam_beta2"), ({"seed": 2**70}, "--seed"),
    ({"min_gumbel_temperature": 3}, "--min_gumbel_temperature 3 is above"),
    ({"max_grad_norm": 0}, "--max_grad_norm"), ({"learning_rate": "fast"}, "--learning_rate"),
    ({"lr_scheduler_type": "constant", "num_warmup_steps": 3}, "constant has no warm-up"),
    ({"model_name_or_path": None}, "--model_name_or_path"), ({"mask_time_prob": 0}, "--mask_time_prob 0.65")], ids=str)
def test_flags_that_cannot_be_are_named(flags, message, command, tmp_path):
    assert message in refusal(pretraining, command(tmp_path / "run", **flags))
    assert not (tmp_path / "run").exists()


# transformers' example


OF_TRANSFORMERS = """
    dataset_name dataset_config_names dataset_split_names trust_remote_code preprocessing_num_workers overwrite_cache
    preprocessing_only cache_dir validation_split_percentage logging_steps saving_steps audio_column_name model_name_or_path
    config_name train_cache_file_name validation_cache_file_name per_device_train_batch_size per_device_eval_batch_size
    learning_rate weight_decay num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing
    lr_scheduler_type num_warmup_steps output_dir seed max_gumbel_temperature min_gumbel_temperature gumbel_temperature_decay
    max_duration_in_seconds min_duration_in_seconds pad_to_multiple_of adam_beta1 adam_beta2 adam_epsilon push_to_hub
    hub_model_id hub_token mask_time_prob mask_time_length""".split()


@pytest.fixture
def as_in_their_readme(tmp_path, model_dir):
    """All flags of transformers' example but those of the Hub, on a folder with configurations and splits."""
    for split, number in (("validation", 12), ("test", 8)):
        folder = tmp_path / "librispeech" / "clean" / split
        write_folder(folder, [])
        rows = ["file_name"]
        for clip in range(number):
            soundfile.write(folder / f"{split}{clip}.flac", sound(0.5 + 0.05 * clip, clip), 16_000)
            rows.append(f"{split}{clip}.flac")
        (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return f"""--dataset_name {tmp_path}/librispeech --dataset_config_names clean clean --dataset_split_names validation test
        --model_name_or_path {model_dir} --config_name {model_dir} --output_dir {tmp_path}/wav2vec2-pretrained-demo
        --max_train_steps 4 --num_warmup_steps 2 --gradient_accumulation_steps 2 --learning_rate 0.005 --weight_decay 0.01
        --max_duration_in_seconds 20.0 --min_duration_in_seconds 0.2 --logging_steps 1 --saving_steps 2
        --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --adam_beta1 0.9 --adam_beta2 0.98 --adam_epsilon 1e-06
        --gradient_checkpointing --mask_time_prob 0.65 --mask_time_length 10 --trust_remote_code --preprocessing_num_workers 2
        --cache_dir {tmp_path}/own --validation_split_percentage 20 --audio_column_name file_name --num_train_epochs 3
        --train_cache_file_name {tmp_path}/own/train --validation_cache_file_name {tmp_path}/own/held_out
        --lr_scheduler_type polynomial --seed 0 --max_gumbel_temperature 2.0 --min_gumbel_temperature 0.5
        --gumbel_temperature_decay 0.999 --pad_to_multiple_of 800""".split()


def test_every_flag_of_transformers_is_known(as_in_their_readme):
    more = ["--push_to_hub", "--hub_model_id", "me/model", "--hub_token", "secret", "--overwrite_cache", "--preprocessing_only"]
    given = {word.removeprefix("--") for word in [*as_in_their_readme, *more] if word.startswith("--")}
    assert given == set(OF_TRANSFORMERS)
    assert len(OF_TRANSFORMERS) == 42
    args = vars(pretraining.parse_arguments([*as_in_their_readme, *more]))
    assert (args["dataset_config_names"], args["hub_token"], args["adam_beta2"]) == (["clean", "clean"], "secret", 0.98)
    assert all(args[word.removeprefix("--")] is True for word in more if word in ("--push_to_hub", "--overwrite_cache"))


def test_the_command_of_transformers_readme_runs(as_in_their_readme, tmp_path):
    report = pretraining.main([*as_in_their_readme, "--preprocessing_only"])
    clips = {split: total["clips"] for split, total in report["splits"].items()}
    assert sum(clips.values()) == 20
    assert clips["validation"] > 0
    assert not (tmp_path / "wav2vec2-pretrained-demo").exists()
    last = pretraining.main([*as_in_their_readme, "--overwrite_cache"])
    output_dir = tmp_path / "wav2vec2-pretrained-demo"
    assert column(output_dir, "learning_rate") == pytest.approx([0.0025, 0.005, 0.005, 0.0025])
    assert [(record["step"], record["loss"]) for record in records(output_dir, "validation")][-1] == (4, last["loss"])
    assert column(output_dir, "step", "validation") == [2, 4]
    assert 0 < last["contrastive_loss"] < 5
    assert (tmp_path / "own" / "held_out").is_symlink()
    assert "secret" not in (output_dir / "arguments.yaml").read_text()
    assert type(AutoModelForPreTraining.from_pretrained(output_dir)) is Wav2Vec2ForPreTraining
