"""What a trial is worth: read from its metrics.jsonl, while it runs and when it has ended."""

import os
from dataclasses import dataclass
from typing import Any

from wavtrain import InputError
from wavtrain.durable_files import read_json_lines

WITHOUT_VALIDATION = ("run_preprocessing", "run_ctc_decoding", "run_sweep")
METRIC_OF = {"run_wav2vec2_pretraining_no_trainer": "contrastive_accuracy", "run_ctc_finetuning": "wer"}
DIRECTIONS = {"contrastive_accuracy": "maximize", "code_perplexity": "maximize", "wer": "minimize", "cer": "minimize",
              "loss": "minimize", "contrastive_loss": "minimize"}
SERVED_BY = ("wer", "cer", "loss")  # a recogniser that is left in the output directory has the lowest of these


@dataclass(frozen=True)
class Objective:
    """A measure of validation, and whether more of it is better."""

    metric: str
    direction: str

    def better_first(self, value: float) -> float:
        """Sorts values so that the best is first."""
        return -value if self.direction == "maximize" else value

    def worth(self, records: list[dict[str, Any]]) -> tuple[float | None, list[float]]:
        """The value of the model that the run left behind, and what tells apart those that are equal in it."""
        found = [record for record in records if record.get(self.metric) is not None]
        if not found:
            return None, []
        if any(record.get(name) is None for record in found for name in SERVED_BY[:2]):
            return found[-1][self.metric], []
        served = min(found, key=_served_by)
        return served[self.metric], _served_by(served)


def objective_of(script: str, metric: str | None, direction: str | None) -> Objective:
    """That which was asked for, or what is honest for the script.

    Pretraining: accuracy, since the loss also moves with its weights and temperatures, which trials may search.
    """
    name = os.path.splitext(os.path.basename(script))[0]
    if name in WITHOUT_VALIDATION:
        raise InputError(f"{script}: does not train, so there is nothing to sweep: {' and '.join(METRIC_OF)} can be swept")
    metric = metric or METRIC_OF.get(name)
    if metric is None:
        raise InputError(f"--metric is needed for {script}, which is none of {', '.join(METRIC_OF)}: a name in the validation "
                         "records that it writes into metrics.jsonl of its --output_dir")
    if direction is None and metric not in DIRECTIONS:
        raise InputError(f"--direction minimize or maximize is needed for --metric {metric}")
    return Objective(metric, direction or DIRECTIONS[metric])


def validations(folder: str) -> list[dict[str, Any]]:
    """The validation records of a run so far."""
    records = read_json_lines(os.path.join(folder, "metrics.jsonl"), b'"validation"')  # asked for twice a second
    return [record for record in records if record.get("phase") == "validation"]


def updates(folder: str) -> int:
    """How many were recorded."""
    return max((record.get("step", 0) for record in read_json_lines(os.path.join(folder, "metrics.jsonl"))), default=0)


def _served_by(record: dict[str, Any]) -> list[float]:
    return [float("inf") if record.get(name) is None else record[name] for name in SERVED_BY]
