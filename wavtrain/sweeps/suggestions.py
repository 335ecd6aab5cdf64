"""How trials are chosen and judged: Optuna's samplers and pruners, with what they need of the search space."""

from dataclasses import dataclass
from typing import Any

from wavtrain.sweeps.search_space import Choices, Range

try:
    import optuna
except ImportError:
    optuna = None  # told when a study is opened

FEWEST_STEPS = 27  # Hyperband's three brackets at a reduction of 3, where the length of a run is not known


@dataclass(frozen=True)
class Judges:
    """How trials are chosen and ended early."""

    seed: int = 0
    sampler: str = "tpe"
    pruner: str = "median"
    num_startup_trials: int = 4
    num_unpruned_steps: int = 0
    total_steps: int | None = None


def suggest(trial: Any, name: str, dimension: Range | Choices) -> None:
    """Give the trial a value, unless it has one."""
    if isinstance(dimension, Choices):
        trial.suggest_categorical(name, dimension.values)
    elif dimension.is_whole:
        trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step or 1, log=dimension.log)
    else:
        trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def sampler(judges: Judges, number: int) -> Any:
    """Seeded by the trial's number, so that sweeps side by side do not draw the same and one that is resumed goes on."""
    seed = (judges.seed * 1_000_003 + number) % 2**32
    if judges.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=judges.num_startup_trials, multivariate=False)


def pruner(judges: Judges) -> Any:
    """Compares a validation with those that other trials had at the same update."""
    if judges.pruner == "median":
        return optuna.pruners.MedianPruner(judges.num_startup_trials, judges.num_unpruned_steps)
    if judges.pruner == "hyperband":
        first = max(judges.num_unpruned_steps, 1)
        return optuna.pruners.HyperbandPruner(first, max(judges.total_steps or first * FEWEST_STEPS, first))
    return optuna.pruners.NopPruner()
