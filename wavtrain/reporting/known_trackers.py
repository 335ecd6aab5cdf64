"""Trackers that are told more than accelerate's interface can say: names, tags, runs that go on, what was recognised."""

import os
import tempfile
from typing import Any

import numpy as np
import soundfile
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from wavtrain.reporting.examples import Example
from wavtrain.reporting.trackers import RunTracker
from wavtrain.speech.waveforms import SAMPLING_RATE

TENSORBOARD = "tensorboard"  # also the folder in the output directory


class TensorBoard(RunTracker):
    """Files in the output directory. What a killed run wrote after its last checkpoint is purged."""

    takes_steps_twice = True

    def start(self, arguments: dict[str, Any]) -> None:
        """Arguments are a text, as hyperparameters would make a second run."""
        self.tracker = LOGGER_TYPE_TO_CLASS[TENSORBOARD](TENSORBOARD, self.output_dir, purge_step=self.done_steps + 1)
        self.tracker.start()
        known = {"run_name": self.run_name, "tracker_tags": " ".join(self.tags), **arguments}
        self.log({"arguments": "\n".join(f"    {key}: {value}" for key, value in known.items())}, self.done_steps + 1)

    def show(self, step: int, examples: list[Example]) -> None:
        for each in examples:
            if not self.is_shown:
                self.tracker.writer.add_audio(f"examples/{each.utterance_id}", each.wave()[None], step, SAMPLING_RATE)
            text = f"    reference:  {each.reference}\n    hypothesis: {each.hypothesis}"
            self.tracker.writer.add_text(f"examples/{each.utterance_id}", text, step)
        self.tracker.writer.flush()


class WandB(RunTracker):
    """A run of the same id goes on; it has no place for a step that it has had, and says so."""

    takes_steps_twice = True
    project_variable = "WANDB_PROJECT"

    def start(self, arguments: dict[str, Any]) -> None:
        super().start(arguments)
        self.run_id = self.tracker.run.id

    def keywords(self) -> dict[str, Any]:
        has_id = {"WANDB_RUN_ID", "WANDB_SWEEP_ID"} & set(os.environ)  # of an agent
        return {"name": self.run_name, "tags": self.tags or None, "id": None if has_id else self.run_id, "resume": "allow"}

    def store(self, arguments: dict[str, Any]) -> None:
        self.tracker.store_init_configuration(arguments)

    def show(self, step: int, examples: list[Example]) -> None:
        import wandb

        columns = ["step", "utterance", "reference", "hypothesis"]
        rows = [[step, each.utterance_id, each.reference, each.hypothesis] for each in examples]
        if not self.is_shown:
            columns.append("audio")
            rows = [[*row, wandb.Audio(each.wave(), SAMPLING_RATE)] for row, each in zip(rows, examples, strict=True)]
        self.log({"examples": wandb.Table(columns=columns, data=rows)}, step)

    def finish(self, is_well: bool) -> None:
        self.tracker.run.finish(exit_code=int(not is_well))


class Trackio(RunTracker):
    """A run of the same name goes on."""

    project_variable = "TRACKIO_PROJECT"

    def start(self, arguments: dict[str, Any]) -> None:
        super().start(arguments)
        self.run_id = self.run_name

    def keywords(self) -> dict[str, Any]:
        return {"name": self.run_id or self.run_name, "resume": "allow" if self.run_id else "never"}

    def show(self, step: int, examples: list[Example]) -> None:
        import trackio

        rows = [{"utterance": each.utterance_id, "reference": each.reference, "hypothesis": each.hypothesis}
                for each in examples]
        values = {"examples": trackio.Table(data=rows)}
        if not self.is_shown:
            waves = [(each.wave() * 32767).astype(np.int16) for each in examples]
            values |= {f"audio/{each.utterance_id}": trackio.Audio(wave, each.reference, SAMPLING_RATE)
                       for each, wave in zip(examples, waves, strict=True)}
        self.log(values, step)


class MLflow(RunTracker):
    """A run of the same id goes on. A tag may be KEY=VALUE."""

    project_variable = "MLFLOW_EXPERIMENT_NAME"

    def start(self, arguments: dict[str, Any]) -> None:
        super().start(arguments)
        self.run_id = self.tracker.active_run.info.run_id

    def keywords(self) -> dict[str, Any]:
        tags = {key: value or "true" for key, _, value in (tag.partition("=") for tag in self.tags)}
        return {"run_name": self.run_name, "tags": tags, "run_id": self.run_id}

    def store(self, arguments: dict[str, Any]) -> None:
        if self.run_id is None:  # it refuses another value
            self.tracker.store_init_configuration(arguments)

    def show(self, step: int, examples: list[Example]) -> None:
        import mlflow

        table = {"step": [step] * len(examples), "utterance": [each.utterance_id for each in examples],
                 "reference": [each.reference for each in examples], "hypothesis": [each.hypothesis for each in examples]}
        mlflow.log_table(table, f"examples/step_{step:08d}.json")
        with tempfile.TemporaryDirectory() as folder:
            for number, each in enumerate(() if self.is_shown else examples, 1):
                soundfile.write(os.path.join(folder, f"{number}.wav"), each.wave(), SAMPLING_RATE)
            mlflow.log_artifacts(folder, "audio")

    def finish(self, is_well: bool) -> None:
        import mlflow

        mlflow.end_run("FINISHED" if is_well else "FAILED")


KNOWN = {TENSORBOARD: TensorBoard, "wandb": WandB, "trackio": Trackio, "mlflow": MLflow}
