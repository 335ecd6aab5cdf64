"""A figure of the curves of runs: every quantity beside what it is to be compared with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wavtrain import InputError
from wavtrain.checks.collapse import HEALTHY_NORM
from wavtrain.reporting.recorded_runs import SMOOTHED_OVER, Run, smoothed, thinned


class Panel(NamedTuple):
    """One quantity of the records."""

    key: str
    title: str
    unit: str
    kind: str | None = None  # of the runs that it is about
    scale: float = 1.0
    is_noisy: bool = True
    is_logarithmic: bool = False
    from_zero: bool = False
    may_be_dull: bool = False  # left out, and told in words, where it never changes


PANELS = (
    Panel("loss", "Loss", "nats per masked frame", kind="contrastive"),
    Panel("loss", "CTC loss", "nats per utterance (or label)", kind="ctc"),
    Panel("contrastive_accuracy", "Contrastive accuracy", "% of masked frames", scale=100, from_zero=True),
    Panel("code_perplexity", "Code perplexity", "codewords", from_zero=True),
    Panel("wer", "Word error rate", "% of words", scale=100, from_zero=True),
    Panel("cer", "Character error rate", "% of characters", scale=100, from_zero=True),
    Panel("gradient_norm", "Gradient norm", "L2 norm before clipping", is_logarithmic=True),
    Panel("learning_rate", "Learning rate", "rate", is_noisy=False, from_zero=True),
    Panel("gumbel_temperature", "Gumbel temperature", "temperature", is_noisy=False, from_zero=True, may_be_dull=True),
    Panel("padding_fraction", "Padding", "% of samples", scale=100, from_zero=True, may_be_dull=True),
    Panel("audio_seconds_per_second", "Speed", "seconds of speech per second", from_zero=True),
)
HEALTHY_SHARE = 0.3  # of the codebook in use
WIDE = 20.0  # a positive quantity that spans more than this factor is drawn on a logarithmic axis
OUTLYING = 0.005, 0.5  # a share of the values at either end, if beyond the rest by this part of its range, is not drawn
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # told apart by the colour-blind too
LINES, MARKERS = ("-", (0, (5, 1.5)), (0, (1.2, 1.2))), "os^Dv<>"
MOST_RAW = 3  # runs; with more of them only the smoothed lines are drawn


def curves_figure(runs: Sequence[Run]) -> Any:
    """A panel for every quantity that any of the runs recorded."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("training curves need matplotlib: pip install matplotlib") from error
    panels = [panel for panel in PANELS if any(_is_about(panel, run) for run in runs)]
    dull = {panel: values for panel in panels if panel.may_be_dull and len(values := _distinct(panel, runs)) == 1}
    panels = [panel for panel in panels if panel not in dull]
    columns, rows = min(len(panels), 3) or 1, -(-len(panels) // 3)
    figure = Figure(figsize=(max(5.0 * columns, 9), 3.3 * rows + 1 + 0.2 * len(runs) / 3), layout="constrained")
    figure.suptitle(_title(runs, dull) if panels else f"{_title(runs, {})}: no records yet", fontsize=13)
    for place, panel in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(rows, columns, place), panel, runs)
    _draw_legend(figure, runs)
    return figure


def _is_about(panel: Panel, run: Run) -> bool:
    return run.has(panel.key) and panel.kind in (None, run.kind)


def _distinct(panel: Panel, runs: Sequence[Run]) -> set[float]:
    values = np.concatenate([run.series(panel.key, phase)[1] for run in runs for phase in run.phases])
    return set(np.unique(values[np.isfinite(values)])[:2].tolist())


def _title(runs: Sequence[Run], dull: dict[Panel, set[float]]) -> str:
    parts = [_plain(runs[0].name)] if len(runs) == 1 else [f"{len(runs)} runs"]
    if len(runs) == 1 and len(runs[0].phases.get("train", ())):
        steps, hours = runs[0].series("audio_hours", "train")
        parts += [f"{steps[-1]:,.0f} updates", f"{hours[-1]:,.{0 if hours[-1] >= 100 else 2}f} hours heard"]
    parts += [f"{panel.title} always {min(values) * panel.scale:.3g}{' %' if panel.scale == 100 else ''}"
              for panel, values in dull.items()]
    return "   |   ".join(parts)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # it would begin a formula


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[Run]) -> None:
    drawn = [(number, run) for number, run in enumerate(runs) if _is_about(panel, run)]
    values = [panel.scale * np.concatenate([run.series(panel.key, phase)[1] for phase in run.phases]) for _, run in drawn]
    low, high = _limits(values)
    is_logarithmic = high > 0 and (panel.is_logarithmic or (panel.key == "loss" and low > 0 and high / low > WIDE))
    shown = (0.0, np.inf) if is_logarithmic else (low, high)
    for number, run in drawn:
        _draw_run(axes, panel, run, number, len(runs), shown)
    _label(axes, panel, is_logarithmic)
    if not is_logarithmic:
        margin = 0.06 * (high - (0 if panel.from_zero else low)) or 0.06 * abs(high) or 1.0
        axes.set_ylim(0 if panel.from_zero else low - margin, high + margin)
        _tell_outliers(axes, np.concatenate(values), low, high)
    elif np.nanmin(np.concatenate(values)) == np.nanmax(np.concatenate(values)):
        axes.set_ylim(low / 10, 10 * high)
    for height in {run.references.get(panel.key, 0) * panel.scale for _, run in drawn} - {0}:
        _draw_reference(axes, panel.key, height)
    if panel.key == "gradient_norm" and any(run.kind == "contrastive" for _, run in drawn):
        axes.axhspan(*HEALTHY_NORM, color="tab:green", alpha=0.09, linewidth=0)
        _note(axes, HEALTHY_NORM[1], "healthy in pretraining: {:g} to {:g}".format(*HEALTHY_NORM))


