"""Pictures of a sweep: how it went, which flags mattered, how all flags lay together."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wavtrain import InputError
from wavtrain.durable_files import written_beside
from wavtrain.sweeps.objectives import Objective
from wavtrain.sweeps.search_space import Choices, Range, Space
from wavtrain.sweeps.trial_rows import Row

LOST, EARLY, BEST, BASE = "tab:red", "0.6", "tab:orange", "black"
FEW = 10  # completed trials: importances of fewer are a hint
COLUMNS = 4


def draw(output_dir: str, rows: Sequence[Row], space: Space, objective: Objective, importances: dict[str, float]) -> list[str]:
    """history.png, importance.png and parallel_coordinates.png; where no trial has a value, none."""
    if not any(row.value is not None for row in rows):
        return []
    figures = {"history": history(rows, objective), "importance": importance(rows, space, objective, importances),
               "parallel_coordinates": parallel_coordinates(rows, space, objective)}
    paths = []
    for name, figure in figures.items():
        paths.append(os.path.join(output_dir, f"{name}.png"))
        with written_beside(paths[-1]) as beside:
            figure.savefig(beside, format="png", dpi=110)
    return paths


def history(rows: Sequence[Row], objective: Objective) -> Any:
    """The value of each trial in the order of the trials, and how it got there."""
    figure = _figure(12, 4.8)
    left, right = figure.subplots(1, 2)
    _draw_values(left, sorted(rows, key=lambda row: row.number), objective)
    best = rows[0] if rows[0].kind == "complete" else None
    for row in rows:
        color, width, order = _style(row, best)
        steps = sorted(row.curve)
        right.plot(steps, [row.curve[step] for step in steps], color=color, linewidth=width, marker="o", markersize=width + 1,
                   zorder=order, alpha=1.0 if width > 1 else 0.7)
    right.set(title="How they got there", xlabel="update (optimizer steps)", ylabel=f"validation {_plain(objective.metric)}")
    right.set_xlim(left=0)
    right.xaxis.set_major_formatter("{x:,.0f}")
    _draw_legend(figure, rows, objective)
    return figure


def importance(rows: Sequence[Row], space: Space, objective: Objective, importances: dict[str, float]) -> Any:
    """Shares of importance, and the value of every trial over each flag."""
    num_rows = -(-len(space) // COLUMNS)
    figure = _figure(12, 2.2 + 0.3 * len(space) + 2.9 * num_rows)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.4 + 0.3 * len(space), 2.9 * num_rows])
    axes, done = upper.subplots(), sum(row.kind == "complete" for row in rows)
    shares = sorted(importances.items(), key=lambda each: each[1])
    bars = axes.barh([_plain(name) for name, _ in shares], [100 * share for _, share in shares], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f %%", padding=4)
    hint = ": so few are a hint, no more" if done < FEW else ""
    axes.set(title="What tells the best trials from the rest (PED-ANOVA)", xlim=(0, 108),
             xlabel=f"share of importance, % (of {done} completed trials{hint})")
    if not shares:
        axes.text(0.5, 0.5, "too few completed trials that differ", transform=axes.transAxes, horizontalalignment="center")
    grid = lower.subplots(num_rows, min(COLUMNS, len(space)), sharey=True, squeeze=False).flat
    best = rows[0] if rows[0].kind == "complete" else None
    for place, (name, dimension) in zip(grid, space.items(), strict=False):
        for row in rows:
            if name in row.params and row.value is not None:
                place.scatter(_position(dimension, row.params[name]), row.value, color=_style(row, best)[0], s=34, zorder=3,
                              marker="v" if row.kind == "pruned" else "o")
        _scale(place, dimension)
        place.set(xlabel=_plain(name) + (", log" if getattr(dimension, "log", False) else ""))
        place.grid(color="0.9", zorder=0)
    for place in list(grid):
        place.set_visible(False)
    lower.supylabel(f"validation {_plain(objective.metric)}", fontsize=10)
    _draw_legend(figure, rows, objective)
    return figure


def parallel_coordinates(rows: Sequence[Row], space: Space, objective: Objective) -> Any:
    """A line for each trial over all flags to its value; those without a value end at the last flag."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = _figure(max(9, 2.1 * (len(space) + 1)), 5.4)
    axes = figure.subplots()
    values = [row.value for row in rows if row.value is not None]
    low, high = min(values), max(values)
    high = high if high > low else low + (abs(low) or 1) * 1e-3
    colors = colormaps["viridis" if objective.direction == "maximize" else "viridis_r"]
    for row in reversed(rows):
        if space.keys() <= row.params.keys():
            heights = [_height(dimension, row.params[name]) for name, dimension in space.items()]
            color, dashes = LOST, ":"
            if row.value is not None:
                heights.append((row.value - low) / (high - low))
                color, dashes = colors(heights[-1]), "-" if row.kind == "complete" else "--"
            axes.plot(range(len(heights)), heights, color=color, linestyle=dashes, alpha=0.9,
                      linewidth=3.2 if row is rows[0] else 1.6)
    for place, dimension in enumerate(space.values()):
        axes.axvline(place, color="0.3", linewidth=1)
        for value in _ticks(dimension):
            _mark(axes, place, _height(dimension, value), _short(value))
    axes.axvline(len(space), color="0.3", linewidth=1)
    for height in (0, 0.25, 0.5, 0.75, 1):
        _mark(axes, len(space), height, _short(low + height * (high - low)))
    names = [_plain(name) + ("\n(log)" if getattr(each, "log", False) else "") for name, each in space.items()]
    axes.set_xticks(range(len(space) + 1), [*names, f"validation\n{_plain(objective.metric)}"])
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.35, len(space) + 0.45), title="All flags together")
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colors), ax=axes, pad=0.01)
    bar.set_label(f"validation {_plain(objective.metric)}")
    figure.text(0.01, 0.005, "thick: the best   solid: completed   dashed: ended early, at its last value   red dots: "
                "failed or still running", fontsize=9, color="0.3")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    return figure


