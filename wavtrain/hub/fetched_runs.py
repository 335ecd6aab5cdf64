"""A run that was pushed with its checkpoint, brought into an output directory so that it goes on there."""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

from wavtrain import InputError, checkpoint_files
from wavtrain.checkpoint_files import PROGRESS, damage, step_name
from wavtrain.durable_files import flush_tree, is_locked, lock, read_json, write_json
from wavtrain.hub.repository import (
    LAST_CHECKPOINT,
    OF_THE_HUB,
    PUSHED,
    in_one_line,
    is_final,
    is_pushed,
    patient_api,
    refuse_bad_token,
)

PART = ".fetched.part"
SOURCE = ".source"  # in it: of which repository it is a part, and of which revision
FETCHING = ".fetching.lock"
SECONDS_BETWEEN_LOOKS = 0.5


class Found(NamedTuple):
    """A revision of a repository, and the size of each file that makes a run."""

    revision: str
    sizes: dict[str, int | None]


def found_run(name: str, token: str | None) -> Found:
    """The newest there is, if there is a checkpoint in it."""
    refuse_bad_token(token)
    try:
        about = patient_api(token).model_info(name, files_metadata=True)
    except OF_THE_HUB as error:
        who = "; if it is private, --hub_token or `hf auth login` says who you are" if is_final(error) else ""
        raise InputError(f"--resume_from_checkpoint {name} (no such path, so taken for a Hub id): {in_one_line(error, token)}"
                         f"{who}") from error
    sizes = {each.rfilename: each.size for each in about.siblings or ()
             if each.rfilename.startswith(f"{LAST_CHECKPOINT}/") or ("/" not in each.rfilename and is_pushed(each.rfilename))}
    if f"{LAST_CHECKPOINT}/{PROGRESS}" not in sizes:
        raise InputError(f"--resume_from_checkpoint {name}: that repository has no {LAST_CHECKPOINT}/, which only "
                         "--hub_strategy checkpoint pushes")
    return Found(about.sha, sizes)


def fetching(output_dir: str) -> ExitStack:
    """Until this is closed wait_for_fetch waits."""
    path, kept = os.path.join(output_dir, FETCHING), ExitStack()
    kept.callback(lock(path).release)
    kept.callback(os.remove, path)
    return kept


def wait_for_fetch(output_dir: str) -> None:
    """Of the processes that do not fetch. No collective: those time out."""
    while is_locked(os.path.join(output_dir, FETCHING)):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def fetch_run(name: str, token: str | None, output_dir: str, checkpoints: str) -> None:
    """Its model and records into the directory, its checkpoint, whole or not at all, into the folder of checkpoints in it.

    Files that are whole when a connection breaks are kept, and the next try goes on with them.
    """
    found, part = found_run(name, token), os.path.join(output_dir, PART)
    source = {"repository": name, "revision": found.revision}
    is_cut = any(found.sizes[file] not in (None, size) for file, size in _sizes(part, found.sizes).items())
    if _source_of(part) != source or is_cut:  # as after a power cut
        drop_part(output_dir)
        write_json(os.path.join(part, SOURCE), source)
    try:
        patient_api(token).snapshot_download(name, revision=found.revision, local_dir=part,
                                             allow_patterns=[*PUSHED, f"{LAST_CHECKPOINT}/*"])
        if lacking := sorted(found.sizes.keys() - _sizes(part, found.sizes)):
            raise OSError(f"{lacking[0]} did not come")  # the library takes a folder as it is when it loses the Hub
        _put_in_place(part, name, output_dir, os.path.join(output_dir, checkpoints))
    except OF_THE_HUB as error:
        fault = f"--resume_from_checkpoint {name}: {in_one_line(error, token)}"
        if is_final(error):
            drop_part(output_dir)
            raise InputError(fault) from error
        raise InputError(f"{fault}; what came is kept, and the same command goes on with it") from error
    except InputError:  # what is damaged here may be whole there
        drop_part(output_dir)
        raise
    drop_part(output_dir)


def drop_part(output_dir: str) -> None:
    """What was fetched and is not in its place."""
    shutil.rmtree(os.path.join(output_dir, PART), ignore_errors=True)


def _sizes(part: str, names: Iterable[str]) -> dict[str, int]:
    """Of those files that are there."""
    paths = {name: os.path.join(part, name) for name in names}
    return {name: os.path.getsize(path) for name, path in paths.items() if os.path.isfile(path)}


def _source_of(part: str) -> Any:
    try:
        return read_json(os.path.join(part, SOURCE))
    except ValueError:
        return None


def _put_in_place(part: str, name: str, output_dir: str, checkpoints: str) -> None:
    checkpoint = os.path.join(part, LAST_CHECKPOINT)
    place = os.path.join(checkpoints, step_name(_step_of(checkpoint, name)))
    beside = place + checkpoint_files.PART
    os.makedirs(checkpoints, exist_ok=True)
    try:
        shutil.move(checkpoint, beside)  # which may be on another disk; what can fail comes before anything is put in its place
        for folder in (part, beside):
            flush_tree(folder)
        for entry in sorted(os.scandir(part), key=lambda each: each.name):
            if entry.is_file(follow_symlinks=False) and is_pushed(entry.name):
                os.replace(entry.path, os.path.join(output_dir, entry.name))
        os.rename(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _step_of(checkpoint: str, name: str) -> int:
    fault = damage(checkpoint)
    progress: Any = None if fault else read_json(os.path.join(checkpoint, PROGRESS))
    step = progress.get("step") if isinstance(progress, dict) else None
    if fault or type(step) is not int or step < 0:
        raise InputError(f"--resume_from_checkpoint {name}: its {LAST_CHECKPOINT}/ is damaged ({fault or 'it has no step'}): "
                         "resume from another checkpoint")
    return step