def _draw_run(axes: Any, panel: Panel, run: Run, number: int, num_runs: int, shown: tuple[float, float]) -> None:
    """Outliers are in no mean, and neither is what a logarithmic axis cannot show."""
    style, is_logarithmic = _train_style(number), shown[1] == np.inf
    steps, values = run.series(panel.key, "train")
    inside = np.where((values * panel.scale > shown[0]) | (not is_logarithmic), values * panel.scale, np.nan)
    if panel.is_noisy:
        if num_runs <= MOST_RAW:
            axes.plot(*thinned(steps, inside), color=style["color"], linewidth=0.7, alpha=0.35, zorder=2)
        inside = np.where((inside >= shown[0]) & (inside <= shown[1]), inside, np.nan)
        inside = np.exp(smoothed(np.log(inside))) if is_logarithmic else smoothed(inside)
    axes.plot(*thinned(steps, inside), linewidth=1.8, marker="." if len(steps) == 1 else None, zorder=3, **style)
    steps, values = run.series(panel.key, "validation")
    if np.isfinite(values).any():
        style = _validation_style(number, num_runs)
        axes.plot(*thinned(steps, values * panel.scale), markevery=max(1, len(steps) // 25), zorder=4, **style)


def _train_style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number // len(COLORS) % len(LINES)]}


def _validation_style(number: int, num_runs: int) -> dict[str, Any]:
    """One run has room for two colours."""
    return {"color": COLORS[1] if num_runs == 1 else COLORS[number % len(COLORS)], "linestyle": "--", "linewidth": 1.0,
            "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def _limits(of_runs: list[np.ndarray]) -> tuple[float, float]:
    """The lowest and highest value that is not beyond the rest of its run."""
    share, beyond = OUTLYING
    rest = []
    for values in (each[np.isfinite(each)] for each in of_runs):
        low, high = np.quantile(values, [share, 1 - share])
        slack = beyond * (high - low)
        rest.append(values[(values >= low - slack) & (values <= high + slack)])
    return min(each.min() for each in rest), max(each.max() for each in rest)


def _tell_outliers(axes: Any, values: np.ndarray, low: float, high: float) -> None:
    """No axis is stretched by a few of them."""
    beside = [(values[values > high], "above"), (values[values < low], "below")]
    told = [f"{len(each):,} {where}, as {each[np.abs(each).argmax()]:.3g}" for each, where in beside if len(each)]
    if told:
        axes.text(0.02, 0.98, f"not shown: {'; '.join(told)}", transform=axes.transAxes, fontsize=8, color="0.3",
                  verticalalignment="top", zorder=5)


def _draw_reference(axes: Any, key: str, height: float) -> None:
    text = f"chance {height:.2g} %"
    if key == "code_perplexity":
        text = f"codebook {height:,.0f}, healthy above {100 * HEALTHY_SHARE:.0f} % of it"
        axes.axhspan(HEALTHY_SHARE * height, height, color="tab:green", alpha=0.09, linewidth=0)
        axes.set_ylim(top=max(1.12 * height, axes.get_ylim()[1]))
    axes.axhline(height, color="0.35", linestyle=":", linewidth=1.3)
    _note(axes, height, text)


def _note(axes: Any, height: float, text: str) -> None:
    axes.annotate(text, (0.98, height), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                  horizontalalignment="right", fontsize=8, color="0.3", zorder=5, annotation_clip=True,
                  bbox={"color": "white", "alpha": 0.6, "pad": 0.5, "linewidth": 0})


def _label(axes: Any, panel: Panel, is_logarithmic: bool) -> None:
    axes.set_title(panel.title, fontweight="bold", fontsize=11)
    axes.set(ylabel=panel.unit + (", log" if is_logarithmic else ""), xlabel="step (optimizer updates)", xlim=(0, None),
             yscale="log" if is_logarithmic else "linear")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6, integer=True)
    if is_logarithmic:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5), numticks=12), minor_locator=NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", zorder=0)


def _draw_legend(figure: Any, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    is_one, color = len(runs) == 1, COLORS[0] if len(runs) == 1 else "0.4"
    handles = [Line2D([], [], linewidth=2.2, marker=MARKERS[number % len(MARKERS)], markersize=4, label=_plain(run.name),
                      **_train_style(number)) for number, run in enumerate(runs) if not is_one]
    handles.append(Line2D([], [], color=color, linewidth=1.8, label=f"train: {SMOOTHED_OVER}"))
    handles += [Line2D([], [], color=color, linewidth=0.7, alpha=0.6, label="train: every record")] * (len(runs) <= MOST_RAW)
    handles.append(Line2D([], [], label="validation", **_validation_style(0, len(runs)) | ({} if is_one else {"color": color})))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
