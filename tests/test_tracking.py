"""Numbers reach metrics.jsonl once and in strict JSON, and the trackers that were asked for, which may fail."""

import io
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import accelerate.tracking
import datasets
import numpy as np
import pytest
import soundfile
from accelerate import Accelerator
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wavtrain import InputError, arguments
from wavtrain.reporting import errands
from wavtrain.reporting import tracking as tracking_module
from wavtrain.reporting.examples import NUM_EXAMPLES, examples_of
from wavtrain.reporting.known_trackers import KNOWN
from wavtrain.reporting.trackers import RunTracker
from wavtrain.reporting.tracking import Tracking, read_metrics, tracker_names
from wavtrain.run_options import RunOptions

INSTALLED = [str(each) for each in accelerate.tracking.get_available_trackers()]


def options(output, report_to: tuple[str, ...] | None = None, **others) -> RunOptions:
    return RunOptions(str(output), report_to=report_to, **others)


def tracking(output, done_steps: int = 0, report_to: tuple[str, ...] | None = None, **arguments) -> Tracking:
    return Tracking(Accelerator(cpu=True), options(output, report_to), 100, done_steps, arguments)


def scalars(output, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class Fake(accelerate.tracking.GeneralTracker):
    """Keeps what it is told; `faults` says what it does at which of its calls."""

    name, requires_logging_directory, tracker = "fake", False, None
    told: ClassVar[list] = []
    faults: ClassVar[dict] = {}

    def __init__(self, project: str) -> None:
        super().__init__()
        self._call("project", project)

    def _call(self, *what) -> None:
        Fake.told.append(what)
        Fake.faults.get(what[0], lambda: None)()

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict) -> None:
        self._call("arguments", values)

    def log(self, values: dict, step: int | None = None) -> None:
        self._call("log", step, values)

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "faults", {})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [*INSTALLED, "fake"])
    monkeypatch.setattr(errands, "TRIED_AGAIN_AFTER", (0.01,))
    monkeypatch.setattr(tracking_module, "STARTING", 0.3)
    monkeypatch.setattr(tracking_module, "ENDING", 0.3)
    monkeypatch.setattr(arguments, "leave", sys.exit)
    return Fake


def failing(*times: int):
    """A call that fails at these times, from 1."""
    calls = itertools.count(1)

    def call() -> None:
        if next(calls) in times:
            raise ConnectionError("network\nunreachable")

    return call


def test_a_record_is_a_line_at_once_and_strict_json(tmp_path):
    run = tracking(tmp_path)
    run.record("train", 1, {"loss": 4.5, "gradient_norm": math.inf, "learning_rate": 1e-5, "clips": 3})
    run.record("validation", 1, {"loss": math.nan})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"phase": "train", "step": 1, "loss": 4.5, "gradient_norm": None, "learning_rate": 1e-5, "clips": 3},
        {"phase": "validation", "step": 1, "loss": None},
    ]
    run.close()
    run.close()


def test_a_resumed_run_repeats_nothing(tmp_path):
    run = tracking(tmp_path)
    for step in range(1, 6):
        run.record("train", step, {"loss": 1 / step})
    run.record("validation", 4, {"loss": 0.1})
    run.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"phase": "train", "step": 6, "lo')  # killed here; the checkpoint is of step 4
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 4]
    run = tracking(tmp_path, done_steps=4)
    run.record("train", 5, {"loss": 0.25})
    run.close()
    found = [(record["phase"], record["step"], record["loss"]) for record in read_metrics(tmp_path)]
    assert found == [*(("train", step, 1 / step) for step in range(1, 5)), ("validation", 4, 0.1), ("train", 5, 0.25)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_begins_a_new_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"phase": "validation", "step": 0, "loss": 1.0}\n')  # killed before a checkpoint
    tracking(tmp_path).close()
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_line_damaged_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 "):
        read_metrics(tmp_path)


