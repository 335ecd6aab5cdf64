"""One record -> the progress bar, metrics.jsonl, and the trackers that were asked for."""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from wavtrain.durable_files import read_json, read_json_lines, write_json, write_lines
from wavtrain.progress import progress_bar
from wavtrain.reporting.errands import ENDING, STARTING, Errands
from wavtrain.reporting.examples import examples_of
from wavtrain.reporting.known_trackers import KNOWN
from wavtrain.reporting.trackers import RunTracker, TrackerOptions, tracker_names

METRICS = "metrics.jsonl"
TRACKERS, TOLD = "trackers.json", "told_up_to"  # by what ids they know the run, and to which step
SPOKEN = {"loss": "loss {:.3g}", "wer": "WER {:.1%}", "cer": "CER {:.1%}", "contrastive_accuracy": "accuracy {:.1%}",
          "code_perplexity": "perplexity {:.3g}", "gradient_norm": "gradient norm {:.3g}",
          "audio_seconds_per_second": "{:.3g} audio-s/s", "audio_hours": "{:,.2f} h heard"}  # the rest is in metrics.jsonl
LONGEST_TEXT = 120  # characters of an utterance in the terminal

logger = logging.getLogger(__name__)


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    """The records of a run, also of one that was killed while it wrote one."""
    return read_json_lines(os.path.join(output_dir, METRICS))


class Tracking:
    """Where a run's numbers go. The main process writes them; on the others every call does nothing.

    The trackers are built here and not by Accelerator(log_with=...): each has a thread, as one that fails must leave
    without the others, and one that hangs must not hold up the run.
    """

    def __init__(self, accelerator: Accelerator, options: TrackerOptions, total_steps: int, done_steps: int,
                 arguments: dict[str, Any]) -> None:
        names = tracker_names(options.report_to)  # refused on every process, so that none waits for another
        self.is_main = accelerator.is_main_process
        if not self.is_main:
            return
        records = read_metrics(options.output_dir) if done_steps else []
        path = os.path.join(options.output_dir, METRICS)
        write_lines(path, [_strict(record) for record in records if record.get("step", 0) <= done_steps])
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (stays open as long as the run)
        _hide_tokens(sys.argv)
        self._hook, threading.excepthook = threading.excepthook, _ended_thread  # TensorBoard writes in a thread of its own
        recorded = max((record.get("step", 0) for record in records), default=0)
        self._start(names, options, done_steps, recorded, arguments)
        self._heard: list[str] = []
        self._bar = progress_bar(total_steps, "steps", "training", done=done_steps)

    def _start(self, names: list[str], options: TrackerOptions, done_steps: int, recorded: int,
               arguments: dict[str, Any]) -> None:
        self._ids_path, self._ids_lock = os.path.join(options.output_dir, TRACKERS), threading.Lock()
        self._ids = _known_ids(self._ids_path) if done_steps else {}
        told = self._ids.get(TOLD)  # to trackers, by a run that was killed; metrics.jsonl forgets it with the first resume
        self._told = self._ids[TOLD] = max(recorded, told if isinstance(told, int) else 0)
        if os.path.exists(self._ids_path):
            write_json(self._ids_path, self._ids)
        known = {key: value if isinstance(value, (bool, int, float, str)) else str(value)
                 for key, value in arguments.items() if not key.endswith("token")}
        self._trackers = {name: KNOWN.get(name, RunTracker)(name, options, done_steps, self._ids.get(name)) for name in names}
        self._resumed = {name for name, tracker in self._trackers.items() if tracker.run_id}
        self._errands = {name: Errands(name, partial(self._begin, tracker, known)) for name, tracker in self._trackers.items()}
        deadline = time.monotonic() + STARTING
        for errands in self._errands.values():
            errands.wait_for_start(deadline)

    def _begin(self, tracker: RunTracker, arguments: dict[str, Any]) -> None:
        tracker.start(arguments)
        if tracker.run_id:
            with self._ids_lock:
                self._ids[tracker.name] = tracker.run_id
                write_json(self._ids_path, self._ids)

    def record(self, phase: str, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, on disk when this returns; what is not finite becomes null, for trackers nothing."""
        if not self.is_main:
            return
        values = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        self._write(_strict({"phase": phase, "step": step, **values}))
        finite = {f"{phase}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._tell(step, lambda tracker: tracker.log(finite, step))
        spoken = ", ".join(text.format(values[name]) for name, text in SPOKEN.items() if name in values)
        if phase == "train":
            self._bar.set_postfix_str(spoken, refresh=False)
        else:
            tqdm.write("\n".join([f"step {step} {phase}: {spoken}", *self._heard]), file=sys.stderr)
            self._heard = []

    def _tell(self, step: int, call: Callable[[RunTracker], None]) -> None:
        """A resumed run repeats steps, to the bit: trackers that would show both do not get them again."""
        for name, tracker in self._trackers.items():
            if step > self._told or tracker.takes_steps_twice or name not in self._resumed:
                self._errands[name].send(partial(call, tracker))

    def show(self, step: int, clips: Any, rows: Sequence[int], references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """A few utterances of a validation, always the same: to the trackers, one to the terminal below its record."""
        if not self.is_main:
            return
        examples = examples_of(clips, rows, references, hypotheses)
        self._tell(step, lambda tracker: _show(tracker, step, examples))
        self._heard = [f"  said        {examples[0].reference[:LONGEST_TEXT]}",
                       f"  recognised  {examples[0].hypothesis[:LONGEST_TEXT]}"]

    def _write(self, line: str) -> None:
        rest = f"{line}\n".encode()
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def advance(self, step: int) -> None:
        """The bar goes to this step."""
        if self.is_main:
            self._bar.update(step - self._bar.n)

    def close(self, is_well: bool = True) -> None:
        """The last words of every tracker, for which it waits a minute at most; a second call does nothing."""
        if not self.is_main or self._file.closed:
            return
        self._bar.close()
        for name, errands in self._errands.items():
            errands.hurry(partial(self._trackers[name].finish, is_well))
        deadline = time.monotonic() + ENDING
        for errands in self._errands.values():
            errands.wait_for_end(deadline)
        self._file.close()
        threading.excepthook = self._hook


def _known_ids(path: str) -> dict[str, Any]:
    try:
        ids = read_json(path)
    except ValueError:
        ids = None
    return ids if isinstance(ids, dict) else {}


def _show(tracker: RunTracker, step: int, examples: list[Any]) -> None:
    tracker.show(step, examples)
    tracker.is_shown = True


def _hide_tokens(words: list[str]) -> None:
    """Trackers send the command line too."""
    for place, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and flag.endswith("token"):
            words[place : place + 1 if equals else place + 2] = [f"{flag}=hidden"]


def _ended_thread(ended: threading.ExceptHookArgs) -> None:
    """A full disk is told in one line there too, and not as a fault of the program."""
    if not isinstance(ended.exc_value, OSError):
        return threading.__excepthook__(ended)
    logger.warning("%s ended: %s", ended.thread.name if ended.thread else "a thread", ended.exc_value)


def _strict(record: dict[str, Any]) -> str:
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
    return json.dumps(finite, allow_nan=False)
