"""The curves of runs as a picture, their last numbers as a table. `python -m wavtrain.reports RUN [RUN ...] [PICTURE.png]`"""

import io
import logging
import os
import sys
from collections.abc import Sequence

import numpy as np

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import written_beside
from wavtrain.reporting.curves import curves_figure
from wavtrain.reporting.recorded_runs import Run, names_of, read_run, smoothed

COLUMNS = {  # of the table: title, factor, format
    "audio_hours": ("hours", 1, ",.2f"), "loss": ("loss", 1, ".4g"), "contrastive_accuracy": ("accuracy %", 100, ".2f"),
    "code_perplexity": ("perplexity", 1, ".1f"), "wer": ("WER %", 100, ".2f"), "cer": ("CER %", 100, ".2f"),
    "gradient_norm": ("gradient norm", 1, ".3g"), "padding_fraction": ("padding %", 100, ".1f"),
    "audio_seconds_per_second": ("audio-s/s", 1, ",.4g"),
}
AS_THEY_ARE = ("audio_hours",)  # not smoothed

logger = logging.getLogger(__name__)


def training_curves(output_dirs: Sequence[str], path: str) -> str:
    """Draw the metrics.jsonl of one run, or of several over one another, into a PNG; return its path."""
    return _drawn(_read(output_dirs), path)


def draw_curves(output_dir: str) -> None:
    """training_curves.png of a run; one that cannot be drawn does not matter to the run."""
    try:
        training_curves([output_dir], os.path.join(output_dir, "training_curves.png"))
    except Exception as error:
        logger.warning("no training_curves.png: %s; python -m wavtrain.reports %s tries again", error, output_dir)


def table(runs: Sequence[Run]) -> str:
    """Of each run the last numbers (train: smoothed, as in the picture), and the validation with the lowest WER."""
    keys = [key for key in COLUMNS if any(run.has(key) for run in runs)]
    rows = [["run", "", "step", *(COLUMNS[key][0] for key in keys)]]
    for run in runs:
        ends = {"train": -1, "validation": -1}
        _, rates = run.series("wer", "validation")
        for phase, place in ends.items():
            if len(run.phases.get(phase, ())):
                rows.append(_row(run, phase, phase, place, keys))
        if np.isfinite(rates).any():
            rows.append(_row(run, "best", "validation", int(np.nanargmin(rates)), keys))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if place < 2 else cell.rjust(width)
                               for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def _row(run: Run, title: str, phase: str, place: int, keys: Sequence[str]) -> list[str]:
    cells = [run.name if title == "train" or "train" not in run.phases else "", title]
    cells.append(f"{run.series('step', phase)[1][place]:,.0f}")
    for key in keys:
        _, values = run.series(key, phase)
        _, scale, shown = COLUMNS[key]
        value = (smoothed(values) if phase == "train" and key not in AS_THEY_ARE else values)[place]
        cells.append(format(value * scale, shown) if np.isfinite(value) else "")
    return cells


def _read(output_dirs: Sequence[str]) -> list[Run]:
    return [read_run(folder, name) for folder, name in zip(output_dirs, names_of(output_dirs), strict=True)]


def _drawn(runs: Sequence[Run], path: str) -> str:
    figure, picture = curves_figure(runs), io.BytesIO()
    from PIL import Image  # of matplotlib

    figure.savefig(picture, format="png", dpi=110)
    with written_beside(path) as beside:  # few colours make a small file
        few = Image.open(picture).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(beside, "PNG", optimize=True)
    return path


def main(words: Sequence[str]) -> str:
    """All words are runs, but a last one that ends with .png is the picture."""
    *folders, picture = words if words and words[-1].endswith(".png") else (*words, None)
    if not folders or any(word.startswith("-") for word in words):
        raise InputError("name the --output_dir of runs: python -m wavtrain.reports RUN [RUN ...] [PICTURE.png]")
    runs = _read(folders)
    print(table(runs))
    name = "training_curves.png" if len(folders) == 1 else "compared_curves.png"  # the former is of one run, and on its card
    return _drawn(runs, picture or os.path.join(folders[0], name))


if __name__ == "__main__":
    run_as_script(lambda: print(main(sys.argv[1:])))
