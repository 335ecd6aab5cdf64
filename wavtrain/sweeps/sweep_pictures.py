"""Pictures of a sweep: how it went, which flags mattered, how all flags lay together."""

import os
from collections.abc import Sequence
from typing import Any

from wavtrain.durable_files import written_beside
from wavtrain.sweeps.objectives import Objective
from wavtrain.sweeps.parallel_coordinates import parallel_coordinates
from wavtrain.sweeps.search_space import Choices, Range, Space
from wavtrain.sweeps.sweep_axes import blank, height_of, is_outside, position, shown, ticks, title_of
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
    figure = blank(12, 4.8)
    left, right = figure.subplots(1, 2)
    _draw_values(left, sorted(rows, key=lambda row: row.number), objective)
    best = rows[0] if rows[0].kind == "complete" else None
    for row in rows:
        color, width, order = _style(row, best)
        steps = sorted(row.curve)
        right.plot(steps, [row.curve[step] for step in steps], color=color, linewidth=width, marker="o", markersize=width + 1,
                   zorder=order, alpha=1.0 if width > 1 else 0.7)
    right.set(title="How they got there", xlabel="update (optimizer steps)", ylabel=f"validation {title_of(objective.metric)}")
    right.set_xlim(left=0)
    right.xaxis.set_major_formatter("{x:,.0f}")
    right.grid(color="0.9", zorder=0)
    _draw_legend(figure, rows, objective)
    return figure


def importance(rows: Sequence[Row], space: Space, objective: Objective, importances: dict[str, float]) -> Any:
    """Shares of importance, and the value of every trial over each flag."""
    num_rows = -(-len(space) // COLUMNS)
    figure = blank(12, 2.2 + 0.3 * len(space) + 2.9 * num_rows)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.4 + 0.3 * len(space), 2.9 * num_rows])
    axes, done = upper.subplots(), sum(row.kind == "complete" for row in rows)
    shares = sorted(importances.items(), key=lambda each: each[1])
    bars = axes.barh([title_of(name) for name, _ in shares], [100 * share for _, share in shares], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f %%", padding=4)
    hint = ": so few are a hint, no more" if done < FEW else ""
    axes.set(title="What tells the best trials from the rest (PED-ANOVA)", xlim=(0, 108),
             xlabel=f"share of importance, % (of {done} completed trials{hint})")
    if not shares:
        axes.text(0.5, 0.5, "too few completed trials that differ", transform=axes.transAxes, horizontalalignment="center")
    grid = lower.subplots(num_rows, min(COLUMNS, len(space)), sharey=True, squeeze=False).flat
    best = rows[0] if rows[0].kind == "complete" else None
    for (name, dimension), place in zip(space.items(), grid, strict=False):
        for row in (row for row in rows if name in row.params):
            _draw_point(place, position(dimension, row.params[name]), row, best)
            if is_outside(dimension, row.params[name]):
                _tell_outside(place, dimension, row.params[name])
        _scale(place, dimension)
        place.set(xlabel=title_of(name) + (", log" if getattr(dimension, "log", False) else ""))
        place.grid(color="0.9", zorder=0)
    for place in list(grid):
        place.set_visible(False)
    lower.supylabel(f"validation {title_of(objective.metric)}", fontsize=10)
    _draw_legend(figure, rows, objective)
    return figure


def _draw_values(axes: Any, rows: Sequence[Row], objective: Objective) -> None:
    pick = max if objective.direction == "maximize" else min
    so_far: list[tuple[int, float]] = []
    for row in rows:
        if row.kind == "complete":
            so_far.append((row.number, pick(row.value, so_far[-1][1]) if so_far else row.value))
        _draw_point(axes, row.number, row, None)
    if so_far:
        so_far.append((rows[-1].number, so_far[-1][1]))
        axes.step(*zip(*so_far, strict=True), where="post", color=BEST, linewidth=1.8, zorder=2)
    axes.set(title="Trials in their order", xlabel="trial", ylabel=f"validation {title_of(objective.metric)}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9", zorder=0)


def _draw_point(axes: Any, place: float, row: Row, best: Row | None) -> None:
    color, _, order = _style(row, best)
    if row.state in ("complete", "pruned") and row.value is not None:
        axes.scatter(place, row.value, color=color, s=42, zorder=order, marker="v" if row.state == "pruned" else "o")
    else:
        axes.scatter(place, 0.03, color=LOST, marker="x", s=42, zorder=order, transform=axes.get_xaxis_transform())


def _tell_outside(axes: Any, dimension: Range | Choices, value: Any) -> None:
    """The base config's, which no trial can have."""
    axes.axvline(position(dimension, value), color=BASE, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_title(f"base: {shown(value)}, outside of the space", fontsize=8, pad=3,
                   loc="right" if height_of(dimension, value) > 1 else "left")


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
        axes.set_xticks(range(len(dimension.values)), [shown(value) for value in dimension.values])
        axes.set_xlim(min(axes.dataLim.x0, 0) - 0.5, len(dimension.values) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")
        axes.set_xticks(ticks(dimension)[::2], [shown(value) for value in ticks(dimension)[::2]])
        axes.set_xticks([], minor=True)
