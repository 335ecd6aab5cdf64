"""What faults.py breaks: the real scripts as processes, a corpus and a model for them, and whether two runs left the same."""

import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PRETRAINING, FINETUNING, PREPROCESSING = "run_wav2vec2_pretraining_no_trainer", "run_ctc_finetuning", "run_preprocessing"
SERVER = multiprocessing.get_context("forkserver")  # imports once what takes seconds; its children are the scripts
SERVER.set_forkserver_preload([PRETRAINING, FINETUNING, PREPROCESSING])
NEW_HOSTNAME = 0x04000000  # CLONE_NEWUTS
PATIENCE = 180  # seconds in which anything must end
SPEED = "audio_seconds_per_second"
UPDATES = 8
MICRO_BATCHES = 4  # of an update, on all processes together
BOTH = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-3, "adam_epsilon": 1e-4,
        "logging_steps": 1, "saving_steps": 2, "eval_steps": 2, "save_total_limit": 9, "dataloader_num_workers": 0,
        "report_to": "none", "max_train_steps": UPDATES, "seed": 3, "gradient_accumulation_steps": MICRO_BATCHES,
        "num_warmup_steps": 2}
Flags = dict[str, Any]


class Outcome(NamedTuple):
    """Of one fault."""

    fault: str  # what is not as it should be; empty where it survived
    redone: int = 0  # updates
    lost: int = 0  # records of the undisturbed run that are not there, or are others; files of a preparation


