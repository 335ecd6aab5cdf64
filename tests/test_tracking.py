"""Numbers reach metrics.jsonl once and in strict JSON, and the trackers that were asked for, which may fail."""

import json
import logging
import math
from types import SimpleNamespace

import accelerate.tracking
import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wavtrain import InputError
from wavtrain.reporting.tracking import Tracking, read_metrics, tracker_names

INSTALLED = [str(each) for each in accelerate.tracking.get_available_trackers()]


def tracking(output, done_steps: int = 0, report_to: tuple[str, ...] | None = ("none",), **arguments) -> Tracking:
    return Tracking(Accelerator(cpu=True), str(output), 100, done_steps, report_to, arguments)


def scalars(output, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class Broken(accelerate.tracking.GeneralTracker):
    """A tracker whose network goes after the first record."""

    name, requires_logging_directory, tracker, calls = "broken", False, None, 0

    def __init__(self, run_name: str) -> None:
        super().__init__()

    def log(self, values: dict, step: int | None = None) -> None:
        Broken.calls += 1
        if Broken.calls > 1:
            raise ConnectionError("network unreachable")


class Unstartable(Broken):
    name = "unstartable"

    def start(self) -> None:
        raise RuntimeError("no key")


@pytest.fixture
def broken(monkeypatch) -> None:
    monkeypatch.setattr(Broken, "calls", 0)
    for kind in (Broken, Unstartable):
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, kind.name, kind)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [*INSTALLED, "broken", "unstartable"])


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
    other = Tracking(SimpleNamespace(is_main_process=False), str(tmp_path), 100, 0, None, {})
    other.record("train", 1, {"loss": 1.0})
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
    assert tracker_names(None) == ["tensorboard"]
    assert tracker_names(("none",)) == []
    assert tracker_names(("all",)) == ["tensorboard", "wandb"]
    assert tracker_names(("wandb", "tensorboard", "wandb")) == ["wandb", "tensorboard"]
    for names, said in ((("comet_ml",), "pip install comet_ml"), (("tensorbord",), "is tensorboard meant"),
                        (("none", "wandb"), "stands alone")):
        with pytest.raises(InputError, match=said):
            tracker_names(names)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["wandb"])
    assert tracker_names(None) == []


def test_a_tracker_that_fails_is_dropped_with_one_warning(tmp_path, broken, caplog):
    with caplog.at_level(logging.WARNING, "wavtrain"):
        run = tracking(tmp_path, report_to=("broken", "unstartable", "tensorboard"))
        for step in (1, 2, 3):
            run.record("train", step, {"loss": float(step)})
        run.close()
    assert Broken.calls == 2
    assert [record.getMessage() for record in caplog.records] == [
        "unstartable failed and is left out from here on: RuntimeError: no key",
        "broken failed and is left out from here on: ConnectionError: network unreachable",
    ]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(read_metrics(tmp_path)) == 3


def test_what_the_terminal_shows(tmp_path, capsys):
    run = tracking(tmp_path, done_steps=40)
    run.record("train", 60, {"loss": 3.14159, "contrastive_accuracy": 0.5, "code_perplexity": 123.456, "audio_hours": 1.0,
                             "gradient_norm": 0.012345})
    assert run._bar.postfix == "loss 3.14, accuracy 0.5, perplexity 123, gradient norm 0.0123"
    run.record("validation", 60, {"loss": 2.71828, "contrastive_accuracy": math.nan})
    run.advance(60)
    assert (run._bar.n, run._bar.initial, run._bar.total) == (60, 40, 100)
    run.close()
    assert "step 60 validation: loss 2.72, contrastive accuracy nan\n" in capsys.readouterr().err
