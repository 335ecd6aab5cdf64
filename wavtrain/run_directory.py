"""What lies in an output directory: the arguments, and checkpoints that are complete or absent."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from typing import Any

import yaml

from wavtrain import InputError
from wavtrain.durable_files import flush_folder, flush_tree, read_json, write_json, write_lines

CHECKPOINTS, METRICS, TENSORBOARD, PROGRESS = "checkpoints", "metrics.jsonl", "tensorboard", "progress.json"
MODEL_PART = ".model.part"  # a model being written into the output directory
PART, DROPPED = ".part", ".dropped"  # being written; being deleted. Neither is a checkpoint, whatever it holds
OF_THE_START = ("config", "hub_token", "overwrite_output_dir", "resume_from_checkpoint")  # say how to start, not what to run
NUM_NAMED = 3  # changed arguments that a refusal lists
NEARLY_FULL = 16 << 20  # bytes left on a disk on which writing has just failed


def checkpoint_to_resume(output_dir: str, resume_from_checkpoint: str | None, overwrite: bool) -> str | None:
    """The complete checkpoint to go on from, None for a new run. On one process only, as it tidies and may remove.

    `latest` without a checkpoint is a new run too: a job that was killed before its first one begins again when requeued.
    """
    folder = os.path.join(output_dir, CHECKPOINTS)
    wanted = resume_from_checkpoint if resume_from_checkpoint in (None, "latest") else _complete(resume_from_checkpoint)
    is_own = wanted == "latest" or (wanted and os.path.dirname(os.path.realpath(wanted)) == os.path.realpath(folder))
    if overwrite and is_own:
        raise InputError(f"--resume_from_checkpoint {resume_from_checkpoint} needs what --overwrite_output_dir removes from "
                         f"{output_dir}: give one of them")
    if overwrite:
        _remove_run(output_dir)
    elif not is_own and (os.path.exists(os.path.join(output_dir, METRICS)) or _entries(folder)):
        raise InputError(f"--output_dir {output_dir} holds a run already: --resume_from_checkpoint latest goes on with it, "
                         "--overwrite_output_dir removes it, another --output_dir keeps it")
    if not is_own:
        return wanted
    _finish_replacements(folder)
    steps = _steps(folder)
    latest = os.path.join(folder, step_name(max(steps))) if steps else None
    if wanted != "latest" and latest and os.path.realpath(wanted) != os.path.realpath(latest):
        raise InputError(f"--resume_from_checkpoint {wanted}: {latest} comes after it: go on with `latest`, "
                         "or go back with another --output_dir")
    return latest if wanted == "latest" else wanted


def save_checkpoint(output_dir: str, step: int, write_state: Callable[[str], None], progress: dict[str, Any], *,
                    is_main: bool, wait_for_everyone: Callable[[], None], keep: int) -> str:
    """Write a checkpoint beside, flush it, rename it, then drop all but the newest `keep`. Every process calls this."""
    assert keep >= 1, "the checkpoint just written is always kept"
    folder = os.path.join(output_dir, CHECKPOINTS)
    checkpoint = os.path.join(folder, step_name(step))
    part = checkpoint + PART
    if is_main:
        os.makedirs(folder, exist_ok=True)
        _remove_leftovers(folder)
        os.mkdir(part)
    wait_for_everyone()  # the folder is there and empty
    try:
        write_or_say_full(write_state, part)
        wait_for_everyone()  # all files of all processes are in it
        if is_main:
            write_json(os.path.join(part, PROGRESS), progress, indent=2)
            flush_tree(part)
            _put_in_place(part, checkpoint)
    except BaseException:  # a signal as well: the room may be needed
        if is_main:
            shutil.rmtree(part, ignore_errors=True)
        raise
    if is_main:
        for old in sorted(_steps(folder))[:-keep]:
            _drop(os.path.join(folder, step_name(old)))
    wait_for_everyone()  # nobody goes on, or ends, before the checkpoint stands
    return checkpoint


def step_name(step: int) -> str:
    """The name of a checkpoint's folder; names sort like steps."""
    return f"step_{step:08d}"


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
    write_lines(os.path.join(output_dir, "arguments.yaml"), text.rstrip("\n").split("\n"))


def _plain(value: Any) -> Any:
    """As JSON and YAML give it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _complete(checkpoint: str) -> str:
    checkpoint = checkpoint.rstrip("/") or checkpoint
    if checkpoint.endswith((PART, DROPPED)) or not os.path.isfile(os.path.join(checkpoint, PROGRESS)):
        raise InputError(f"--resume_from_checkpoint {checkpoint} is no complete checkpoint (a folder with {PROGRESS}): "
                         f"name one like OUTPUT_DIR/{CHECKPOINTS}/{step_name(1000)}, or `latest`")
    return checkpoint


def _entries(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if re.fullmatch(r"step_\d{8,}", name.removesuffix(PART).removesuffix(DROPPED)))


def _steps(folder: str) -> list[int]:
    """The steps of complete checkpoints."""
    names = [name for name in _entries(folder) if not name.endswith((PART, DROPPED))]
    return [int(name.removeprefix("step_")) for name in names if os.path.isfile(os.path.join(folder, name, PROGRESS))]


def _put_in_place(part: str, checkpoint: str) -> None:
    """No folder can be renamed onto another, so an older checkpoint of the same step steps aside for a moment."""
    try:
        if os.path.isdir(checkpoint):
            os.rename(checkpoint, checkpoint + DROPPED)
        os.rename(part, checkpoint)
    finally:
        if not os.path.isdir(checkpoint) and os.path.isdir(checkpoint + DROPPED):
            os.rename(checkpoint + DROPPED, checkpoint)
    flush_folder(os.path.dirname(checkpoint))
    shutil.rmtree(checkpoint + DROPPED, ignore_errors=True)


def _finish_replacements(folder: str) -> None:
    """After a kill between the two renames above: leftovers are removed before a save, so both of them are whole."""
    for name in _entries(folder):
        checkpoint = os.path.join(folder, name.removesuffix(DROPPED))
        if name.endswith(DROPPED) and not os.path.exists(checkpoint) and os.path.isfile(f"{checkpoint}{PART}/{PROGRESS}"):
            os.rename(checkpoint + PART, checkpoint)


def _drop(checkpoint: str) -> None:
    """Away with its name first, so that a half-deleted one is never taken for complete."""
    os.rename(checkpoint, checkpoint + DROPPED)
    shutil.rmtree(checkpoint + DROPPED, ignore_errors=True)


def _remove_leftovers(folder: str) -> None:
    for name in _entries(folder):
        if name.endswith((PART, DROPPED)):
            shutil.rmtree(os.path.join(folder, name))


def _remove_run(output_dir: str) -> None:
    """What the run made, from inside its folders, as these may be links to another disk; nothing else."""
    folder = os.path.join(output_dir, CHECKPOINTS)
    _remove_leftovers(folder)
    for name in _entries(folder):
        _drop(os.path.join(folder, name))
    doomed = [os.path.join(output_dir, METRICS)] if os.path.lexists(os.path.join(output_dir, METRICS)) else []
    for parent, _, names in os.walk(os.path.join(output_dir, TENSORBOARD)):
        doomed += [os.path.join(parent, name) for name in names]
    for path in doomed:
        os.remove(path)


def write_or_say_full(write_state: Callable[[str], None], part: str) -> None:
    """torch and safetensors have errors of their own for a full disk."""
    try:
        write_state(part)
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if isinstance(error, OSError) or (full not in str(error) and shutil.disk_usage(part).free > NEARLY_FULL):
            raise
        raise OSError(errno.ENOSPC, full, part) from error