def _draw_values(axes: Any, rows: Sequence[Row], objective: Objective) -> None:
    pick = max if objective.direction == "maximize" else min
    so_far: list[tuple[int, float]] = []
    for row in rows:
        if row.kind == "complete":
            so_far.append((row.number, pick(row.value, so_far[-1][1]) if so_far else row.value))
            axes.scatter(row.number, row.value, color=BASE if row.is_base else "tab:blue", s=46, zorder=3)
        elif row.value is not None and row.kind == "pruned":
            axes.scatter(row.number, row.value, color=EARLY, marker="v", s=46, zorder=3)
        else:
            axes.scatter(row.number, 0.03, color=LOST, marker="x", s=46, zorder=3, transform=axes.get_xaxis_transform())
    if so_far:
        so_far.append((rows[-1].number, so_far[-1][1]))
        axes.step(*zip(*so_far, strict=True), where="post", color=BEST, linewidth=1.8, zorder=2)
    axes.set(title="Trials in their order", xlabel="trial", ylabel=f"validation {_plain(objective.metric)}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9", zorder=0)


def _draw_legend(figure: Any, rows: Sequence[Row], objective: Objective) -> None:
    from matplotlib.lines import Line2D

    better = "higher" if objective.direction == "maximize" else "lower"
    kinds = [("base config", BASE, "o", any(row.is_base for row in rows)), ("completed", "tab:blue", "o", True),
             ("ended early, at its last value", EARLY, "v", any(row.kind == "pruned" for row in rows)),
             ("failed or still running", LOST, "x", any(row.kind not in ("complete", "pruned") for row in rows)),
             (f"the best ({better} is better)", BEST, "_", True)]
    handles = [Line2D([], [], color=color, marker=marker, linestyle="-" if marker == "_" else "", label=label)
               for label, color, marker, is_there in kinds if is_there]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _style(row: Row, best: Row | None) -> tuple[str, float, int]:
    """Colour, width, and what lies over what."""
    if row is best:
        return BEST, 2.4, 5
    if row.is_base:
        return BASE, 1.8, 4
    return ("tab:blue", 1.0, 3) if row.kind == "complete" else (EARLY if row.kind == "pruned" else LOST, 1.0, 2)


def _scale(axes: Any, dimension: Range | Choices) -> None:
    if isinstance(dimension, Choices):
        axes.set_xticks(range(len(dimension.values)), [_short(value) for value in dimension.values])
        axes.set_xlim(-0.5, len(dimension.values) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")


def _position(dimension: Range | Choices, value: Any) -> float:
    return dimension.values.index(value) if isinstance(dimension, Choices) else value


def _height(dimension: Range | Choices, value: Any) -> float:
    """From 0 to 1 along its axis."""
    if isinstance(dimension, Choices):
        return dimension.values.index(value) / (len(dimension.values) - 1)
    change: Callable[[float], float] = np.log if dimension.log else float
    return float((change(value) - change(dimension.low)) / (change(dimension.high) - change(dimension.low)))


def _ticks(dimension: Range | Choices) -> Sequence[Any]:
    if isinstance(dimension, Choices):
        return dimension.values
    space = np.geomspace if dimension.log else np.linspace
    return space(dimension.low, dimension.high, 5).tolist()


def _mark(axes: Any, place: float, height: float, text: str) -> None:
    axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, verticalalignment="center",
                  bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}, zorder=6)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures of a sweep need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")
