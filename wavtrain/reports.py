"""The curves of runs as a picture. `python -m wavtrain.reports RUN [RUN ...] [PICTURE.png]`"""

import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import read_json, read_json_lines, written_beside


class Panel(NamedTuple):
    """One quantity of the records."""
    key: str
    title: str
    unit: str
    scale: float = 1.0
    is_noisy: bool = True
    is_logarithmic: bool = False
    from_zero: bool = False


class Run(NamedTuple):
    """The records of a run, and what they are to be compared with."""
    name: str
    records: list[dict[str, Any]]
    references: dict[str, float]

    def series(self, panel: Panel, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, NaN where the record says null or the axis cannot show it."""
        found = [(record["step"], record[panel.key]) for record in self.records
                 if record.get("phase") == phase and panel.key in record]
        steps, values = np.array(found, dtype=float).reshape(-1, 2).T
        return steps, np.where(values > 0, values, np.nan) if panel.is_logarithmic else values * panel.scale


PANELS = (
    Panel("loss", "Loss", "nats per masked frame (CTC: utterance)"),
    Panel("contrastive_accuracy", "Contrastive accuracy", "% of masked frames", scale=100, from_zero=True),
    Panel("code_perplexity", "Code perplexity", "codewords", from_zero=True),
    Panel("wer", "Word error rate", "% of words", scale=100, from_zero=True),
    Panel("cer", "Character error rate", "% of characters", scale=100, from_zero=True),
    Panel("gradient_norm", "Gradient norm", "L2 norm before clipping, log", is_logarithmic=True),
    Panel("learning_rate", "Learning rate", "learning rate (no unit)", is_noisy=False, from_zero=True),
    Panel("gumbel_temperature", "Gumbel temperature", "temperature (no unit)", is_noisy=False),
)
SMOOTHED_SHARE = 0.02  # of a run's records under the running mean, and never less than three of them
HEALTHY_SHARE = 0.3  # of the codebook in use
VALIDATION_STYLE = {"linestyle": "--", "linewidth": 1.2, "marker": "o", "markersize": 4}


def training_curves(output_dirs: Sequence[str], path: str) -> str:
    """Draw the metrics.jsonl of one run, or of several over one another, into a PNG; return its path."""
    with written_beside(path) as beside:
        curves_figure(output_dirs).savefig(beside, format="png", dpi=110)
    return path


def curves_figure(output_dirs: Sequence[str]) -> Any:
    """A panel for every quantity that any of the runs recorded."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("training curves need matplotlib: pip install matplotlib") from error
    runs = _read_runs(output_dirs)
    recorded = {key for run in runs for record in run.records for key in record}
    panels = [panel for panel in PANELS if panel.key in recorded]
    columns = min(len(panels), 3) or 1
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(5.0 * columns, 9), 3.4 * rows + 1), layout="constrained")
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(title if panels else f"{title}: no records yet", fontsize=14, fontweight="bold")
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        for number, run in enumerate(runs):
            _draw_run(axes, panel, run, f"C{number % 10}", f"C{number % 10}" if len(runs) > 1 else "C1")
        for height in {run.references.get(panel.key, 0) for run in runs} - {0}:
            _draw_reference(axes, panel.key, height)
        _label(axes, panel)
    _draw_legend(figure, runs)
    return figure


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values around each one; the window narrows towards the ends."""
    half = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    is_finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(each)]) for each in (np.where(is_finite, values, 0), is_finite))
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / np.where(counts[high] > counts[low], counts[high] - counts[low], np.nan)


def _read_runs(output_dirs: Sequence[str]) -> list[Run]:
    names = [os.path.basename(os.path.abspath(output_dir)) for output_dir in output_dirs]
    runs = []
    for name, output_dir in zip(names, output_dirs, strict=True):
        path = os.path.join(output_dir, "metrics.jsonl")
        if not os.path.isfile(path):
            raise InputError(f"{path} is missing: name the --output_dir of a training run")
        title = name if names.count(name) == 1 else os.path.normpath(output_dir)
        runs.append(Run(title.replace("$", r"\$"), read_json_lines(path), _references(output_dir)))  # $ begins a formula
    return runs


def _references(output_dir: str) -> dict[str, float]:
    """What guessing gives, and the size of the codebook: from config.json, or arguments.yaml, which is there before it."""
    facts, path = read_json(os.path.join(output_dir, "config.json")) or {}, os.path.join(output_dir, "arguments.yaml")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            facts |= {key: value for key, value in (yaml.safe_load(file) or {}).items() if value is not None}
    chance = 100 / (facts["num_negatives"] + 1) if facts.get("num_negatives") else 0
    size = facts.get("num_codevector_groups", 0) * facts.get("num_codevectors_per_group", 0)
    return {"contrastive_accuracy": chance, "code_perplexity": size}


def _draw_run(axes: Any, panel: Panel, run: Run, color: str, validation_color: str) -> None:
    steps, values = run.series(panel, "train")
    if panel.is_noisy:
        axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.35, zorder=2)
        values = smoothed(values)
    axes.plot(steps, values, color=color, linewidth=1.9, marker="." if len(steps) == 1 else None, zorder=3)
    axes.plot(*run.series(panel, "validation"), color=validation_color, zorder=4, **VALIDATION_STYLE)


def _draw_reference(axes: Any, key: str, height: float) -> None:
    text = f"chance {height:.2g} %"
    if key == "code_perplexity":
        text = f"codebook {height:,}, healthy above {100 * HEALTHY_SHARE:.0f} % of it"
        axes.axhspan(HEALTHY_SHARE * height, height, color="tab:green", alpha=0.09, linewidth=0)
        axes.set_ylim(top=max(1.12 * height, axes.get_ylim()[1]))
    axes.axhline(height, color="0.35", linestyle=":", linewidth=1.3)
    axes.annotate(text, (0.98, height), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                  horizontalalignment="right", fontsize=8, color="0.3", zorder=5)


def _label(axes: Any, panel: Panel) -> None:
    axes.set(title=panel.title, ylabel=panel.unit, xlabel="step (optimizer updates)")
    axes.set_yscale("log" if panel.is_logarithmic else "linear")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0 if panel.from_zero else None)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(color="0.9", zorder=0)


def _draw_legend(figure: Any, runs: list[Run]) -> None:
    from matplotlib.lines import Line2D

    train, validation = ("C0", "C1") if len(runs) == 1 else ("0.4", "0.4")
    smooth = f"train, smoothed: running mean over {100 * SMOOTHED_SHARE:.0f} % of the run"
    handles = [Line2D([], [], color=f"C{number % 10}", linewidth=4, label=f"run {run.name}") for number, run in enumerate(runs)]
    handles = [*(handles if len(runs) > 1 else ()), Line2D([], [], color=train, linewidth=1.9, label=smooth),
               Line2D([], [], color=train, linewidth=0.7, alpha=0.6, label="train, every record"),
               Line2D([], [], color=validation, label="validation", **VALIDATION_STYLE)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def main(words: Sequence[str]) -> str:
    """All words are runs, but a last one that ends with .png is the picture."""
    *runs, picture = words if words and words[-1].endswith(".png") else (*words, None)
    if not runs or any(word.startswith("-") for word in words):
        raise InputError("name the --output_dir of runs: python -m wavtrain.reports RUN [RUN ...] [PICTURE.png]")
    return training_curves(runs, picture or os.path.join(runs[0], "training_curves.png"))


if __name__ == "__main__":
    run_as_script(lambda: print(main(sys.argv[1:])))
