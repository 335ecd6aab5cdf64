"""What a run pushes, and when: --hub_strategy. Whatever becomes of it, the run goes on; its end says what is not there."""

import contextlib
import fnmatch
import logging
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import yaml

from wavtrain.hub.repository import LAST_CHECKPOINT, NOT_PUSHED, PUSHED, Repository, is_pushed, name_of
from wavtrain.hub.uploads import Uploads, linked
from wavtrain.run_directory import ARGUMENTS, write_arguments
from wavtrain.run_options import OF_THE_MACHINE

STAGE = ".pushed.part"
SHARED = "shared"  # a folder for what a user is to push in place of a file of the run
GRACE = 5.0  # seconds that an upload still has when the run is told to stop

logger = logging.getLogger(__name__)


@dataclass
class _State:
    """What could be pushed: the newest step, and whether the model has changed since the last push."""
    step: int | None = None
    checkpoint: str | None = None
    is_new: bool = False

    def __str__(self) -> str:
        return "the model" if self.step is None else f"step {self.step}"


def repository_of(options: Any) -> Repository:
    """`options` are the flags of the Hub and output_dir."""
    return Repository(options.hub_model_id or name_of(options.output_dir), "model", options.hub_token, options.hub_private_repo)


class Publication:
    """The way of one run to its repository; of the main process."""

    def __init__(self, options: Any, write_card: Callable[[str], None]) -> None:
        """`options` as of repository_of; `write_card` is called with the name of the repository."""
        self.options, self.write_card = options, write_card
        self.repository = repository_of(options)
        self.repository.refuse_if_closed(tells=False)  # the look before the work has told it
        self.uploads = Uploads(self.repository, os.path.join(options.output_dir, STAGE))
        self._now, self._begun = _State(), _State()
        self.has_model = False  # of this run; what lies there before may be an older one's

    @property
    def with_checkpoint(self) -> bool:
        return self.options.hub_strategy == "checkpoint"

    def goes_on(self, step: int, checkpoint: str) -> None:
        """What is there already of a run that is resumed."""
        self._now.step, self._now.checkpoint = step, checkpoint

    def served(self) -> None:
        """The model in the output directory is another one."""
        self.has_model = self._now.is_new = True

    def saved(self, step: int, checkpoint: str, is_last: bool) -> None:
        """A checkpoint stands. Its push begins, unless the last one is still at work, or finish() follows, or is waited for."""
        self._now.step, self._now.checkpoint = step, checkpoint
        if not self.uploads.is_busy():
            self._close_last()
            if self._is_wanted() and not is_last:
                self._begin()

    def finish(self) -> None:
        """Wait for the upload at work, push what is there now, say where it is or how to get it there."""
        print(f"pushing to {self.repository.name}", flush=True)
        try:
            self.uploads.outcome()
            self._begin()
            outcome = self.uploads.outcome()
        except BaseException:  # told to stop while it waits
            self._tell_what_is_missing("stopped before its end")
            raise
        if outcome is None or outcome["fault"]:
            return self._tell_what_is_missing(outcome["fault"] if outcome else "it could not be begun")
        _tell(outcome)
        print(f"{outcome['url']}: the model is there")

    def leave(self) -> None:
        """The run ends before its end: the upload at work has a few seconds."""
        outcome = self.uploads.outcome(GRACE)
        if (outcome and outcome["fault"]) or (self._is_wanted() and self._begun.step != self._now.step):
            self._tell_what_is_missing(outcome["fault"] if outcome and outcome["fault"] else "not begun")

    def stop(self) -> None:
        """After a fault of the run: nothing is waited for."""
        self.uploads.outcome(0)

    def _is_wanted(self) -> bool:
        strategy = self.options.hub_strategy
        is_due = self._now.is_new if strategy == "best" else strategy != "end"
        return is_due and (self.with_checkpoint or bool(self._pushed_names("model*")))

    def _begin(self) -> None:
        """What only reports must not stop a run: a disk too full for a snapshot, no process to be had."""
        try:
            self.write_card(self.repository.name)
            self.uploads.begin(str(self._now), self._fill)
            self._begun, self._now.is_new = replace(self._now), False
        except OSError as error:
            logger.warning("%s is not pushed: %s", self._now, error)

    def _close_last(self) -> None:
        outcome = self.uploads.outcome()
        if outcome is not None:
            _tell(outcome)
        if outcome is not None and outcome["fault"]:
            self._now.is_new = True
            logger.warning("%s is not on the Hub (%s: %s); the run goes on and tries again", self._begun,
                           self.repository.name, outcome["fault"])

    def _fill(self, folder: str) -> None:
        """A snapshot: files that are renamed into their place are linked, what grows or may be edited is copied."""
        for name in set(self._pushed_names()) - {ARGUMENTS}:
            keep = linked if name.endswith(".safetensors") else shutil.copyfile
            keep(os.path.join(self.options.output_dir, name), os.path.join(folder, name))
        self._share_arguments(folder)
        if self.with_checkpoint and self._now.checkpoint:
            shutil.copytree(self._now.checkpoint, os.path.join(folder, LAST_CHECKPOINT), copy_function=linked)

    def _share_arguments(self, folder: str) -> None:
        """What others can run, who have another machine and no right to push here."""
        with open(os.path.join(self.options.output_dir, ARGUMENTS), encoding="utf-8") as file:
            arguments = yaml.safe_load(file)
        write_arguments(folder, {name: value for name, value in arguments.items() if name not in OF_THE_MACHINE})

    def _pushed_names(self, pattern: str = "*") -> list[str]:
        names = (entry.name for entry in os.scandir(self.options.output_dir) if entry.is_file())
        return sorted(name for name in fnmatch.filter(names, pattern)
                      if is_pushed(name) and (self.has_model or not name.endswith(".safetensors")))

    def _tell_what_is_missing(self, fault: str) -> None:
        folder = self.options.output_dir
        private = ["--private"] if self.options.hub_private_repo else []
        names = [f"--include={name}" for name in PUSHED] + [f"--exclude={name}" for name in ("*/*", *NOT_PUSHED, ARGUMENTS)]
        parts, shared = [[folder, ".", *private, *names]], os.path.join(folder, SHARED)
        with contextlib.suppress(OSError):  # of a disk that is full: then without them
            os.makedirs(shared, exist_ok=True)
            self._share_arguments(shared)
            parts.append([os.path.join(shared, ARGUMENTS), ARGUMENTS])
        if self.with_checkpoint and self._now.checkpoint:
            parts.append([self._now.checkpoint, LAST_CHECKPOINT])
        command = " && ".join(shlex.join(["hf", "upload", self.repository.name, *part]) for part in parts)
        logger.warning("%s is not on the Hub (%s: %s); it is in %s, and this pushes it:\n  %s", self._now,
                       self.repository.name, fault, folder, command)


class NoPublication:
    """Without --push_to_hub, and on all processes but the main one."""

    has_model = False

    def goes_on(self, step: int, checkpoint: str) -> None:
        """Nothing."""

    def served(self) -> None:
        """Nothing."""

    def saved(self, step: int, checkpoint: str, is_last: bool) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


def _tell(outcome: dict[str, Any]) -> None:
    for note in outcome["notes"]:
        logger.warning("note: %s", note)
