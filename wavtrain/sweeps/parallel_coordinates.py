"""A line for each trial, over all flags that it had, to its value."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from wavtrain.sweeps.objectives import Objective
from wavtrain.sweeps.search_space import Space
from wavtrain.sweeps.sweep_axes import BEYOND, blank, height_of, is_outside, shown, ticks, title_of
from wavtrain.sweeps.trial_rows import Row

LOST, BASE = "tab:red", "black"


def parallel_coordinates(rows: Sequence[Row], space: Space, objective: Objective) -> Any:
    """A line for each trial over all flags to its value; those without a value end at the last flag."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = blank(max(9, 2.1 * (len(space) + 1)), 5.4)
    axes = figure.subplots()
    values = [row.value for row in rows if row.value is not None]
    low, high = min(values), max(values)
    high = high if high > low else low + (abs(low) or 1) * 1e-3
    colors = colormaps["viridis" if objective.direction == "maximize" else "viridis_r"]
    for row in reversed(rows):
        if space.keys() <= row.params.keys():
            heights = [height_of(dimension, row.params[name]) for name, dimension in space.items()]
            color, dashes = LOST, ":"
            if row.value is not None:
                heights.append((row.value - low) / (high - low))
                color, dashes = BASE if row.is_base else colors(heights[-1]), "-" if row.kind == "complete" else "--"
            axes.plot(range(len(heights)), heights, color=color, linestyle=dashes, alpha=0.9,
                      linewidth=3.2 if row is rows[0] and row.state == "complete" else 1.6)
    for place, dimension in enumerate(space.values()):
        axes.axvline(place, color="0.3", linewidth=1)
        for value in ticks(dimension):
            _mark(axes, place, height_of(dimension, value), shown(value))
    outside = [(place, row.params[name]) for row in rows for place, (name, dimension) in enumerate(space.items())
               if name in row.params and is_outside(dimension, row.params[name])]
    for place, value in outside:
        _mark(axes, place, height_of(list(space.values())[place], value), f"base: {shown(value)}")
    axes.axvline(len(space), color="0.3", linewidth=1)
    for height in (0, 0.25, 0.5, 0.75, 1):
        _mark(axes, len(space), height, shown(low + height * (high - low)))
    names = [fill(title_of(name), 14) + ("\n(log)" if getattr(each, "log", False) else "") for name, each in space.items()]
    axes.set_xticks(range(len(space) + 1), [*names, fill(f"validation {title_of(objective.metric)}", 14)])
    axes.set(yticks=[], ylim=(-0.02 - BEYOND, 1.02 + BEYOND), xlim=(-0.35, len(space) + 0.45), title="All flags together")
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colors), ax=axes, pad=0.01)
    bar.set_label(f"validation {title_of(objective.metric)}")
    told = ("thick: the best   black: the base config   solid: completed   dashed: ended early, at its last value   red dots: "
            "failed or still running" + ("\nbeyond the end of an axis: outside of the space" if outside else ""))
    figure.text(0.01, 0.005, told, fontsize=9, color="0.3")
    figure.get_layout_engine().set(rect=(0, 0.07 if outside else 0.04, 1, 0.93 if outside else 0.96))
    return figure


def _mark(axes: Any, place: float, height: float, text: str) -> None:
    axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, verticalalignment="center",
                  bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}, zorder=6)
