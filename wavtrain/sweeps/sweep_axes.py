"""Where values of flags lie on an axis, and what stands there."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wavtrain import InputError
from wavtrain.sweeps.search_space import Choices, Range

BEYOND = 0.06  # of the axis: where values lie that are outside of the space


def position(dimension: Range | Choices, value: Any) -> float:
    """In its own units; choices are counted. Beyond the ends, a little beyond."""
    if isinstance(dimension, Choices):
        found = dimension.match(value)
        return -1 if found is None else dimension.values.index(found)
    if not is_outside(dimension, value):
        return value
    end, other = (dimension.high, dimension.low) if height_of(dimension, value) > 1 else (dimension.low, dimension.high)
    return end * (end / other) ** BEYOND if dimension.log else end + (end - other) * BEYOND


def height_of(dimension: Range | Choices, value: Any) -> float:
    """From 0 to 1 along its axis; a base config's may lie outside of the space, so beyond the axis."""
    if isinstance(dimension, Choices):
        found = dimension.match(value)
        return -BEYOND if found is None else dimension.values.index(found) / (len(dimension.values) - 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (dimension.log and value <= 0):
        return -BEYOND
    change: Callable[[float], float] = np.log if dimension.log else float
    height = (change(value) - change(dimension.low)) / (change(dimension.high) - change(dimension.low))
    return float(min(max(height, -BEYOND), 1 + BEYOND))


def is_outside(dimension: Range | Choices, value: Any) -> bool:
    """Drawn beyond the axis, wherever it really is."""
    return not 0 <= height_of(dimension, value) <= 1


def ticks(dimension: Range | Choices) -> Sequence[Any]:
    """Values worth a mark."""
    if isinstance(dimension, Choices):
        return dimension.values
    space = np.geomspace if dimension.log else np.linspace
    return space(dimension.low, dimension.high, 5).tolist()


def shown(value: Any) -> str:
    """Three digits do."""
    if value is None:
        return "not given"
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
