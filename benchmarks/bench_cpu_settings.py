"""The two traps of training on a CPU: what threads and the C library's memory cost a step, on a quiet machine and a busy one.

    python benchmarks/bench_cpu_settings.py --json quiet.json                       # on a machine that does nothing else
    python benchmarks/bench_cpu_settings.py --busy 1 --json busy.json               # one of its cores is taken

The first side is what the scripts do when the user has set nothing. The others differ from it in what their name says: memory
goes back to the kernel after each step (glibc's way), one thread, as many threads as cores that spin or sleep when they wait
for each other. Each side is a process of its own; the ratio is its time to that of the first side. --busy starts
processes that never rest, and OMP_* and GOMP_* of the environment are put aside.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Clock, Round, spread

SPINS, SLEEPS = {"GOMP_SPINCOUNT": "300000"}, {"OMP_WAIT_POLICY": "PASSIVE"}  # the first is libgomp's own where nothing is set
SIDES = {"as the scripts": {}, "memory given back": {}, "one thread": {"OMP_NUM_THREADS": "1"},
         "all cores, spinning": {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), **SPINS},
         "all cores, sleeping": {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), **SLEEPS}}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT / "configs/models/wav2vec2-tiny"))
    parser.add_argument("--seconds", type=float, default=6.0, help="of each clip (%(default)s)")
    parser.add_argument("--clips", type=int, default=10, help="in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="in a round (%(default)s)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that never rest (%(default)s)")
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_"))]:
        del os.environ[name]
    if args.side:
        os.environ.update(SIDES[args.side])  # before torch comes, whose libgomp looks once
        return side_by_side.serve(training(args))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        results = side_by_side.in_turn(tuple(SIDES), args.rounds)
    finally:
        for process in busy:
            process.kill()
    first, *_ = results.values()
    rows = []
    for side, rounds in results.items():
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(rounds, first, strict=True)]
        used = (spread([each[name] for each in rounds], 3) for name in ("seconds", "cpu_seconds"))
        rows.append([side, *used, spread(ratios, 2), f"{rounds[0]['threads']:g}"])
    side_by_side.report(rows, ["", "s of a step", "core-s of a step", "to the first", "threads"], args, results)


def training(args: argparse.Namespace) -> Callable[[], Round]:
    """Some steps of pretraining: the median time of one, the mean processor time."""
    sys.path.insert(0, str(ROOT))
    if args.side == "as the scripts":
        importlib.import_module("wavtrain")  # before torch, as they do
    import numpy as np
    import torch

    from wavtrain.engine import accelerator_for, keep_freed_memory
    from wavtrain.masking import masked_places, span_mask
    from wavtrain.models.contrastive import ObjectiveSettings
    from wavtrain.models.encoders import build, load_config

    if args.side == "as the scripts":
        accelerator_for("no")
    elif args.side != "memory given back":
        keep_freed_memory()
    torch.manual_seed(0)
    config = load_config(args.model_name_or_path, "--model_name_or_path", {"mask_time_prob": 0.65})
    model = build(config, ObjectiveSettings())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    samples = round(args.seconds * SAMPLING_RATE)
    frames = int(model._get_feat_extract_output_lengths(samples))
    mask = span_mask(np.full(args.clips, frames), 0.65, 10, 2, np.random.default_rng(0))
    places, counts = (torch.from_numpy(each) for each in masked_places(mask))
    values = torch.randn(args.clips, samples)

    def work() -> Round:
        times, clock = [], Clock()
        for _ in range(args.steps):
            start = time.perf_counter()
            model(values, torch.from_numpy(mask), places, counts, temperature=2.0)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        return {"seconds": median(times), "cpu_seconds": clock.read()["cpu_seconds"] / args.steps,
                "threads": torch.get_num_threads()}

    return work


if __name__ == "__main__":
    main()
