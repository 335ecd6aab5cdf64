"""What the benchmarks share: sides that take turns, medians with their spread, ratios against targets, one table, one JSON.

A side is the benchmark's own file run with `--side NAME`, in a process of its own, so that memory, threads and allocator of one
do not touch the other. Both stay alive and work in turn, a round each, so that a machine that slows down slows both.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_RATE = 16_000
KINDS = ("librispeech", "commonvoice")  # of durations
Round = dict[str, float]


class Measure(NamedTuple):
    """A line of the table."""

    name: str  # in what a round returns
    unit: str
    digits: int = 1
    target: float | None = None  # of the ratio of the first side to the second
    at_least: bool = True  # whether the target is a least or a most


def add_arguments(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    """Flags of every benchmark."""
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help="of each side (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single number here")
    parser.add_argument("--side", help="be this side: for the benchmark itself, not for users")


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Of those that go over_corpora."""
    parser.add_argument("--durations", nargs="+", choices=KINDS, default=KINDS, help="like which corpora's (both)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)


def in_turn(sides: tuple[str, ...], rounds: int, argv: list[str] | None = None) -> dict[str, list[Round]]:
    """So many rounds of each side, one after the other; a first round of each, which warms up, is not counted."""
    argv = sys.argv[1:] if argv is None else argv
    processes = {side: subprocess.Popen([sys.executable, sys.argv[0], *argv, "--side", side], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True) for side in sides}
    results: dict[str, list[Round]] = {side: [] for side in sides}
    try:
        for number in range(rounds + 1):
            for side, process in processes.items():
                found = _ask(side, process)
                if number:
                    results[side].append(found)
                    shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
                    print(f"{side} {number}/{rounds}: {shown}", file=sys.stderr, flush=True)
    finally:
        for process in processes.values():
            process.kill()
    return results


def over_corpora(
    kinds: Sequence[str], args: argparse.Namespace, set_up: Callable[[argparse.Namespace, str, Path], None],
    sides: tuple[str, ...] = ("suite", "peer"),
) -> dict[str, dict[str, list[Round]]]:
    """The results for each kind of corpus; what `set_up` leaves in a folder is what both sides are given as --work."""
    results = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name:
            set_up(args, kind, Path(name))
            results[kind] = in_turn(sides, args.rounds, ["--work", name, *sys.argv[1:]])
    return results


def _ask(side: str, process: subprocess.Popen[str]) -> Round:
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):  # libraries print as well
            return json.loads(line)
    how = "was killed: out of memory? Give it less to do" if process.wait() < 0 else "failed"
    sys.exit(f"{Path(sys.argv[0]).name}: error: the side {side!r} {how}")


def serve(work: Callable[[], Round]) -> None:
    """Be a side: a round of work for every line that comes in."""
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)


class Clock:
    """Seconds on the wall and of the processor (with children that ended), since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def read(self) -> Round:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": _cpu_seconds() - self._cpu}


def _cpu_seconds() -> float:
    return sum(getattr(resource.getrusage(who), field) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
               for field in ("ru_utime", "ru_stime"))


def peak_megabytes() -> float:
    """The most memory this process ever had; on a GPU the most that was allocated there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def megabytes_of(work: Callable[[], None], device: Any) -> float:
    """The most that is held at a time while it runs, beside what there was before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 1e6


def durations(kind: str, num_clips: int, seed: int = 0) -> np.ndarray:
    """Seconds of clips like those of a corpus: "librispeech" is train-clean between 2 and 20 s, most of them 12 to 16 (mean
    12.2); "commonvoice" has short ones and a long tail (mean 5.6)."""
    generator = np.random.default_rng(seed)
    if kind == "commonvoice":
        return np.clip(generator.lognormal(1.6, 0.45, num_clips), 1.0, 20.0)
    long = generator.random(num_clips) < 0.66
    return np.clip(np.where(long, generator.normal(14.6, 1.2, num_clips), generator.uniform(2.0, 13.5, num_clips)), 2.0, 20.0)


def matmul_peak(device: Any, dtype: Any) -> float:
    """The most FLOP/s that a matrix product of this kind came to, of several."""
    import torch

    size = 4096 if device.type == "cuda" else 1536
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(4):
            one @ other
        wait_for(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def wait_for(device: Any) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What a figure is worth without."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    known: dict[str, Any] = {"cpu": found[1] if found else platform.machine(), "cores": len(os.sched_getaffinity(0)),
                             "threads": os.environ.get("OMP_NUM_THREADS", "as they are"), "python": platform.python_version()}
    known |= {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name()
    return known


def spread(values: list[float], digits: int) -> str:
    """The median, and the least and the most."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def compared(results: dict[str, list[Round]], measures: list[Measure], label: str = "") -> list[list[str]]:
    """Rows of the table: each measure of both sides, and the ratio of the first side to the second, round by round."""
    first, *others = results
    rows = []
    for measure in measures:
        values = {side: [each[measure.name] for each in rounds if measure.name in each] for side, rounds in results.items()}
        row = [label, measure.unit, *(spread(each, measure.digits) if each else "" for each in values.values())]
        if others and values[first] and values[others[0]] and all(values[others[0]]):
            ratios = [one / other for one, other in zip(values[first], values[others[0]], strict=True)]
            row += [spread(ratios, 2), _verdict(measure, median(ratios))]
        rows.append(row)
    return rows


def _verdict(measure: Measure, ratio: float) -> str:
    if measure.target is None:
        return ""
    is_met = ratio >= measure.target if measure.at_least else ratio <= measure.target
    return f"{'>=' if measure.at_least else '<='} {measure.target:g}: {'met' if is_met else 'missed'}"


def report(rows: list[list[str]], header: list[str], args: argparse.Namespace, results: Any) -> None:
    """The machine, the table, and the JSON if it was asked for."""
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    rows = [header, *rows]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(max(map(len, rows)))]
    print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "arguments": vars(args), "results": results}, indent=1,
                                        default=str) + "\n")


def prepared_speech(seconds: np.ndarray, folder: Path, texts: list[str] | None = None) -> None:
    """folder/prepared: clips of these lengths, cut from demo_corpus, which is read round and round; texts as given."""
    import soundfile

    speech = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in sorted((ROOT / "demo_corpus").rglob("*.opus"))])
    wavs, start = folder / "wavs", 0
    wavs.mkdir()
    for number, each in enumerate(seconds):
        length = round(float(each) * SAMPLING_RATE)
        soundfile.write(wavs / f"{number:06d}.wav", np.take(speech, range(start, start + length), mode="wrap"), SAMPLING_RATE)
        start += length
    if texts:
        lines = [f"{number:06d}.wav,{text}" for number, text in enumerate(texts)]
        (wavs / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    subprocess.run([sys.executable, ROOT / "run_preprocessing.py", "--dataset_name", wavs, "--validation_split_percentage", "0",
                    "--output_dir", folder / "prepared"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
