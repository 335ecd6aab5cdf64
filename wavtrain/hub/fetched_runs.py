"""A run that was pushed with its checkpoint, brought into an output directory so that it goes on there."""

import os
import shutil
from typing import Any

from huggingface_hub import HfApi

from wavtrain import InputError, checkpoint_files
from wavtrain.checkpoint_files import PROGRESS, damage, step_name
from wavtrain.durable_files import flush_tree, read_json
from wavtrain.hub.repository import LAST_CHECKPOINT, OF_THE_HUB, PUSHED, in_one_line, is_pushed, refuse_bad_token

PART = ".fetched.part"


def fetch_run(name: str, token: str | None, output_dir: str, checkpoints: str) -> None:
    """Its model and records into the directory, its checkpoint, whole or not at all, into the folder of checkpoints in it."""
    refuse_bad_token(token)
    part, checkpoints, beside = os.path.join(output_dir, PART), os.path.join(output_dir, checkpoints), None
    shutil.rmtree(part, ignore_errors=True)
    try:
        HfApi(token=token).snapshot_download(name, local_dir=part, allow_patterns=[*PUSHED, f"{LAST_CHECKPOINT}/*"])
        checkpoint = os.path.join(part, LAST_CHECKPOINT)
        step = _step_of(checkpoint, name)
        place = os.path.join(checkpoints, step_name(step))
        beside = place + checkpoint_files.PART
        os.makedirs(checkpoints, exist_ok=True)
        shutil.move(checkpoint, beside)  # which may be on another disk; what can fail comes before anything is put in its place
        for folder in (part, beside):
            flush_tree(folder)
        for entry in sorted(os.scandir(part), key=lambda each: each.name):
            if entry.is_file(follow_symlinks=False) and is_pushed(entry.name):
                os.replace(entry.path, os.path.join(output_dir, entry.name))
        os.rename(beside, place)
    except OF_THE_HUB as error:
        raise InputError(f"--resume_from_checkpoint {name} (no such path, so taken for a Hub id): {in_one_line(error, token)}"
                         ) from error
    finally:
        for folder in filter(None, (part, beside)):
            shutil.rmtree(folder, ignore_errors=True)


def _step_of(checkpoint: str, name: str) -> int:
    if not os.path.isdir(checkpoint):
        raise InputError(f"--resume_from_checkpoint {name}: that repository has no {LAST_CHECKPOINT}/, which only "
                         "--hub_strategy checkpoint pushes")
    fault = damage(checkpoint)
    progress: Any = None if fault else read_json(os.path.join(checkpoint, PROGRESS))
    step = progress.get("step") if isinstance(progress, dict) else None
    if fault or type(step) is not int or step < 0:
        raise InputError(f"--resume_from_checkpoint {name}: its {LAST_CHECKPOINT}/ is damaged ({fault or 'it has no step'}): "
                         "resume from another checkpoint")
    return step