class Process:
    """A script at work, in a session of its own; what it says goes into a file."""

    def __init__(self, script: str, flags: Flags, log: Path, environment: dict[str, str], hostname: str) -> None:
        self.log, words = log, words_of(flags)
        self.process = SERVER.Process(target=_be, args=(script, words, str(log), environment, hostname))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """A signal, to it alone."""
        if self.is_alive():
            os.kill(self.pid, number)

    def code(self) -> int | None:
        """What it ends with, None where it hangs."""
        self.process.join(PATIENCE)
        ended = self.process.exitcode
        self.process.kill()
        self.process.join()
        return ended

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _be(script: str, words: list[str], log: str, environment: dict[str, str], hostname: str) -> None:
    """In the process: become the script, as a shell would have started it."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    if hostname and ctypes.CDLL(None, use_errno=True).unshare(NEW_HOSTNAME) == 0:
        socket.sethostname(hostname)
    import torch

    from wavtrain import arguments, training_run

    if "WITHOUT_PICTURES" in os.environ:
        training_run.draw_curves = lambda folder: None
    torch.set_num_threads(1)
    own = multiprocessing.get_all_start_methods()[0]  # as `python script.py` has it, and not that of the server it comes from
    multiprocessing.set_start_method(own, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the benchmark was started in the background
    sys.argv = [f"{script}.py"]
    arguments.run_as_script(lambda: importlib.import_module(script).main(words))


def words_of(flags: Flags) -> list[str]:
    """The command line; None and False leave a flag out."""
    words = []
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def launched(num_processes: int) -> list[dict[str, str]]:
    """The environment of each process, as a launcher sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port}
    return [{**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


class Bench:
    """A folder of runs, each undisturbed one made once, and the words of their commands."""

    def __init__(self, work: Path, seed: int, num_clips: int) -> None:
        from conftest import sound

        self.work, self.random, self.count = work, random.Random(seed), 0
        _write_corpus(work / "corpus" / "train", 22, sound)
        _write_corpus(work / "corpus" / "validation", 5, sound)
        _write_corpus(work / "many" / "train", num_clips, sound)
        self.model = work / "model"
        writer = SERVER.Process(target=_write_model, args=(self.model,))  # it has imported transformers already
        writer.start()
        writer.join()
        self.prepared = work / "prepared"
        self.run_to_end(PREPROCESSING, {"dataset_name": work / "corpus", "validation_split_names": "validation",
                                        "output_dir": self.prepared, "preprocessing_num_workers": 1})
        self._undisturbed: dict[str, Path] = {}

    def fresh(self) -> Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.work / f"run-{self.count:03d}"

    def flags(self, script: str, output_dir: Path, **more: Any) -> Flags:
        """Of a whole run."""
        if script == PREPROCESSING:
            return {"dataset_name": self.work / "many", "output_dir": output_dir, "preprocessing_num_workers": 2, **more}
        model = "config_name" if script == FINETUNING else "model_name_or_path"
        return {**BOTH, model: self.model, "dataset_name": self.prepared, "output_dir": output_dir, **more}

    def start(self, script: str, flags: Flags, environment: dict[str, str] | None = None, hostname: str = "") -> Process:
        """A process of a script."""
        self.count += 1
        return Process(script, flags, self.work / f"said-{self.count:03d}", environment or {}, hostname)

    def run_to_end(self, script: str, flags: Flags) -> Process:
        """A run that must end well."""
        process = self.start(script, flags)
        code = process.code()
        if code != 0:
            sys.exit(f"faults.py: error: a run that nobody disturbed ended with {code}:\n{process.said()[-3000:]}")
        return process

    def undisturbed(self, script: str) -> Path:
        """What the others must be like."""
        if script not in self._undisturbed:
            self._undisturbed[script] = self.work / f"undisturbed-{script}"
            self.run_to_end(script, self.flags(script, self._undisturbed[script]))
        return self._undisturbed[script]

    def resumed(self, script: str, output_dir: Path, *, alike: Callable[[Path, Path], tuple[str, int]] | None = None,
                hostname: str = "", says: str = "", **more: Any) -> Outcome:
        """The same command again, which must end as if nothing had been."""
        is_run = script != PREPROCESSING
        redone = redone_after(output_dir) if is_run else 0
        flags = self.flags(script, output_dir, **({"resume_from_checkpoint": "latest"} if is_run else {}), **more)
        process = self.start(script, flags, hostname=hostname)
        code, said = process.code(), process.said()
        if code != 0 or "Traceback" in said:
            return Outcome(f"the resumed command ended with {code}: {said[-1500:]}", redone)
        if says not in said:
            return Outcome(f"it does not say {says!r}: {said[-1500:]}", redone)
        fault, lost = (alike or (same_run if is_run else same_preparation))(output_dir, self.undisturbed(script))
        return Outcome(fault, redone, lost)

    def stopped_at(self, step: int, script: str = PRETRAINING) -> Path:
        """A run as it was when it had been killed some time after the checkpoint of this step."""
        output_dir = self.fresh()
        shutil.copytree(self.undisturbed(script), output_dir)
        (output_dir / "model.safetensors").unlink()
        for each in saved_steps(output_dir):
            if each > step:
                shutil.rmtree(checkpoint(output_dir, each))
        return output_dir


def _write_model(folder: Path) -> None:
    from conftest import write_model

    write_model(folder, layerdrop=0.2, hidden_dropout=0.1)


def _write_corpus(folder: Path, num_clips: int, sound: Callable[[float, int], Any]) -> None:
    import soundfile

    folder.mkdir(parents=True)
    words = "ab ba cab abba bee ace dab add bad fed".split()
    lines = ["file_name,text"]
    for number in range(num_clips):
        soundfile.write(folder / f"{number:04d}.flac", sound(0.6 + 0.02 * (number % 23), len(folder.name) + number), 16_000)
        lines.append(f"{number:04d}.flac,{words[number % 10]} {words[(3 * number + 1) % 10]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def wait_until(is_so: Callable[[], bool], process: Process) -> bool:
    """Whether it came to that before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if not process.is_alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def checkpoint(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step_{step:08d}"


def saved_steps(output_dir: Path) -> list[int]:
    """Complete checkpoints; the others have longer names."""
    return sorted(int(path.name[5:]) for path in (output_dir / "checkpoints").glob("step_" + 8 * "[0-9]"))


def records(output_dir: Path) -> list[dict[str, Any]]:
    """All of metrics.jsonl but how fast it was; a last line that a kill cut off is none."""
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return [{name: value for name, value in json.loads(line).items() if name != SPEED} for line in whole]


def redone_after(output_dir: Path) -> int:
    """Updates that were made and are in no checkpoint."""
    made = max((record["step"] for record in records(output_dir)), default=0)
    return max(made - max(saved_steps(output_dir), default=0), 0)


def same_run(one: Path, other: Path) -> tuple[str, int]:
    """Bit for bit: what differs, and how many records of the other are not in the one."""
    mine, wanted = records(one), records(other)
    lost = sum(record not in mine for record in wanted)
    if lost or mine != wanted:
        return f"metrics.jsonl has {len(mine)} records, {lost} of {len(wanted)} are missing or others", lost
    return ("", 0) if _weights(one) == _weights(other) else ("the weights are others", 0)


def _weights(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()


def close_run(one: Path, other: Path) -> tuple[str, int]:
    """The same but for the order in which floats are summed."""
    import torch
    from safetensors.torch import load_file

    mine, wanted = records(one), records(other)
    places = {(record["phase"], record["step"]) for record in mine}
    lost = sum((record["phase"], record["step"]) not in places for record in wanted)
    if len(mine) != len(wanted) or lost:
        return f"{len(mine)} records, {lost} of {len(wanted)} are missing", lost
    for record, other_record in zip(mine, wanted, strict=True):
        for name, value in other_record.items():
            is_same = value == record[name] if isinstance(value, str) else abs(value - record[name]) <= 1e-5 * abs(value) + 1e-8
            if not is_same:
                return f"step {record['step']}: {name} is {record[name]} and not {value}", 0
    weights = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    far = [name for name, value in weights[0].items() if not torch.allclose(value, weights[1][name], rtol=1e-5, atol=2e-6)]
    return (f"weights {far[:3]} are others" if far else ""), 0


def same_preparation(one: Path, other: Path) -> tuple[str, int]:
    """Every file, byte for byte."""
    mine, wanted = _files(one), _files(other)
    lost = sum(mine.get(name) != digest for name, digest in wanted.items())
    return (f"other files: {sorted(set(mine.items()) ^ set(wanted.items()))[:4]}" if mine != wanted else ""), lost


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")}


def can_mount(folder: Path) -> bool:
    """Whether a small disk can be made, which takes root."""
    tried = folder / "tried"
    tried.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tried], capture_output=True).returncode == 0
    return done and subprocess.run(["umount", tried]).returncode == 0


class SmallDisk:
    """A disk of its own below the work folder, for as long as the block lasts. Needs root."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder, self.num_bytes = folder, num_bytes

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.num_bytes // 1024}k", "tmpfs", self.folder], check=True)
        return self

    def make_room(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=512m", self.folder], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.folder], check=True)
