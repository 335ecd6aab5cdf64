"""A run in any tracker of accelerate: who it is, its arguments once, its numbers."""

import difflib
import os
from collections.abc import Sequence
from typing import Any, Protocol

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from wavtrain import InputError
from wavtrain.reporting.examples import Example

PROJECT = "wavtrain"


class TrackerOptions(Protocol):
    """Flags of the same names."""

    output_dir: str
    report_to: Sequence[str] | None
    run_name: str | None
    tracker_project: str | None
    tracker_tags: Sequence[str]


def tracker_names(report_to: Sequence[str] | None) -> list[str]:
    """The trackers that --report_to means; unasked there is none, as metrics.jsonl holds everything."""
    installed = sorted(str(each) for each in get_available_trackers())
    if list(report_to or ["none"]) in (["none"], ["all"]):
        return installed if report_to and "all" in report_to else []
    for name in report_to:
        if name in ("all", "none"):
            raise InputError(f"--report_to {name} stands alone")
        if name not in LOGGER_TYPE_TO_CLASS:
            close = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            raise InputError(f"--report_to {name}: known are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, all and none"
                             + (f" (is {close[0]} meant?)" if close else ""))
        if name not in installed:
            raise InputError(f"--report_to {name}: its package is not installed: pip install {name}")
    return list(dict.fromkeys(report_to))


class RunTracker:
    """What accelerate's interface can do: start, arguments, numbers, end. All is called in one thread, start first."""

    project_variable = ""  # of the user's environment; goes before PROJECT
    takes_steps_twice = False  # as a resumed run repeats what was told after its checkpoint

    def __init__(self, name: str, options: TrackerOptions, done_steps: int = 0, run_id: str | None = None):
        """`run_id`: by which the tracker knows the run that is resumed. The attribute is None where it needs none."""
        self.name, self.output_dir, self.done_steps, self.run_id = name, options.output_dir, done_steps, run_id
        self.tags = list(options.tracker_tags)
        self.run_name = options.run_name or os.path.basename(os.path.abspath(options.output_dir))
        self.project = options.tracker_project or os.environ.get(self.project_variable) or PROJECT
        self.is_shown = False
        self.tracker: GeneralTracker | None = None

    def start(self, arguments: dict[str, Any]) -> None:
        """The run is there under its name, or goes on."""
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        folder = (self.output_dir,) if kind.requires_logging_directory else ()
        self.tracker = kind(self.project, *folder, **self.keywords())
        self.tracker.start()
        self.store(arguments)

    def keywords(self) -> dict[str, Any]:
        """What the tracker's own start is told beside the project."""
        return {}

    def store(self, arguments: dict[str, Any]) -> None:
        """They are simple values."""
        self.tracker.store_init_configuration({**arguments, "run_name": self.run_name, "tracker_tags": " ".join(self.tags)})

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers of a step."""
        self.tracker.log(values, step=step)

    def show(self, step: int, examples: list[Example]) -> None:
        """Utterances of a validation; the first time also how they sound."""

    def finish(self, is_well: bool) -> None:
        """The last words. `is_well`: the run came to its end."""
        self.tracker.finish()
