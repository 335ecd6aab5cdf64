"""The script itself: one exact update whatever the processes, exact resumption, the best model kept, what each flag does."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, sound, write_model
from matplotlib.figure import Figure
from safetensors.torch import load_file
from transformers import AutoModelForCTC, AutoProcessor, SeamlessM4TFeatureExtractor, Wav2Vec2ForCTC, pipeline

import run_ctc_finetuning as finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError, arguments
from wavtrain.durable_files import read_json
from wavtrain.recognition import recognisers
from wavtrain.tracking import read_metrics

STEPS, NUM_TRAIN, NUM_VALIDATION = 6, 14, 5
WORDS = "ab ba cab abba bee ace dab add bad fed".split()
SMALL = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-3, "adam_epsilon": 1e-4,
         "logging_steps": 1, "saving_steps": 100, "save_total_limit": 9, "dataloader_num_workers": 0, "report_to": "none",
         "max_train_steps": 2}
UNBROKEN = {"gradient_accumulation_steps": 4, "max_train_steps": STEPS, "saving_steps": 2, "eval_steps": 1, "seed": 3,
            "speed_perturbation": [0.9, 1, 1.1], "mask_time_prob": 0.3, "mask_time_length": 4, "mask_feature_prob": 0.1,
            "mask_feature_length": 3, "freeze_finetune_updates": 2}
SERVER = multiprocessing.get_context("forkserver")  # imports once what takes seconds; its children start at once
SERVER.set_forkserver_preload([finetuning.__name__])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As the processes that are compared; more would be slower for models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).write_bytes(b""))


def write_split(folder, texts, durations=None):
    """An audiofolder. A text of None leaves its field empty."""
    folder.mkdir(parents=True)
    rows = ["file_name,text"]
    for number, text in enumerate(texts):
        seconds = durations[number] if durations else 0.6 + 0.02 * number
        soundfile.write(folder / f"{number:03d}.flac", sound(seconds, len(folder.name) + number), 16_000)
        rows.append(f'{number:03d}.flac,"{text}"' if text is not None else f"{number:03d}.flac,")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def prepare(folder, train, validation=(), durations=None):
    write_split(folder / "corpus" / "train", train, durations)
    if validation:
        write_split(folder / "corpus" / "validation", validation)
    splits = ["--validation_split_names", "validation"] if validation else ["--validation_split_percentage", "0"]
    run_preprocessing.main(["--dataset_name", str(folder / "corpus"), *splits, "--output_dir", str(folder / "prepared"),
                            "--preprocessing_num_workers", "1", "--min_duration_in_seconds", "0"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """An epoch is 7 micro-batches of 2, so of two updates of 4 the second is incomplete."""
    texts = [f"{WORDS[n % 10]} {WORDS[(3 * n + 1) % 10]}" for n in range(NUM_TRAIN + NUM_VALIDATION)]
    return prepare(tmp_path_factory.mktemp("speech"), texts[:NUM_TRAIN], texts[NUM_TRAIN:])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Group norm, of which padding must know; dropout and layerdrop are on."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", layerdrop=0.2, hidden_dropout=0.1, final_dropout=0.1)


@pytest.fixture(scope="module")
def encoder(speech, model_dir, tmp_path_factory):
    """The output directory of a pretraining."""
    output_dir = tmp_path_factory.mktemp("encoder") / "run"
    pretraining.main(words_of({**SMALL, "dataset_name": speech, "model_name_or_path": model_dir, "output_dir": output_dir}))
    return output_dir


def words_of(flags):
    words = []
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", *map(str, np.atleast_1d(value))]
    return words


@pytest.fixture(scope="module")
def command(speech, encoder):
    """(output_dir, **flags) -> the words of a command line."""
    given = {"dataset_name": speech, "model_name_or_path": encoder, **SMALL}
    return lambda output_dir, **flags: words_of({**given, "output_dir": output_dir, **flags})


@pytest.fixture
def finetune(command, tmp_path):
    """(name, **flags) -> the output directory of a run in this process."""
    def run(name="run", **flags):
        finetuning.main(command(tmp_path / name, **flags))
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """One process, 4 micro-batches an update, from the beginning to the end; the encoder frozen for 2 updates."""
    output_dir = tmp_path_factory.mktemp("unbroken") / "run"
    finetuning.main(command(output_dir, **UNBROKEN))
    return output_dir


def records(output_dir, phase=None):
    """All that metrics.jsonl says, but for how fast it was."""
    return [{name: value for name, value in record.items() if name != "audio_seconds_per_second"}
            for record in read_metrics(str(output_dir)) if phase in (None, record["phase"])]


def column(output_dir, name, phase="train"):
    return [record[name] for record in records(output_dir, phase)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def checkpoint(output_dir, step):
    return output_dir / "checkpoints" / f"step_{step:08d}"


def steps_saved(output_dir):
    """Complete ones: those that are being written have longer names."""
    return sorted(int(path.name[5:]) for path in (output_dir / "checkpoints").glob("step_" + 8 * "[0-9]"))


def changed(one, other):
    """Names of the weights that are not bit for bit the same."""
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def assert_same_run(one, other):
    """Bit for bit: all records, the best model, the last one."""
    assert records(one) == records(other)
    for folder in (".", f"checkpoints/step_{STEPS:08d}"):
        assert changed(weights(one / folder), weights(other / folder)) == set()


def assert_close_run(one, other):
    """The same but for the order in which floats are summed."""
    assert len(records(one)) == len(records(other))
    for mine, theirs in zip(records(one), records(other), strict=True):
        assert mine.pop("phase") == theirs.pop("phase")
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-8)
    for folder in (".", f"checkpoints/step_{STEPS:08d}"):
        torch.testing.assert_close(weights(one / folder), weights(other / folder), rtol=1e-5, atol=2e-6)


def as_a_script(argv, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    arguments.run_as_script(lambda: finetuning.main(argv))


def start(argv, num_processes=1):
    """The processes of a run, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port} if num_processes > 1 else {}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {} for rank in range(num_processes)]
    processes = [SERVER.Process(target=as_a_script, args=(argv, {**of_all, **rank})) for rank in ranks]
    for process in processes:
        process.start()
    return processes


