"""Where values of flags lie on an axis, and what stands there."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wavtrain import InputError
from wavtrain.sweeps.search_space import Choices, Range


def position(dimension: Range | Choices, value: Any) -> float:
    """In its own units; choices are counted."""
    return dimension.values.index(value) if isinstance(dimension, Choices) else value


def height_of(dimension: Range | Choices, value: Any) -> float:
    """From 0 to 1 along its axis."""
    if isinstance(dimension, Choices):
        return dimension.values.index(value) / (len(dimension.values) - 1)
    change: Callable[[float], float] = np.log if dimension.log else float
    return float((change(value) - change(dimension.low)) / (change(dimension.high) - change(dimension.low)))


def ticks(dimension: Range | Choices) -> Sequence[Any]:
    """Values worth a mark."""
    if isinstance(dimension, Choices):
        return dimension.values
    space = np.geomspace if dimension.log else np.linspace
    return space(dimension.low, dimension.high, 5).tolist()


def shown(value: Any) -> str:
    """Three digits do."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def title_of(name: str) -> str:
    """Words for a flag or a measure."""
    return name.replace("_", " ")


def blank(width: float, height: float) -> Any:
    """A figure, so many inches wide and high."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures of a sweep need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")
