"""One training step on a CPU with glibc's memory kept (wavtrain.engine) and without, in turn; each in its own process.

    python benchmarks/bench_allocator.py --model_name_or_path configs/models/wav2vec2-tiny --seconds 6 --clips 10
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Print the medians of both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT / "configs/models/wav2vec2-tiny"))
    parser.add_argument("--seconds", type=float, default=6.0, help="of each clip")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("kept", "returned"), help="measure only this, in this process")
    args = parser.parse_args()
    if args.way:
        print(seconds_of_a_step(args))
        return
    found: dict[str, list[float]] = {"kept": [], "returned": []}
    for _ in range(args.repeats):
        for way, times in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            times.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    medians = {way: statistics.median(times) for way, times in found.items()}
    print(json.dumps({"machine": platform.processor() or platform.machine(), "seconds_of_a_step": medians,
                      "all": found, "ratio": medians["returned"] / medians["kept"]}, indent=1))


def seconds_of_a_step(args: argparse.Namespace) -> float:
    """The median of some steps after two that warm up."""
    import numpy as np
    import torch

    from wavtrain.contrastive import ObjectiveSettings
    from wavtrain.encoders import build, load_config
    from wavtrain.engine import keep_freed_memory
    from wavtrain.masking import masked_places, span_mask

    if args.way == "kept":
        keep_freed_memory()
    torch.manual_seed(0)
    config = load_config(args.model_name_or_path, "--model_name_or_path", {"mask_time_prob": 0.65})
    model = build(config, ObjectiveSettings())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    samples = round(args.seconds * 16_000)
    frames = int(model._get_feat_extract_output_lengths(samples))
    mask = span_mask(np.full(args.clips, frames), 0.65, 10, 2, np.random.default_rng(0))
    places, counts = (torch.from_numpy(each) for each in masked_places(mask))
    values, times = torch.randn(args.clips, samples), []
    for _ in range(2 + args.steps):
        start = time.perf_counter()
        model(values, torch.from_numpy(mask), places, counts, temperature=2.0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
