"""The folder of checkpoints: names that say what is complete, renames that keep it so, checksums that show what is damaged."""

import errno
import logging
import os
import re
import shutil

import xxhash

from wavtrain import InputError
from wavtrain.durable_files import flush_folder, read_json, write_json

PROGRESS, CHECKSUMS = "progress.json", "checksums.json"  # of each checkpoint
PART, DROPPED = ".part", ".dropped"  # being written; being deleted. Neither is a checkpoint, whatever it holds
BLOCK = 16 << 20  # bytes read at a time

logger = logging.getLogger(__name__)


def step_name(step: int) -> str:
    """The name of a checkpoint's folder; names sort like steps."""
    return f"step_{step:08d}"


def newest_whole(folder: str) -> str | None:
    """The newest checkpoint that is as it was written; damaged ones after it step aside, and go with the next save."""
    damaged = []
    for step in sorted(map(_step, _named(folder)), reverse=True):
        checkpoint = os.path.join(folder, step_name(step))
        fault = damage(checkpoint)
        if fault is None:
            for each in damaged:
                _step_aside(each)
            return checkpoint
        logger.warning("%s: %s: this checkpoint is damaged, the one before it is taken", checkpoint, fault)
        damaged.append(checkpoint)
    if damaged:
        raise InputError(f"--resume_from_checkpoint latest: no checkpoint in {folder} is as it was written: restore one of "
                         "them, or begin again with another --output_dir")
    return None


def entries(folder: str) -> list[str]:
    """Checkpoints, and what is being written or deleted."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if re.fullmatch(r"step_\d{8,}", name.removesuffix(PART).removesuffix(DROPPED)))


def _named(folder: str) -> list[str]:
    return [name for name in entries(folder) if not name.endswith((PART, DROPPED))]


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def steps(folder: str) -> list[int]:
    """The steps of complete checkpoints."""
    return [_step(name) for name in _named(folder) if os.path.isfile(os.path.join(folder, name, PROGRESS))]


def put_in_place(part: str, checkpoint: str) -> None:
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


def finish_replacements(folder: str) -> None:
    """After a kill between the two renames above: leftovers are removed before a save, so both of them are whole."""
    for name in entries(folder):
        checkpoint = os.path.join(folder, name.removesuffix(DROPPED))
        if name.endswith(DROPPED) and not os.path.exists(checkpoint) and os.path.isfile(f"{checkpoint}{PART}/{PROGRESS}"):
            os.rename(checkpoint + PART, checkpoint)


def drop(checkpoint: str) -> None:
    """Away with its name first, so that a half-deleted one is never taken for complete."""
    _step_aside(checkpoint)
    shutil.rmtree(checkpoint + DROPPED, ignore_errors=True)


def _step_aside(checkpoint: str) -> None:
    shutil.rmtree(checkpoint + DROPPED, ignore_errors=True)
    os.rename(checkpoint, checkpoint + DROPPED)


def remove_leftovers(folder: str) -> None:
    """What a kill left half written or half deleted."""
    for name in entries(folder):
        if name.endswith((PART, DROPPED)):
            shutil.rmtree(os.path.join(folder, name))


def write_checksums(folder: str) -> None:
    """What every file below the folder holds, so that `damage` can tell whether it still does."""
    names = [os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names]
    known = {name: _checksum(os.path.join(folder, name)) for name in sorted(names)}
    write_json(os.path.join(folder, CHECKSUMS), known, indent=1)


def damage(folder: str) -> str | None:
    """Which file of the folder is not what was written, if any is not. What may pass, as a network's errors, is raised."""
    name = CHECKSUMS
    try:
        known = read_json(os.path.join(folder, CHECKSUMS))
        if known is None:
            logger.warning("%s: has no %s (an older version wrote it), so it is not checked", folder, CHECKSUMS)
            return None if os.path.isfile(os.path.join(folder, PROGRESS)) else f"{PROGRESS} is missing"
        for name, (size, digest) in known.items():
            found = _checksum(os.path.join(folder, name))
            if found[0] != size:
                return f"{name} has {found[0]} bytes, {size} were written"
            if found[1] != digest:
                return f"{name} holds other bytes than were written"
    except (ValueError, TypeError, AttributeError):
        return f"{CHECKSUMS} is damaged"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{name} cannot be read ({error.strerror})"
    return None


def _checksum(path: str) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
