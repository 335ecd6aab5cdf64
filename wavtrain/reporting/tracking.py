"""One record -> the progress bar, metrics.jsonl, and the trackers of accelerate that were asked for."""

import difflib
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from tqdm import tqdm

from wavtrain import InputError
from wavtrain.durable_files import read_json_lines, write_lines
from wavtrain.progress import progress_bar

METRICS, TENSORBOARD, PROJECT = "metrics.jsonl", "tensorboard", "wavtrain"
IN_THE_BAR = {"loss": "loss", "contrastive_accuracy": "accuracy", "code_perplexity": "perplexity",
              "gradient_norm": "gradient norm"}
NAME_OF_A_RUN = {"wandb": "name", "trackio": "name", "mlflow": "run_name"}  # what their init calls it; the project is PROJECT

logger = logging.getLogger(__name__)


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    """The records of a run, also of one that was killed while it wrote one."""
    return read_json_lines(os.path.join(output_dir, METRICS))


def tracker_names(report_to: tuple[str, ...] | None) -> list[str]:
    """The trackers that --report_to means; unasked only TensorBoard, which stays on this disk, and that where installed."""
    installed = sorted(str(each) for each in get_available_trackers())
    if report_to is None:
        return [name for name in installed if name == TENSORBOARD]
    if report_to in (("none",), ("all",)):
        return installed if report_to == ("all",) else []
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


class Tracking:
    """Where a run's numbers go. The main process writes them; on the others every call does nothing.

    The trackers are built here and not by Accelerator(log_with=...), as one that fails must leave without the others.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str, total_steps: int, done_steps: int,
                 report_to: tuple[str, ...] | None, arguments: dict[str, Any]) -> None:
        names = tracker_names(report_to)  # refused on every process, so that none waits for another
        self.is_main = accelerator.is_main_process
        self._trackers: dict[str, GeneralTracker] = {}
        if not self.is_main:
            return
        path = os.path.join(output_dir, METRICS)
        kept = [record for record in read_metrics(output_dir) if record.get("step", 0) <= done_steps] if done_steps else []
        write_lines(path, [_strict(record) for record in kept])
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (stays open as long as the run)
        self._hook, threading.excepthook = threading.excepthook, _ended_thread  # TensorBoard writes in a thread
        for name in names:
            self._try(name, lambda name=name: self._start(name, output_dir, done_steps, arguments))
        self._bar = progress_bar(total_steps, "step", "training", done=done_steps)

    def record(self, phase: str, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, on disk when this returns; what is not finite becomes null, for trackers nothing."""
        if not self.is_main:
            return
        values = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        self._write(_strict({"phase": phase, "step": step, **values}))
        finite = {f"{phase}/{name}": value for name, value in values.items() if math.isfinite(value)}
        for name in list(self._trackers):
            self._try(name, lambda name=name: self._trackers[name].log(finite, step=step))
        if phase == "train":
            short = {IN_THE_BAR[name]: value for name, value in values.items() if name in IN_THE_BAR}
            self._bar.set_postfix_str(_shown(short), refresh=False)
        else:
            spoken = {name.replace("_", " "): value for name, value in values.items()}
            tqdm.write(f"step {step} {phase}: {_shown(spoken)}", file=sys.stderr)

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

    def close(self) -> None:
        """The last words of every tracker; a second call does nothing."""
        if not self.is_main:
            return
        for name in list(self._trackers):
            self._try(name, self._trackers[name].finish)
        self._trackers.clear()
        self._bar.close()
        self._file.close()
        threading.excepthook = self._hook

    def _start(self, name: str, output_dir: str, done_steps: int, arguments: dict[str, Any]) -> None:
        run = os.path.basename(os.path.abspath(output_dir))
        known = {name: value for name, value in arguments.items() if not name.endswith("token")}
        if name == TENSORBOARD:  # what a killed run wrote after its last checkpoint is purged
            tracker = LOGGER_TYPE_TO_CLASS[name](TENSORBOARD, output_dir, purge_step=done_steps + 1)
            tracker.start()
            table = "\n".join(f"    {key}: {value}" for key, value in known.items())  # hyperparameters would make a second run
            tracker.log({"arguments": table}, step=done_steps + 1)
        else:
            kind = LOGGER_TYPE_TO_CLASS[name]
            folder = (output_dir,) if kind.requires_logging_directory else ()
            tracker = kind(PROJECT, *folder, **({NAME_OF_A_RUN[name]: run} if name in NAME_OF_A_RUN else {}))
            tracker.start()
            tracker.store_init_configuration({key: value if isinstance(value, (bool, int, float, str)) else str(value)
                                              for key, value in known.items()})
        self._trackers[name] = tracker

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """Numbers are in metrics.jsonl whatever happens: a tracker that fails (no network, no key) ends, the run goes on."""
        try:
            call()
        except Exception as error:
            self._trackers.pop(name, None)
            logger.warning("%s failed and is left out from here on: %s: %s", name, type(error).__name__, error)


def _ended_thread(ended: threading.ExceptHookArgs) -> None:
    """A full disk is told in one line there too, and not as a fault of the program."""
    if not isinstance(ended.exc_value, OSError):
        return threading.__excepthook__(ended)
    logger.warning("%s ended: %s", ended.thread.name if ended.thread else "a thread", ended.exc_value)


def _strict(record: dict[str, Any]) -> str:
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
    return json.dumps(finite, allow_nan=False)


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
