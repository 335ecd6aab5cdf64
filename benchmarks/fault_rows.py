"""The rows of faults.py: what is broken, at which moment, and what must come of it."""

import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from breakable import (
    FINETUNING,
    MICRO_BATCHES,
    PATIENCE,
    PREPROCESSING,
    PRETRAINING,
    ROOT,
    UPDATES,
    Bench,
    Outcome,
    Process,
    SmallDisk,
    checkpoint,
    close_run,
    launched,
    records,
    redone_after,
    saved_steps,
    wait_until,
    words_of,
)

Moment = Callable[[Bench, Process, Path], bool]  # waits for it; whether it came
Row = tuple[str, Callable[[Bench], Outcome], int]  # what is broken, how, how often
LATEST = {"resume_from_checkpoint": "latest"}
TRIES = 5  # to be in time


def rows(kills: int) -> list[Row]:
    """All of them; the kills are shared out among the moments."""
    moments = [("in a step", PRETRAINING, in_a_step), ("in a checkpoint write", PRETRAINING, in_a_write),
               ("in validation", PRETRAINING, in_validation), ("while the model is written", PRETRAINING, at_the_end),
               ("while pushing", PRETRAINING, while_pushing), ("while preparing", PREPROCESSING, while_preparing),
               ("fine-tuning, in a step", FINETUNING, in_a_step), ("fine-tuning, in a write", FINETUNING, in_a_write)]
    shares = [kills // len(moments) + (number < kills % len(moments)) for number in range(len(moments))]
    killed = [(f"kill -9 {name}", ended_by([signal.SIGKILL], moment, script), share)
              for (name, script, moment), share in zip(moments, shares, strict=True) if share]
    return [
        *killed,
        ("SIGTERM", ended_by([signal.SIGTERM], in_a_step), 3),
        ("Ctrl-C twice", ended_by([signal.SIGINT] * 2, in_a_step), 3),
        ("SIGTERM, fine-tuning", ended_by([signal.SIGTERM], in_a_step, FINETUNING), 1),
        ("one of two processes killed", one_of_two_killed, 2),
        ("one of two killed, torchrun", one_of_two_killed_under_a_launcher, 1),
        ("full disk while preparing", full_disk_while_preparing, 1),
        ("full disk in a checkpoint write", full_disk_in_a_write, 1),
        ("full disk while logging", full_disk_while_logging, 1),
        *((f"newest checkpoint: {name}", damaged_checkpoint(damage), 1) for name, damage in DAMAGES.items()),
        ("damaged checkpoint by its name", named_damaged_checkpoint, 1),
        *((f"prepared shard: {name}", damaged_shard(damage, found), 1) for name, (damage, found) in SHARD_DAMAGES.items()),
        ("changed argument", refused_then_resumed({"learning_rate": 2e-3}, "--learning_rate was 0.001 and is 0.002"), 1),
        ("checkpoint of another model", checkpoint_of_another_model, 1),
        ("clock set back, other hostname", other_clock_and_hostname, 2),
        ("1, then 2, 4 and 1 processes", other_layouts, 1),
        ("other loader workers", ended_by([signal.SIGKILL], in_a_step, then={"dataloader_num_workers": 2}), 1),
        ("other preparation workers", other_preparation_workers, 1),
        ("two runs in one directory", two_runs, 1),
        ("two preparations in one directory", two_preparations, 1),
    ]


def ended_by(signals: list[int], moment: Moment, script: str = PRETRAINING, then: dict[str, Any] | None = None
             ) -> Callable[[Bench], Outcome]:
    """Begin, end at the moment, go on at once."""
    def trial(bench: Bench) -> Outcome:
        for _ in range(TRIES):
            output_dir = bench.fresh()
            more = {"push_to_hub": True, "hub_model_id": f"someone/{output_dir.name}", "hub_token": "hf_good"}
            more = more if moment is while_pushing else {}
            if script != PREPROCESSING:
                more["dataloader_num_workers"] = bench.random.randrange(2)
            process = bench.start(script, bench.flags(script, output_dir, **more))
            if moment(bench, process, output_dir) and process.is_alive():
                break
        for number in signals:
            process.send(number)
            time.sleep(bench.random.uniform(0, 0.1))
        if process.code() not in (-signals[0], 128 + signals[0]):
            return Outcome(f"{signals} ended it with {process.process.exitcode}: {process.said()[-1500:]}")
        return bench.resumed(script, output_dir, **{**more, **(then or {})})
    return trial


def in_a_step(bench: Bench, process: Process, output_dir: Path) -> bool:
    num_records = bench.random.randrange(1, UPDATES)
    is_there = wait_until(lambda: len(records(output_dir)) >= num_records, process)
    time.sleep(bench.random.uniform(0, 0.2))
    return is_there


def in_a_write(bench: Bench, process: Process, output_dir: Path) -> bool:
    step = bench.random.choice([2, 4, 6])
    part = output_dir / "checkpoints" / f"{checkpoint(output_dir, step).name}.part"
    is_there = wait_until(part.exists, process)
    time.sleep(bench.random.uniform(0, 0.03))
    return is_there


def in_validation(bench: Bench, process: Process, output_dir: Path) -> bool:
    last = {"phase": "train", "step": bench.random.choice([2, 4, 6])}
    return wait_until(lambda: last.items() <= (records(output_dir) or [{}])[-1].items(), process)


def at_the_end(bench: Bench, process: Process, output_dir: Path) -> bool:
    return wait_until((output_dir / ".model.part").exists, process)


def while_pushing(bench: Bench, process: Process, output_dir: Path) -> bool:
    is_there = wait_until((output_dir / "model.safetensors").exists, process)
    time.sleep(bench.random.uniform(0, 0.1))
    return is_there


def while_preparing(bench: Bench, process: Process, output_dir: Path) -> bool:
    num_done = bench.random.randrange(1, 3)
    return wait_until(lambda: len(list((output_dir / "unfinished" / "shards").glob("*.json"))) >= num_done, process)


# More than one process


def started(bench: Bench, output_dir: Path, num_processes: int, **more: Any) -> list[Process]:
    """A run as a launcher starts it."""
    flags = bench.flags(PRETRAINING, output_dir, gradient_accumulation_steps=MICRO_BATCHES // num_processes, **more)
    return [bench.start(PRETRAINING, flags, environment if num_processes > 1 else {})
            for environment in launched(num_processes)]


def one_of_two_killed(bench: Bench) -> Outcome:
    """The other must end, not hang."""
    output_dir, killed = bench.fresh(), bench.random.randrange(2)
    processes = started(bench, output_dir, 2)
    in_a_step(bench, processes[0], output_dir)
    processes[killed].send(signal.SIGKILL)
    other = processes[1 - killed]
    if other.code() in (None, 0):
        return Outcome(f"the other ended with {other.process.exitcode}: {other.said()[-1500:]}")
    return bench.resumed(PRETRAINING, output_dir, alike=close_run)


def one_of_two_killed_under_a_launcher(bench: Bench) -> Outcome:
    """As people launch it."""
    output_dir = bench.fresh()
    flags = bench.flags(PRETRAINING, output_dir, gradient_accumulation_steps=MICRO_BATCHES // 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               ROOT / f"{PRETRAINING}.py", *words_of(flags)]
    with open(bench.work / "said-torchrun", "w") as log:
        launcher = psutil.Popen(list(map(str, command)), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + PATIENCE
    while not records(output_dir) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = [each for each in launcher.children() if PRETRAINING in " ".join(each.cmdline())]
    if len(ranks) != 2:
        launcher.kill()
        return Outcome(f"it did not begin: {Path(log.name).read_text()[-1500:]}")
    bench.random.choice(ranks).kill()
    try:
        launcher.wait(PATIENCE)
    except psutil.TimeoutExpired:
        return Outcome("the launcher hangs")
    if any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ranks):
        return Outcome("the other process goes on")
    return bench.resumed(PRETRAINING, output_dir, alike=close_run)


def other_layouts(bench: Bench) -> Outcome:
    """The plan is the same, and the numbers are but for the order of sums."""
    output_dir, redone = bench.fresh(), 0
    for step, num_processes in ((2, 1), (4, 2), (6, 4)):
        processes = started(bench, output_dir, num_processes, **LATEST)
        is_saved = wait_until(checkpoint(output_dir, step).exists, processes[0])
        for each in processes:
            each.send(signal.SIGKILL)
        ended = [each.code() for each in processes]
        if not is_saved or saved_steps(output_dir)[-1] != step:
            return Outcome(f"{num_processes} processes ended with {ended}: {processes[0].said()[-1500:]}")
        redone += redone_after(output_dir)
    outcome = bench.resumed(PRETRAINING, output_dir, alike=close_run)
    return outcome._replace(redone=redone)


# Full disks


def ended_full(process: Process) -> str:
    """What is wrong with how it ended on a full disk."""
    code, said = process.code(), process.said()
    if code == 1 and "No space left on device" in said.splitlines()[-1] and "Traceback" not in said:
        return ""
    return f"on a full disk it ended with {code}: {said[-1500:]}"


def full_disk_while_preparing(bench: Bench) -> Outcome:
    size = sum(path.stat().st_size for path in bench.undisturbed(PREPROCESSING).rglob("*") if path.is_file())
    with SmallDisk(bench.fresh(), size // 2) as disk:
        output_dir = disk.folder / "prepared"
        fault = ended_full(bench.start(PREPROCESSING, bench.flags(PREPROCESSING, output_dir)))
        disk.make_room()
        return Outcome(fault) if fault else bench.resumed(PREPROCESSING, output_dir)


def full_disk_in_a_write(bench: Bench) -> Outcome:
    """The first checkpoint has room, the second has not."""
    first = checkpoint(bench.undisturbed(PRETRAINING), 2)
    size = sum(path.stat().st_size for path in first.rglob("*"))
    with SmallDisk(bench.fresh(), size * 8 // 5) as disk:
        output_dir = disk.folder / "run"
        fault = ended_full(bench.start(PRETRAINING, bench.flags(PRETRAINING, output_dir)))
        if not fault and saved_steps(output_dir) != [2]:
            fault = f"checkpoints are {saved_steps(output_dir)}"
        disk.make_room()
        return Outcome(fault) if fault else bench.resumed(PRETRAINING, output_dir)


def full_disk_while_logging(bench: Bench) -> Outcome:
    with SmallDisk(bench.fresh(), 32 << 20) as disk:
        output_dir, filler = disk.folder / "run", disk.folder / "filler"
        process = bench.start(PRETRAINING, bench.flags(PRETRAINING, output_dir, saving_steps=100, report_to="tensorboard"))
        wait_until(lambda: bool(records(output_dir)), process)
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        fault = ended_full(process)
        filler.unlink()
        return Outcome(fault) if fault else bench.resumed(PRETRAINING, output_dir)


# Damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def garble(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights truncated": lambda folder: cut(folder / "model.safetensors"),
    "a bit of the weights": lambda folder: garble(folder / "model.safetensors"),
    "a bit of the optimizer": lambda folder: garble(folder / "optimizer.bin"),
    "progress garbled": lambda folder: garble(folder / "progress.json"),
    "progress missing": lambda folder: (folder / "progress.json").unlink(),
    "checksums truncated": lambda folder: cut(folder / "checksums.json"),
}


def damaged_checkpoint(damage: Callable[[Path], None]) -> Callable[[Bench], Outcome]:
    """`latest` is then the one before, and says so."""
    def trial(bench: Bench) -> Outcome:
        output_dir = bench.stopped_at(UPDATES - 2)
        damage(checkpoint(output_dir, UPDATES - 2))
        outcome = bench.resumed(PRETRAINING, output_dir, says="this checkpoint is damaged, the one before it is taken")
        return outcome._replace(redone=outcome.redone + 2)  # those of the damaged one
    return trial


def refused(bench: Bench, names: str, flags: dict[str, Any], script: str = PRETRAINING) -> str:
    """What is wrong with a refusal, which is one line that names the cause."""
    process = bench.start(script, flags)
    code, said = process.code(), process.said()
    last = said.splitlines()[-1] if said else ""
    return "" if code == 2 and names in last and "Traceback" not in said else f"ended with {code}: {said[-1500:]}"


def refused_then_resumed(changed: dict[str, Any], names: str) -> Callable[[Bench], Outcome]:
    """What is refused changes nothing."""
    def trial(bench: Bench) -> Outcome:
        output_dir = bench.stopped_at(4)
        fault = refused(bench, names, bench.flags(PRETRAINING, output_dir, **{**LATEST, **changed}))
        return Outcome(fault) if fault else bench.resumed(PRETRAINING, output_dir)
    return trial


def named_damaged_checkpoint(bench: Bench) -> Outcome:
    output_dir = bench.stopped_at(4)
    garble(checkpoint(output_dir, 4) / "optimizer.bin")
    flags = bench.flags(PRETRAINING, output_dir, resume_from_checkpoint=checkpoint(output_dir, 4))
    fault = refused(bench, "optimizer.bin holds other bytes than were written", flags)
    return Outcome(fault) if fault else bench.resumed(PRETRAINING, output_dir)


def checkpoint_of_another_model(bench: Bench) -> Outcome:
    from conftest import write_model

    other = write_model(bench.fresh(), hidden_size=48, layerdrop=0.2, hidden_dropout=0.1)
    flags = bench.flags(PRETRAINING, bench.fresh(), model_name_or_path=other, max_train_steps=2)
    bench.run_to_end(PRETRAINING, flags)
    output_dir = bench.fresh()
    wrong = bench.flags(PRETRAINING, output_dir, resume_from_checkpoint=checkpoint(flags["output_dir"], 2))
    fault = refused(bench, "hidden_size was 48 and is ", wrong)
    return Outcome(fault) if fault else bench.resumed(PRETRAINING, output_dir)


def _audio(path: Path) -> int:
    return path.read_bytes().index(b"fLaC") + 4000


def _of_first(path: Path, column: str) -> int:
    """Where a value of the first clip lies in the file."""
    import datasets

    value = datasets.load_from_disk(str(path.parent))[0][column]
    return path.read_bytes().index(value.encode() if isinstance(value, str) else struct.pack("<q", value))


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, ".arrow has "),
    "missing": (Path.unlink, ".arrow is missing"),
    "a bit of the audio": (lambda path: garble(path, _audio(path)), "the prepared clip "),
    "a bit of the lengths": (lambda path: garble(path, _of_first(path, "num_samples")), ".arrow holds other bytes"),
    "a bit of a name": (lambda path: garble(path, _of_first(path, "utterance_id")), ".arrow holds other bytes"),
}


def damaged_shard(damage: Callable[[Path], None], found: str) -> Callable[[Bench], Outcome]:
    """Named at the start, or when the clip is decoded; with the shard as it was the run goes on."""
    def trial(bench: Bench) -> Outcome:
        output_dir, prepared = bench.fresh(), bench.fresh()
        shutil.copytree(bench.prepared, prepared)
        damage(next((prepared / "train").glob("*.arrow")))
        fault = refused(bench, found, bench.flags(PRETRAINING, output_dir, dataset_name=prepared))
        if fault or any(value != value or value is None for record in records(output_dir) for value in record.values()):
            return Outcome(fault or "metrics.jsonl has numbers that are none")
        return bench.resumed(PRETRAINING, output_dir)
    return trial


# Surroundings


def other_clock_and_hostname(bench: Bench) -> Outcome:
    """Files of the future and of long ago; who goes on has another name."""
    output_dir = bench.fresh()
    process = bench.start(PRETRAINING, bench.flags(PRETRAINING, output_dir))
    in_a_step(bench, process, output_dir)
    process.send(signal.SIGKILL)
    process.code()
    for path in [*output_dir.rglob("*"), *bench.prepared.rglob("*")]:
        seconds = bench.random.uniform(0, 2**31 - 1)
        os.utime(path, (seconds, seconds))
    return bench.resumed(PRETRAINING, output_dir, hostname=f"node-{bench.random.randrange(1000)}")


def other_preparation_workers(bench: Bench) -> Outcome:
    return bench.resumed(PREPROCESSING, bench.fresh(), preprocessing_num_workers=3)


def two_runs(bench: Bench) -> Outcome:
    """The second is told who has the directory, and changes nothing."""
    output_dir = bench.fresh()
    first = bench.start(PRETRAINING, bench.flags(PRETRAINING, output_dir, dataloader_num_workers=1))
    wait_until(lambda: bool(records(output_dir)), first)
    for more in (LATEST, {"overwrite_output_dir": True}):
        names = f"--output_dir {output_dir}: another run is at work in it (process {first.pid} on "
        fault = refused(bench, names, bench.flags(PRETRAINING, output_dir, **more))
        if fault:
            return Outcome(fault)
    first.code()
    return bench.resumed(PRETRAINING, output_dir)


def two_preparations(bench: Bench) -> Outcome:
    output_dir = bench.fresh()
    first = bench.start(PREPROCESSING, bench.flags(PREPROCESSING, output_dir))
    wait_until((output_dir / "unfinished" / "plan.json").exists, first)
    os.kill(first.pid, signal.SIGSTOP)
    names = f"--output_dir {output_dir}: another run is preparing it (process {first.pid} on "
    fault = refused(bench, names, bench.flags(PREPROCESSING, output_dir), PREPROCESSING)
    os.kill(first.pid, signal.SIGCONT)
    if fault or first.code() != 0:
        return Outcome(fault or f"the first ended with {first.process.exitcode}: {first.said()[-1500:]}")
    return bench.resumed(PREPROCESSING, output_dir)
