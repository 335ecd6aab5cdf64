"""Trials as reports show them."""

from dataclasses import dataclass, field
from typing import Any

from wavtrain.sweeps.objectives import Objective

BASE, BASE_VALUES, OUTCOME = "is_base", "base_values", "outcome"
RANKED, UNFINISHED = ("complete", "pruned"), ("running", "waiting")


@dataclass(frozen=True)
class Row:
    """A trial as reports show it."""

    number: int
    kind: str
    is_base: bool
    value: float | None
    ties: list[float]
    params: dict[str, Any]
    updates: int
    minutes: float
    reason: str
    curve: dict[int, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """complete, pruned, running, waiting or failed."""
        return self.kind if self.kind in (*RANKED, *UNFINISHED) else "failed"


def ranked(rows: list[Row], objective: Objective) -> list[Row]:
    """The best first, then those that were ended early, then those that failed or still run."""
    def place(row: Row) -> tuple[Any, ...]:
        value = objective.better_first(row.value) if row.value is not None else 0
        return (*RANKED, *UNFINISHED, "failed").index(row.state), value, row.ties, row.number

    return sorted(rows, key=place)


def row_of(trial: Any) -> Row:
    """Of a trial of the study."""
    known, curve = trial.user_attrs.get(OUTCOME, {}), dict(trial.intermediate_values)
    kind = known.get("kind", "crashed") if trial.state.is_finished() else trial.state.name.lower()
    last = curve[max(curve)] if curve and kind in ("pruned", "running") else None
    return Row(trial.number, kind, trial.user_attrs.get(BASE, False), trial.value if kind == "complete" else last,
               known.get("ties", []), {**trial.user_attrs.get(BASE_VALUES, {}), **trial.params},
               known.get("updates", max(curve, default=0)), known.get("seconds", 0) / 60, known.get("reason", ""), curve)
