"""The real scripts, broken in every way at hand; after each fault the same command must end as if nothing had been.

    python benchmarks/faults.py                       # all of it; full disks need root
    python benchmarks/faults.py --short               # one of most kinds, as in the tests
    python benchmarks/faults.py --only disk hostname  # rows with one of these words

Every row begins runs of a tiny model on a small corpus, breaks them, and gives the same command again with
--resume_from_checkpoint latest. Survived is what then has the metrics.jsonl (all but the speed) and the weights of the run that
nobody disturbed, bit for bit, or to float tolerance where the number of processes changed; a preparation has the same files. A
refusal survives if it is one line with exit code 2 that names its cause. Redone are updates made since the last checkpoint, and
lost is what is missing at the end. Needs requirements-dev.txt. Exit code 1 if a row failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fault_rows
import side_by_side
from breakable import ROOT, Bench, Outcome, can_mount

SHORT = ("kill -9 in a checkpoint write", "weights truncated", "a bit of the audio")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="with -9, at random moments (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a few kinds, one of each, in about 20 seconds")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="rows whose name holds one of these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome here")
    args = parser.parse_args()
    results: dict[str, list[Outcome]] = {}
    only = SHORT if args.short else args.only
    if args.short:
        os.environ["WITHOUT_PICTURES"] = "1"  # which are most of the time of a small run
    with tempfile.TemporaryDirectory() as name, stand_in_hub(Path(name) / "hub"):
        bench = Bench(Path(name) / "work", args.seed, 1 if args.short else 640)
        for fault, trial, times in fault_rows.rows(args.kills):
            if only and not any(words in fault for words in only):
                continue
            if "full disk" in fault and not can_mount(Path(name)):
                print(f"{fault}: left out, as only root can make a small disk", file=sys.stderr)
                continue
            results[fault] = [tried(fault, trial, bench) for _ in range(1 if args.short else times)]
    counts = {fault: [len(each), sum(not one.fault for one in each), sum(one.redone for one in each),
                      sum(one.lost for one in each)] for fault, each in results.items()}
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    table = [[fault, *map(str, row)] for fault, row in counts.items()]
    side_by_side.report(table, ["fault", "tried", "survived", "updates redone", "lost"], args, results)
    num_tried, num_survived, _, num_lost = counts["all"]
    return int(num_tried != num_survived or num_lost > 0)


def tried(fault: str, trial: Callable[[Bench], Outcome], bench: Bench) -> Outcome:
    """Once, and said as it goes."""
    start = time.monotonic()
    outcome = trial(bench)
    verdict = f"FAILED: {outcome.fault}" if outcome.fault else f"survived, {outcome.redone} updates redone"
    print(f"{fault}: {verdict} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    return outcome


@contextmanager
def stand_in_hub(folder: Path) -> Iterator[None]:
    """A Hub on this machine, to which every process pushes; it must be there before the first imports huggingface_hub."""
    folder.mkdir()
    server = subprocess.Popen([sys.executable, ROOT / "tests" / "stand_in_hub.py", folder], stdout=subprocess.PIPE, text=True)
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}", "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(folder.parent / "hf")}
    try:
        yield
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    sys.exit(main())