def codes(processes):
    """What they end with."""
    for process in processes:
        process.join(60)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return ended


def wait_until(is_so, process):
    deadline = time.monotonic() + 60
    while not is_so():
        process.join(0.01)
        assert process.exitcode is None, "it ended too early"
        assert time.monotonic() < deadline


def refusal(argv):
    with pytest.raises(InputError) as caught:
        finetuning.main(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One exact update


def test_the_unbroken_run_is_as_long_as_it_should_be(unbroken):
    assert column(unbroken, "step") == list(range(1, STEPS + 1)) == column(unbroken, "step", "validation")
    assert column(unbroken, "epoch") == [0, 0, 1, 1, 2, 2]
    assert steps_saved(unbroken) == [2, 4, 6]
    assert set(column(unbroken, "skipped_updates")) == {0}
    assert all(0 < value < 200 for value in column(unbroken, "loss") + column(unbroken, "loss", "validation"))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_any_number_of_processes_makes_the_same_run(num_processes, command, unbroken, tmp_path):
    """With dropout, layerdrop, masks, speeds, a frozen encoder, and 5 validation clips which no number of them divides."""
    flags = {**UNBROKEN, "gradient_accumulation_steps": 4 // num_processes}
    assert codes(start(command(tmp_path / "run", **flags), num_processes)) == [0] * num_processes
    assert_close_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("mean_over", ["utterances", "tokens"])
def test_micro_batches_add_up_to_one_mean(mean_over, finetune, speech):
    """Without chance, 7 micro-batches of 2, or of all 14 clips, are one update; the loss is that of transformers."""
    flags = {"max_train_steps": 1, "mean_over": mean_over, "mask_time_prob": 0, "hidden_dropout": 0, "layerdrop": 0,
             "attention_dropout": 0, "activation_dropout": 0, "feat_proj_dropout": 0, "final_dropout": 0}
    many = finetune("many", **flags, gradient_accumulation_steps=7)
    one = finetune("one", **flags, per_device_train_batch_size=14)
    (a,), (b,) = records(many, "train"), records(one, "train")
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    torch.testing.assert_close(weights(many), weights(one), rtol=1e-5, atol=2e-6)
    assert a["loss"] == pytest.approx(loss_of_transformers(one, finetune, flags, speech)[mean_over], rel=1e-4)


def loss_of_transformers(output_dir, finetune, flags, speech):
    """Of the weights a run begins with, clip by clip."""
    begin = finetune("begin", **{**flags, "learning_rate": 1e-30})
    model, processor = Wav2Vec2ForCTC.from_pretrained(begin).eval(), AutoProcessor.from_pretrained(begin)
    model.config.ctc_loss_reduction = "sum"
    clips, total, num_tokens = finetuning.PreparedSpeech(str(speech), read_json(str(speech / "preparation.json"))), 0.0, 0
    for path, text in zip(sorted((speech.parent / "corpus" / "train").glob("*.flac")), clips.load("train")["text"], strict=True):
        inputs = processor(soundfile.read(path, dtype="float32")[0], sampling_rate=16_000, return_tensors="pt")
        labels = processor.tokenizer(text, return_tensors="pt").input_ids
        total, num_tokens = total + float(model(**inputs, labels=labels).loss), num_tokens + labels.numel()
    return {"utterances": total / NUM_TRAIN, "tokens": total / num_tokens}


# Resumption and the best model


def stopped_at(step, unbroken, output_dir):
    """As the run was when it had been killed some time after the checkpoint of this step."""
    shutil.copytree(unbroken, output_dir)
    for later in steps_saved(output_dir):
        if later > step:
            shutil.rmtree(checkpoint(output_dir, later))
    return output_dir


@pytest.mark.parametrize(("step", "flags"), [(2, {"dataloader_num_workers": 1}), (4, {})], ids=str)
def test_a_resumed_run_equals_the_unbroken_one(step, flags, command, unbroken, tmp_path):
    """When the encoder is about to thaw, and later; with other loaders."""
    output_dir = stopped_at(step, unbroken, tmp_path / "run")
    finetuning.main(command(output_dir, **UNBROKEN, resume_from_checkpoint="latest", **flags))
    assert_same_run(output_dir, unbroken)


def test_one_process_can_go_on_as_two(command, unbroken, tmp_path):
    """As launched in earnest."""
    output_dir = stopped_at(2, unbroken, tmp_path / "run")
    argv = command(output_dir, **{**UNBROKEN, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run_ctc_finetuning.py"]
    result = subprocess.run([*launch, *argv], cwd=ROOT, capture_output=True, text=True, timeout=240,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "on 2 processes" in result.stdout
    assert_close_run(output_dir, unbroken)


@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_run_that_was_ended_goes_on_exactly(end, code, command, unbroken, tmp_path):
    (process,) = start(command(tmp_path / "run", **UNBROKEN))
    wait_until(lambda: 2 in steps_saved(tmp_path / "run") and len(records(tmp_path / "run")) >= 5, process)
    os.kill(process.pid, end)
    assert codes([process]) == [code]
    assert steps_saved(tmp_path / "run")[-1] < STEPS
    finetuning.main(command(tmp_path / "run", **UNBROKEN, resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", unbroken)
