"""What came of a sweep: the table, trials.csv, best.yaml, and whether it beats the config that it began with."""

import csv
import os
import shutil
from collections.abc import Sequence
from textwrap import shorten

from wavtrain.durable_files import written_beside
from wavtrain.sweeps.objectives import Objective
from wavtrain.sweeps.script_flags import Base, write_flags
from wavtrain.sweeps.trial_rows import UNFINISHED, Row

TABLE, BEST, RUN_OF_THE_BEST = "trials.csv", "best.yaml", "best_run"
HEAVY = ("checkpoints", "model.safetensors")  # of a trial
ALIKE = ("refused", "crashed", "unmeasured")
FAILURES_IN_A_ROW = 5
SPOKEN = {"pruned": "ended early"}
LONGEST_FATE = 130  # characters


def best_of(rows: Sequence[Row]) -> Row | None:
    """The first of the ranked, if any was completed."""
    return rows[0] if rows and rows[0].kind == "complete" else None


def table(rows: Sequence[Row], names: Sequence[str], objective: Objective) -> str:
    """For people: a line for each trial."""
    heads = ["rank", "trial", objective.metric, *names, "updates", "minutes", "what became of it"]
    lines = [[str(rank) if row.kind == "complete" else "", f"{row.number:04d}", _shown(row.value),
              *(_shown(row.params.get(name)) for name in names), f"{row.updates}", f"{row.minutes:.1f}", _fate(row)]
             for rank, row in enumerate(rows, 1)]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return "\n".join("  ".join(word.ljust(width) if head == heads[-1] else word.rjust(width)
                               for head, word, width in zip(heads, line, widths, strict=True)).rstrip()
                     for line in (heads, *lines))


def write_table(path: str, rows: Sequence[Row], names: Sequence[str], objective: Objective) -> None:
    """For programs: every digit."""
    with written_beside(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "trial", "state", objective.metric, *names, "updates", "minutes", "is_base", "reason"])
        for rank, row in enumerate(rows, 1):
            writer.writerow([rank if row.kind == "complete" else "", row.number, row.state, row.value,
                             *(row.params.get(name) for name in names), row.updates, f"{row.minutes:.2f}", row.is_base,
                             row.reason])


def write_best(output_dir: str, best: Row, base: Base, objective: Objective) -> str:
    """The arguments of the best trial, for --config: they run again in a directory of their own."""
    path = os.path.join(output_dir, BEST)
    origin = "the base config" if best.is_base else f"trial {best.number:04d}"
    comment = f"python {os.path.basename(base.script)} --config {path}   {origin}: {objective.metric} {best.value:.6g}"
    flags = base.flags_of(os.path.join(output_dir, RUN_OF_THE_BEST), {} if best.is_base else best.params)
    write_flags(path, flags, comment)
    return path


def verdict(rows: Sequence[Row], objective: Objective) -> str:
    """Whether it was worth it."""
    best, base = best_of(rows), next((row for row in rows if row.is_base), None)
    if best is None:
        return "no trial was completed, so there is no best one"
    if base is None or base.kind != "complete":
        fate = "was not run" if base is None else _fate(base)
        return f"trial {best.number:04d} is the best: {objective.metric} {best.value:.4g}; the base config {fate}"
    rest = next((row for row in rows if row.kind == "complete" and not row.is_base), None)
    if not best.is_base and (best.value, best.ties) != (base.value, base.ties):
        return (f"trial {best.number:04d} beats the base config: {objective.metric} {_told(best)} against {_told(base)}; one "
                "run each, so try another --seed before you believe it")
    other = f"; the best of the others, trial {rest.number:04d}, has {_told(rest)}" if rest else ""
    return f"no trial beats the base config: {objective.metric} {_told(base)}{other}"


def more_of_the_same(rows: Sequence[Row]) -> str:
    """Why there is no sense in another trial, if so many in a row failed alike."""
    ended = sorted((row for row in rows if row.kind not in UNFINISHED), key=lambda row: row.number)[-FAILURES_IN_A_ROW:]
    kinds = {row.kind for row in ended}
    if len(ended) < FAILURES_IN_A_ROW or len(kinds) > 1 or not kinds <= {*ALIKE}:
        return ""
    return (f"{FAILURES_IN_A_ROW} trials in a row were {kinds.pop()}, the last because: {ended[-1].reason} (the same command "
            "goes on)")


def drop_models(rows: Sequence[Row], folders: dict[int, str]) -> None:
    """Weights and checkpoints of trials that are over and not the best; what they recorded stays."""
    best = best_of(rows)
    for row in rows:
        if row is best or row.kind in UNFINISHED:
            continue
        for name in HEAVY:
            path = os.path.join(folders[row.number], name)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.exists(path):
                os.remove(path)


def _fate(row: Row) -> str:
    kind = f"failed, {row.kind}" if row.state == "failed" else SPOKEN.get(row.kind, row.kind)
    return shorten(f"{kind}{' (the base config)' if row.is_base else ''}{': ' if row.reason else ''}{row.reason}", LONGEST_FATE,
                   placeholder=" ...")


def _told(row: Row) -> str:
    return f"{row.value:.4g}" + (f" (cer {row.ties[1]:.4g})" if row.ties else "")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