def test_other_processes_write_nothing(tmp_path):
    other = Tracking(SimpleNamespace(is_main_process=False), options(tmp_path), 100, 0, {})
    other.record("train", 1, {"loss": 1.0})
    other.show(1, None, [], [], [])
    other.advance(1)
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_what_is_finite(tmp_path):
    run = tracking(tmp_path, report_to=("tensorboard",), seed=7, hub_token="hf_secret")
    for step in (1, 2):
        run.record("train", step, {"loss": 4.0 / step, "gradient_norm": math.nan if step == 2 else 0.5})
    run.record("validation", 2, {"loss": 1.5})
    run.close()
    assert scalars(tmp_path, "train/loss") == [(1, 4.0), (2, 2.0)]
    assert scalars(tmp_path, "train/gradient_norm") == [(1, 0.5)]
    assert scalars(tmp_path, "validation/loss") == [(2, 1.5)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = events.Tensors("arguments/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "seed: 7" in shown
    assert "hf_secret" not in shown


def test_tensorboard_repeats_nothing_after_a_resume(tmp_path):
    for done_steps, losses in ((0, {1: 4.0, 2: 3.0, 3: 9.0}), (2, {3: 2.0})):
        run = tracking(tmp_path, done_steps, ("tensorboard",))
        for step, loss in losses.items():
            run.record("train", step, {"loss": loss})
        run.close()
    assert scalars(tmp_path, "train/loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_which_trackers(monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["wandb", "tensorboard"])
    assert tracker_names(None) == tracker_names(("none",)) == []  # none unasked
    assert tracker_names(("all",)) == ["tensorboard", "wandb"]
    assert tracker_names(("wandb", "tensorboard", "wandb")) == ["wandb", "tensorboard"]
    for names, said in ((("comet_ml",), "pip install comet_ml"), (("tensorbord",), "is tensorboard meant"),
                        (("none", "wandb"), "stands alone")):
        with pytest.raises(InputError, match=said):
            tracker_names(names)


def test_a_tracker_is_told_who_the_run_is_once_and_nothing_secret(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--hub_token", "hf_secret", "--other_token=hf_secret", "--seed", "7"])
    given = options(tmp_path, ("fake",), run_name="first", tracker_project="speech", tracker_tags=("a", "b=c"))
    run = Tracking(Accelerator(cpu=True), given, 100, 0, {"seed": 7, "speeds": [1, 2], "hub_token": "hf_secret"})
    run.record("train", 1, {"loss": 1.0, "gradient_norm": math.inf})
    run.close()
    assert fake.told == [("project", "speech"), ("start",),
                         ("arguments", {"seed": 7, "speeds": "[1, 2]", "run_name": "first", "tracker_tags": "a b=c"}),
                         ("log", 1, {"train/loss": 1.0}), ("finish",)]
    assert sys.argv == ["run.py", "--hub_token=hidden", "--other_token=hidden", "--seed", "7"]  # wandb sends it


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_tracker_that_fails_is_tried_again_and_then_dropped(tmp_path, fake, caplog):
    fake.faults["log"] = failing(2, 4, 5)
    run = tracking(tmp_path, report_to=("fake", "tensorboard"))
    for step in range(1, 6):
        run.record("train", step, {"loss": float(step)})
    wait_until(lambda: run._errands["fake"].is_over)
    run.close()
    assert [step for what, step, *_ in (each for each in fake.told if each[0] == "log")] == [1, 2, 2, 3, 3]
    assert messages(caplog) == [
        "fake failed, and is tried again in 0.01 s: ConnectionError: network unreachable",
        "fake failed, and is tried again in 0.01 s: ConnectionError: network unreachable",
        "fake failed and is left out from here on: ConnectionError: network unreachable",
    ]
    assert scalars(tmp_path, "train/loss") == [(step, float(step)) for step in range(1, 6)]
    assert len(read_metrics(tmp_path)) == 5


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("fault", [failing(1), lambda: sys.exit(1)])
def test_one_that_does_not_start_is_left_out_at_once(tmp_path, fake, caplog, fault):
    fake.faults["start"] = fault
    run = tracking(tmp_path, report_to=("fake",))
    run.record("train", 1, {"loss": 1.0})
    run.close()
    assert fake.told == [("project", "wavtrain"), ("start",)]
    assert [message[:38] for message in messages(caplog)] == ["fake failed and is left out from here "]


@pytest.mark.parametrize(("where", "said"), [
    ("start", ["is slow to start", "did not end in time"]), ("log", ["did not end in time"]),
    ("finish", ["did not end in time"])])
def test_one_that_hangs_holds_up_nothing(tmp_path, fake, caplog, where, said):
    hang = threading.Event()
    fake.faults[where] = hang.wait
    began = time.monotonic()
    run = tracking(tmp_path, report_to=("fake",))
    for step in (1, 2, 3):
        run.record("train", step, {"loss": float(step)})
    run.close()
    assert time.monotonic() - began < 5
    assert len(read_metrics(tmp_path)) == 3
    assert all(part in message for part, message in zip(said, messages(caplog), strict=True))
    assert arguments.leave is not sys.exit  # the process ends without waiting for it
    hang.set()


def test_what_waits_for_one_that_hangs_is_bounded(tmp_path, fake, caplog, monkeypatch):
    monkeypatch.setattr(errands, "MOST_WAITING", 10)
    hang = threading.Event()
    fake.faults["log"] = hang.wait
    run = tracking(tmp_path, report_to=("fake",))
    for step in range(1, 100):
        run.record("train", step, {"loss": 1.0})
    assert messages(caplog) == ["fake hangs and is left out from here on"]
    hang.set()
    run.close()
    assert len(read_metrics(tmp_path)) == 99


HANGING = """
import sys, threading, atexit
from wavtrain import arguments
from wavtrain.reporting.errands import Errands
def main():
    hangs = Errands("slow", threading.Event().wait)
    hangs.hurry(print)
    hangs.wait_for_end(0)
    atexit.register(threading.Event().wait)  # as libraries do
    print("done")
    sys.exit(7)
arguments.run_as_script(main)
"""


def test_a_process_ends_with_its_code_whatever_hangs(tmp_path):
    result = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (result.returncode, result.stdout) == (7, "done\n")


def test_a_resumed_run_goes_on_in_its_tracker(tmp_path, fake, monkeypatch):
    class Known(RunTracker):
        def start(self, arguments: dict) -> None:
            super().start(arguments)
            fake.told.append(("id", self.run_id))
            self.run_id = self.run_id or "new"

    monkeypatch.setitem(KNOWN, "fake", Known)
    for done_steps, steps in ((0, (1, 2, 3)), (1, (2,)), (1, (2, 3, 4)), (0, (1,))):  # resumed twice, then begun again
        run = tracking(tmp_path, done_steps, ("fake",))
        for step in steps:
            run.record("train", step, {"loss": 1.0})
        run.close()
    told = [each[:2] for each in fake.told if each[0] in ("id", "log")]
    assert told == [("id", None), ("log", 1), ("log", 2), ("log", 3), ("id", "new"), ("id", "new"), ("log", 4),
                    ("id", None), ("log", 1)]
    (tmp_path / "trackers.json").write_text("{")  # harms no run
    tracking(tmp_path, 1, ("fake",)).close()


@pytest.fixture
def clips():
    wave = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    rows = [{"utterance_id": f"clip{number}", "audio": {"bytes": file.getvalue()}} for number in range(20)]
    return datasets.Dataset.from_list(rows)


def test_the_same_utterances_are_shown_at_every_validation(tmp_path, clips, capsys):
    run = tracking(tmp_path, report_to=("tensorboard",))
    for step, order in ((10, range(20)), (20, range(19, -1, -1))):
        run.show(step, clips, list(order), [f"said {row}" for row in order], [f"heard {row} at {step}" for row in order])
        run.record("validation", step, {"loss": 1.0, "wer": 0.25, "cer": 0.125})
    run.close()
    examples = examples_of(clips, range(20), list("abcdefghijklmnopqrst"), list("abcdefghijklmnopqrst"))
    assert len({each.utterance_id for each in examples}) == NUM_EXAMPLES
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for each in examples:
        number = each.utterance_id.removeprefix("clip")
        texts = [(event.step, event.tensor_proto.string_val[0].decode().split())
                 for event in events.Tensors(f"examples/{each.utterance_id}/text_summary")]
        assert texts == [(step, f"reference: said {number} hypothesis: heard {number} at {step}".split()) for step in (10, 20)]
        (audio,) = events.Audio(f"examples/{each.utterance_id}")  # once
        assert (audio.sample_rate, audio.length_frames) == (16_000, 16_000)
    first = examples[0].utterance_id.removeprefix("clip")
    assert (f"step 20 validation: loss 1, WER 25.0%, CER 12.5%\n  said        said {first}\n"
            f"  recognised  heard {first} at 20\n") in capsys.readouterr().err


def test_what_the_terminal_shows(tmp_path, capsys):
    run = tracking(tmp_path, done_steps=40)
    run.record("train", 60, {"loss": 3.14159, "contrastive_accuracy": 0.5, "code_perplexity": 123.456, "audio_hours": 1.0,
                             "gradient_norm": 0.012345, "audio_seconds_per_second": 987.6, "epoch": 1})
    assert run._bar.postfix == ("loss 3.14, accuracy 50.0%, perplexity 123, gradient norm 0.0123, 988 audio-s/s, 1.00 h heard")
    run.record("validation", 60, {"loss": 2.71828, "contrastive_accuracy": math.nan})
    run.advance(60)
    assert (run._bar.n, run._bar.initial, run._bar.total) == (60, 40, 100)
    run.close()
    assert "step 60 validation: loss 2.72, accuracy nan%\n" in capsys.readouterr().err
