"""Runs of a training script in the tests: its command line, its processes as a launcher starts them, what it left behind."""

import importlib
import multiprocessing
import os
import socket
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wavtrain import InputError, arguments, training_run
from wavtrain.reporting.tracking import read_metrics

SERVER = multiprocessing.get_context("forkserver")  # imports once what takes seconds; its children start at once
SERVER.set_forkserver_preload(["run_wav2vec2_pretraining_no_trainer", "run_ctc_finetuning", "deepspeed"])
SMALL = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-3, "adam_epsilon": 1e-4,
         "logging_steps": 1, "saving_steps": 100, "save_total_limit": 9, "dataloader_num_workers": 0, "report_to": "none",
         "max_train_steps": 2}


def words_of(flags):
    """The command line; None and False leave a flag out."""
    words = []
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", *map(str, np.atleast_1d(value))]
    return words


def as_a_script(name, argv, environment):
    """What it prints is in the file SAID, if one is given."""
    os.environ.update(environment)
    if "SAID" in environment:
        said = os.open(environment["SAID"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(said, stream.fileno())
            stream.reconfigure(line_buffering=True)
    os.chdir(environment.get("FOLDER_OF_RANK_" + environment.get("RANK", "0"), "."))
    training_run.draw_curves = lambda folder: None
    arguments.run_as_script(lambda: importlib.import_module(name).main(argv))


def start(script, argv, num_processes=1, **environment):
    """The processes of a run, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port} if num_processes > 1 else {}
    of_all |= environment
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {} for rank in range(num_processes)]
    processes = [SERVER.Process(target=as_a_script, args=(script.__name__, argv, {**of_all, **rank})) for rank in ranks]
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


def refusal(script, argv):
    """The one line it refuses with."""
    with pytest.raises(InputError) as caught:
        script.main(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def records(output_dir, phase=None):
    """All that metrics.jsonl says, but for how fast it was."""
    return [{name: value for name, value in record.items() if name != "audio_seconds_per_second"}
            for record in read_metrics(str(output_dir)) if phase in (None, record["phase"])]


def column(output_dir, name, phase="train"):
    return [record[name] for record in records(output_dir, phase)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(one, other):
    """Names of the weights that are not bit for bit the same."""
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def checkpoint(output_dir, step):
    return output_dir / "checkpoints" / f"step_{step:08d}"


def steps_saved(output_dir):
    """All that lies there must be complete."""
    return sorted(int(path.name.removeprefix("step_")) for path in (output_dir / "checkpoints").iterdir())


def steps_saved_so_far(output_dir):
    """Complete ones: those that are being written have longer names."""
    return sorted(int(path.name[5:]) for path in (output_dir / "checkpoints").glob("step_" + 8 * "[0-9]"))


def assert_same_run(one, other, folders=(".",)):
    """Bit for bit: all records, and the model of each folder."""
    assert records(one) == records(other)
    for folder in folders:
        assert changed(weights(one / folder), weights(other / folder)) == set()


def assert_close_run(one, other, folders=(".",)):
    """The same but for the order in which floats are summed."""
    assert len(records(one)) == len(records(other))
    for mine, theirs in zip(records(one), records(other), strict=True):
        assert mine.pop("phase") == theirs.pop("phase")
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-8)
    for folder in folders:
        torch.testing.assert_close(weights(one / folder), weights(other / folder), rtol=1e-5, atol=2e-6)
