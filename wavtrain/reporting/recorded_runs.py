"""metrics.jsonl of a run, also of one at work or of a million records, as arrays."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from wavtrain import InputError
from wavtrain.durable_files import read_json

KEYS = ("step", "loss", "contrastive_accuracy", "code_perplexity", "wer", "cer", "gradient_norm", "learning_rate",
        "gumbel_temperature", "padding_fraction", "audio_seconds_per_second", "audio_hours")
ROWS_AT_ONCE = 10_000
SMOOTHED_SHARE = 0.05  # of a run's records under the running mean, and never less than three of them
SMOOTHED_OVER = f"mean over {100 * SMOOTHED_SHARE:g} % of the run, at least 3 records"
MOST_POINTS = 3_000  # of a line; more than a picture is wide

Series = tuple[np.ndarray, np.ndarray]


class Run(NamedTuple):
    """The records of a run, and what they are to be compared with."""

    name: str
    phases: dict[str, np.ndarray]  # (records, keys), NaN for null and for what is missing
    references: dict[str, float]

    @property
    def kind(self) -> str:
        """What is learned: "contrastive" or "ctc"."""
        return "contrastive" if self.has("code_perplexity") else "ctc"

    def series(self, key: str, phase: str) -> Series:
        """Steps and values."""
        table = self.phases.get(phase, np.empty((0, len(KEYS))))
        return table[:, 0], table[:, KEYS.index(key)]

    def has(self, key: str) -> bool:
        """Whether there is any value."""
        return any(np.isfinite(self.series(key, phase)[1]).any() for phase in self.phases)


def read_run(output_dir: str, name: str) -> Run:
    """The run in an output directory."""
    path = os.path.join(output_dir, "metrics.jsonl")
    if not os.path.isfile(path):
        raise InputError(f"{path} is missing: name the --output_dir of a training run")
    rows: dict[str, list[list[Any]]] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for phase, row in _records(path):
        rows.setdefault(phase, []).append(row)
        if len(rows[phase]) == ROWS_AT_ONCE:
            parts.setdefault(phase, []).append(_numbers(rows.pop(phase), path))
    for phase in list(rows):
        parts.setdefault(phase, []).append(_numbers(rows[phase], path))
    phases = {phase: np.concatenate(part) for phase, part in parts.items()}
    return Run(name, phases, references(_facts(output_dir)))


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values around each one; the window narrows towards the ends."""
    half = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    is_finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(each)]) for each in (np.where(is_finite, values, 0), is_finite))
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / np.where(counts[high] > counts[low], counts[high] - counts[low], np.nan)


def thinned(steps: np.ndarray, values: np.ndarray) -> Series:
    """As many points as a picture can show: the lowest and the highest of each stretch, so that no spike is lost."""
    width = -(-len(values) // (MOST_POINTS // 2))
    if width <= 2:
        return steps, values
    count = len(values) // width * width
    stretches = values[:count].reshape(-1, width)
    lowest = np.where(np.isnan(stretches), np.inf, stretches).argmin(1)
    highest = np.where(np.isnan(stretches), -np.inf, stretches).argmax(1)
    places = np.sort(np.stack([lowest, highest], 1), 1) + np.arange(0, count, width)[:, None]
    kept = np.concatenate([places.ravel(), np.arange(count, len(values))])
    return steps[kept], values[kept]


def _records(path: str) -> Iterator[tuple[str, list[Any]]]:
    """(phase, values of KEYS); a last line that is being written is left out, a damaged one before it is refused."""
    fault = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if fault:
                raise InputError(f"{path}: line {fault} is no record: repair or remove it")
            try:
                record = json.loads(line) if line.strip() else None
            except ValueError:
                fault = number
                continue
            if record is None:
                continue
            if not isinstance(record, dict) or not isinstance(record.get("step"), (int, float)):
                fault = number
                continue
            yield str(record.get("phase")), [record.get(key) for key in KEYS]


def _numbers(rows: list[list[Any]], path: str) -> np.ndarray:
    try:
        return np.array(rows, dtype=float).reshape(-1, len(KEYS))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds a value that is no number ({error}): repair or remove its line") from error


def _facts(output_dir: str) -> dict[str, Any]:
    """config.json, and arguments.yaml, which is there before it."""
    facts, path = read_json(os.path.join(output_dir, "config.json")) or {}, os.path.join(output_dir, "arguments.yaml")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            facts |= {key: value for key, value in (yaml.safe_load(file) or {}).items() if value is not None}
    return facts


def references(facts: dict[str, Any]) -> dict[str, float]:
    """What guessing gives, and the size of the codebook."""
    negatives = sum(facts.get(name) or 0 for name in ("num_negatives", "cross_sample_negatives", "codebook_negatives"))
    size = facts.get("num_codevector_groups", 0) * facts.get("num_codevectors_per_group", 0)
    return {"contrastive_accuracy": 1 / (negatives + 1) if negatives else 0, "code_perplexity": size}


def names_of(output_dirs: Sequence[str]) -> list[str]:
    """Short, where that tells them apart."""
    names = [os.path.basename(os.path.abspath(output_dir)) for output_dir in output_dirs]
    return [name if names.count(name) == 1 else os.path.normpath(output_dir)
            for name, output_dir in zip(names, output_dirs, strict=True)]
