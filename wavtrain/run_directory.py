"""What lies in an output directory: the arguments, and checkpoints that are complete or absent."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import yaml

from wavtrain import InputError
from wavtrain.checkpoint_files import (
    DROPPED,
    PART,
    PROGRESS,
    damage,
    drop,
    entries,
    finish_replacements,
    newest_whole,
    put_in_place,
    remove_leftovers,
    step_name,
    steps,
    write_checksums,
)
from wavtrain.durable_files import flush_tree, holder, lock, read_json, write_json, write_lines, write_or_say_full

ARGUMENTS, CHECKPOINTS, METRICS, TENSORBOARD = "arguments.yaml", "checkpoints", "metrics.jsonl", "tensorboard"
LOCK = ".run.lock"  # held by the main process of a run
MODEL_PART = ".model.part"  # a model being written into the output directory
# say how to start, not what to run
OF_THE_START = ("check_only", "config", "hub_token", "overwrite_output_dir", "resume_from_checkpoint")
NUM_NAMED = 3  # changed arguments that a refusal lists


@contextmanager
def held(output_dir: str) -> Iterator[None]:
    """The directory, made if need be, kept from other runs. Where nothing is done in it nothing is left."""
    made, folder = [], os.path.abspath(output_dir)
    while not os.path.lexists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: no folder can be made there ({error.strerror})") from error
    path = os.path.join(output_dir, LOCK)
    taken = lock(path, waits_for_hosts=True)
    if taken is None:
        raise InputError(f"--output_dir {output_dir}: another run is at work in it ({holder(path)}): wait for its end, or give "
                         "another --output_dir")
    try:
        yield
    finally:
        is_bare = os.path.isdir(output_dir) and os.listdir(output_dir) == [LOCK]
        if is_bare:
            os.remove(path)
        taken.release()
        with suppress(OSError):  # another run may be there by now
            for folder in made if is_bare else ():
                os.rmdir(folder)


def checkpoint_to_resume(output_dir: str, resume_from_checkpoint: str | None, overwrite: bool) -> str | None:
    """The complete checkpoint to go on from, None for a new run. On one process only, as it tidies and may remove.

    `latest` without a checkpoint is a new run too: a job that was killed before its first one begins again when requeued.
    """
    wanted, is_from_here = refuse_other_runs(output_dir, resume_from_checkpoint, overwrite)
    if wanted not in (None, "latest") and (fault := damage(wanted)):
        raise InputError(f"--resume_from_checkpoint {wanted}: {fault}, it is damaged: resume from another checkpoint")
    folder = os.path.join(output_dir, CHECKPOINTS)
    if overwrite:
        _remove_run(output_dir)
    if is_from_here:
        finish_replacements(folder)
    if wanted == "latest":
        return newest_whole(folder)
    newest = max(steps(folder), default=None) if is_from_here else None
    if newest is not None and step_name(newest) != os.path.basename(os.path.realpath(wanted)):
        raise InputError(f"--resume_from_checkpoint {wanted}: {os.path.join(folder, step_name(newest))} comes after it: go on "
                         "with `latest`, or go back with another --output_dir")
    return wanted


def refuse_other_runs(output_dir: str, resume_from_checkpoint: str | None, overwrite: bool) -> tuple[str | None, bool]:
    """Which checkpoint is meant, and whether it is of the run that lies here, where no other may lie. Nothing is touched."""
    wanted = resume_from_checkpoint
    if wanted not in (None, "latest"):
        wanted = wanted.rstrip("/") or wanted
        if wanted.endswith((PART, DROPPED)) or not os.path.isfile(os.path.join(wanted, PROGRESS)):
            raise InputError(f"--resume_from_checkpoint {wanted} is no complete checkpoint (a folder with {PROGRESS}): "
                             f"name one like OUTPUT_DIR/{CHECKPOINTS}/{step_name(1000)}, or `latest`")
    is_from_here = wanted == "latest" or bool(wanted and is_own(wanted, output_dir))
    if overwrite and is_from_here:
        raise InputError(f"--resume_from_checkpoint {resume_from_checkpoint} needs what --overwrite_output_dir removes from "
                         f"{output_dir}: give one of them")
    holds_run = os.path.exists(os.path.join(output_dir, METRICS)) or entries(os.path.join(output_dir, CHECKPOINTS))
    if holds_run and not overwrite and not is_from_here:
        raise InputError(f"--output_dir {output_dir} holds a run already: --resume_from_checkpoint latest goes on with it, "
                         "--overwrite_output_dir removes it, another --output_dir keeps it")
    return wanted, is_from_here


def is_own(checkpoint: str, output_dir: str) -> bool:
    """Whether it lies where runs in this directory save theirs, which may be a link to another disk."""
    return os.path.dirname(os.path.realpath(checkpoint)) == os.path.realpath(os.path.join(output_dir, CHECKPOINTS))


def save_checkpoint(output_dir: str, step: int, write_state: Callable[[str], None], progress: dict[str, Any], *,
                    is_main: bool, wait_for_everyone: Callable[[], None], keep: int) -> str:
    """Write a checkpoint beside, flush it, rename it, then drop all but the newest `keep`. Every process calls this."""
    assert keep >= 1, "the checkpoint just written is always kept"
    folder = os.path.join(output_dir, CHECKPOINTS)
    checkpoint = os.path.join(folder, step_name(step))
    part = checkpoint + PART
    if is_main:
        os.makedirs(folder, exist_ok=True)
        remove_leftovers(folder)
        os.mkdir(part)
    wait_for_everyone()  # the folder is there and empty
    try:
        write_or_say_full(write_state, part)
        wait_for_everyone()  # all files of all processes are in it
        if is_main:
            write_json(os.path.join(part, PROGRESS), progress, indent=2)
            write_checksums(part)
            flush_tree(part)
            put_in_place(part, checkpoint)
    except BaseException:  # a signal as well: the room may be needed
        if is_main:
            shutil.rmtree(part, ignore_errors=True)
        raise
    if is_main:
        for old in sorted(steps(folder))[:-keep]:
            drop(os.path.join(folder, step_name(old)))
    wait_for_everyone()  # nobody goes on, or ends, before the checkpoint stands
    return checkpoint


def read_progress(checkpoint: str) -> dict[str, Any]:
    """What save_checkpoint was given as `progress`."""
    path = os.path.join(checkpoint, PROGRESS)
    try:
        progress = read_json(path)
    except (ValueError, OSError):
        progress = None
    if not isinstance(progress, dict):
        raise InputError(f"--resume_from_checkpoint {checkpoint}: {path} is missing or damaged: resume from another checkpoint")
    return progress


def is_like(progress: dict[str, Any], example: dict[str, Any]) -> bool:
    """Whether it has the tables and the counts of the example."""
    return all(isinstance(progress.get(name), dict) if isinstance(value, dict)
               else type(progress.get(name)) in (int, float) and 0 <= progress[name] < float("inf")
               for name, value in example.items())


def refuse_changed_arguments(saved: dict[str, Any], given: dict[str, Any], free: Collection[str], checkpoint: str) -> None:
    """A resumed run is the same run: only the arguments in `free` may differ from those of the checkpoint."""
    changed = []
    for name in sorted({*saved, *given} - {*free, *OF_THE_START}):
        old, new = _plain(saved.get(name)), _plain(given.get(name))
        if old != new:
            changed.append(f"--{name} was {json.dumps(old, ensure_ascii=False)} and is {json.dumps(new, ensure_ascii=False)}")
    if changed:
        more = f" and {len(changed) - NUM_NAMED} more" if len(changed) > NUM_NAMED else ""
        raise InputError(f"--resume_from_checkpoint {checkpoint}: {', '.join(changed[:NUM_NAMED])}{more}: "
                         "give the old values, or begin another run with another --output_dir")


def write_arguments(output_dir: str, values: dict[str, Any]) -> None:
    """arguments.yaml: `--config output_dir/arguments.yaml` repeats the run. What only says how this start began stays out."""
    plain = {name: _plain(value) for name, value in values.items() if name not in OF_THE_START}
    plain = {name: None if value == [] else value for name, value in plain.items()}  # no flag takes zero words
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=float("inf"))
    write_lines(os.path.join(output_dir, ARGUMENTS), text.rstrip("\n").split("\n"))


def _plain(value: Any) -> Any:
    """As JSON and YAML give it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _remove_run(output_dir: str) -> None:
    """What the run made, from inside its folders, as these may be links to another disk; nothing else."""
    folder = os.path.join(output_dir, CHECKPOINTS)
    remove_leftovers(folder)
    for name in entries(folder):
        drop(os.path.join(folder, name))
    doomed = [os.path.join(output_dir, METRICS)] if os.path.lexists(os.path.join(output_dir, METRICS)) else []
    for parent, _, names in os.walk(os.path.join(output_dir, TENSORBOARD)):
        doomed += [os.path.join(parent, name) for name in names]
    for path in doomed:
        os.remove(path)
