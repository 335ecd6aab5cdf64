"""What a second process brings, measured, and what hundreds of GPUs would, modelled.

    python benchmarks/bench_scaling.py --json scaling.json                                     # 1 M parameters
    python benchmarks/bench_scaling.py --model_name_or_path configs/models/wav2vec2-base --num_hidden_layers 2 --updates 20
    python benchmarks/bench_scaling.py --model_of_communication                                # the tables of docs/scaling.md

Measured: run_wav2vec2_pretraining_no_trainer.py itself, with equal micro-batches per process and a thread for each process.
`together` is one run of --num_processes processes on as many cores, `one` a run of one process on one core, `apart` as many
such runs at once that know nothing of each other: what this machine has to give. The records of metrics.jsonl are read while a
run writes them, the first ones left out; after the last the run is ended. Core-seconds are processor time, in which waiting
costs nothing. The model's line says what is expected of `together`: as fast as apart, but for waiting for the largest
micro-batch of every update (counted in the plan of an epoch) and exchanging gradients (measured alone, hidden by nothing).
On GPUs each process has one of them, and all cores. Not measured on a GPU.

Modelled: docs/scaling.md; every number that the tables stand on is a flag.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import communication
import numpy as np
import psutil
from side_by_side import ROOT, Measure, Round, add_arguments, compared, in_turn, report, serve

sys.path.insert(0, str(ROOT))
SCRIPT = ROOT / "run_wav2vec2_pretraining_no_trainer.py"
SIDES = ("together", "one", "apart")
TARGET = 1.8  # of 2 processes on 2 cores against 1 on 1
MEASURES = [Measure("audio_seconds_per_second", "audio-s per s", 1, TARGET),
            Measure("audio_seconds_per_core_second", "audio-s per core-s", 1), Measure("seconds_per_update", "s per update", 3)]
UPDATES_PER_RECORD, RECORDS_TO_WARM_UP = 2, 3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=3)
    group = parser.add_argument_group("measured")
    group.add_argument("--dataset_name", default=str(ROOT / "demo_corpus"), metavar="CORPUS", help="prepared or not")
    group.add_argument("--model_name_or_path", default=str(ROOT / "configs/models/wav2vec2-tiny"), metavar="FOLDER")
    group.add_argument("--num_hidden_layers", type=int, metavar="N", help="keep only so many layers of the model")
    group.add_argument("--num_processes", type=int, default=2, metavar="N", help="%(default)s")
    group.add_argument("--gradient_accumulation_steps", type=int, nargs="+", default=(1, 4), metavar="N", help="each in turn")
    group.add_argument("--max_batch_duration_in_seconds", type=float, default=24, metavar="S", help="%(default)s")
    group.add_argument("--updates", type=int, default=40, metavar="N", help="that are measured at least (%(default)s)")
    group.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="%(default)s")
    parser.add_argument("--model_of_communication", action="store_true", help="print the tables of docs/scaling.md and stop")
    communication.add_arguments(parser)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


class Run:
    """A training that is watched while it writes its records, and ended after the last."""

    def __init__(self, command: list[str], output: Path, environment: dict[str, str], num_updates: int) -> None:
        self.output, self.num_measured = output, math.ceil(num_updates / UPDATES_PER_RECORD)
        self.needed = RECORDS_TO_WARM_UP + self.num_measured
        self._core_seconds: list[float] = []  # after the first record that counts from, and after the last
        shutil.rmtree(output, ignore_errors=True)  # of the round before
        with open(f"{output}.log", "w") as log:
            self._process = subprocess.Popen([*command, "--output_dir", str(output)], stdout=log, stderr=log,
                                             env=os.environ | environment)

    def is_done(self) -> bool:
        """Whether the last record is there."""
        if self._process.poll() is not None:
            sys.exit(f"{Path(f'{self.output}.log').read_text()}\nbench_scaling.py: error: the training failed")
        num_records = len(self._records())
        for place, number in enumerate((RECORDS_TO_WARM_UP, self.needed)):
            if num_records >= number and len(self._core_seconds) == place:
                self._core_seconds.append(sum(sum(each.cpu_times()[:2]) for each in self._processes()))
        return num_records >= self.needed

    def end(self) -> None:
        """Without saving anything."""
        for each in reversed(self._processes() if self._process.poll() is None else []):
            with suppress(psutil.NoSuchProcess):  # it ended by itself
                each.kill()
        self._process.wait()

    def measured(self) -> tuple[float, float, float]:
        """Seconds of audio, seconds on the wall, core-seconds."""
        records = self._records()[: self.needed]
        spans = [(3600 * (after["audio_hours"] - before["audio_hours"]), after["audio_seconds_per_second"])
                 for before, after in itertools.pairwise(records[RECORDS_TO_WARM_UP - 1 :])]
        return sum(audio for audio, _ in spans), sum(audio / rate for audio, rate in spans), np.ptp(self._core_seconds)

    def _records(self) -> list[dict[str, Any]]:
        path = self.output / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def _processes(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


def train(args: argparse.Namespace, places: list[int], accumulation: int) -> Round:
    """A round of a side: its runs are begun, watched until all have measured enough, and ended."""
    script = [str(SCRIPT), "--dataset_name", str(args.work / "prepared"), "--model_name_or_path", str(args.work / "model"),
              "--max_batch_duration_in_seconds", str(args.max_batch_duration_in_seconds), "--gradient_accumulation_steps",
              str(accumulation), "--logging_steps", str(UPDATES_PER_RECORD), "--max_train_steps", "1000000", "--saving_steps",
              "1000000", "--learning_rate", "1e-4", "--report_to", "none", "--mixed_precision", args.mixed_precision]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(len(places))]
    shares = {"together": [places], "one": [places[:1]], "apart": [[each] for each in places]}[args.side]
    runs = []
    try:
        for number, share in enumerate(shares):
            command = [sys.executable, *(together if args.side == "together" else ()), *script]
            runs.append(Run(command, args.work / f"{args.side}_{number}", placed(share), args.updates))
        while [run for run in runs if not run.is_done()]:  # asks every one of them, each time
            time.sleep(0.05)
    finally:
        for run in runs:
            run.end()
    found = [run.measured() for run in runs]
    return {"audio_seconds_per_second": sum(audio / seconds for audio, seconds, _ in found),
            "audio_seconds_per_core_second": sum(audio for audio, _, _ in found) / sum(used for _, _, used in found),
            "seconds_per_update": median(seconds for _, seconds, _ in found) / runs[0].num_measured / UPDATES_PER_RECORD}


def cores_or_gpus(num_processes: int) -> list[int]:
    """As many as there are to be processes."""
    import torch

    there = list(range(torch.cuda.device_count())) or sorted(os.sched_getaffinity(0))
    if len(there) < num_processes:
        sys.exit(f"bench_scaling.py: error: --num_processes {num_processes}: there are {len(there)} cores or GPUs")
    return there[:num_processes]


def placed(share: list[int]) -> dict[str, str]:
    """Where the next run goes: onto these cores, or GPUs if there are any; what its environment says of that."""
    import torch

    if torch.cuda.is_available():
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, share))}
    os.sched_setaffinity(0, share)
    return {"OMP_NUM_THREADS": "1"}


def exchange(num_bytes: int, repeats: int = 10) -> None:
    """Be one of the processes that sum up so many bytes of gradients in DDP's buckets; the first prints the median seconds."""
    import torch

    from wavtrain.engine import accelerator_for

    state = accelerator_for("no")
    sizes = [min(communication.BUCKET, num_bytes - start) // 4 for start in range(0, num_bytes, communication.BUCKET)]
    buckets, seconds = [torch.ones(size, device=state.device) for size in sizes], []
    for _ in range(repeats):
        torch.distributed.barrier()
        start = time.perf_counter()
        for bucket in buckets:
            torch.distributed.all_reduce(bucket)
        bucket.sum().item()  # is there when all have arrived
        seconds.append(time.perf_counter() - start)
    if state.is_main_process:
        print(json.dumps({"seconds": median(seconds)}), flush=True)
    state.end_training()


def measured_exchange(num_processes: int, num_bytes: int) -> float:
    """Seconds of an exchange between processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), __file__,
               "--side", f"exchange {num_bytes}"]
    shown = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(next(line for line in shown.stdout.splitlines() if line.startswith("{")))["seconds"]


def make_inputs(args: argparse.Namespace) -> int:
    """The speech and the model of all runs; the model's parameters that learn."""
    import torch

    from wavtrain.models.contrastive import ObjectiveSettings
    from wavtrain.models.encoders import build, load_config, load_feature_extractor

    if Path(args.dataset_name, "preparation.json").exists():
        (args.work / "prepared").symlink_to(Path(args.dataset_name).resolve())
    else:
        subprocess.run([sys.executable, str(ROOT / "run_preprocessing.py"), "--dataset_name", args.dataset_name, "--output_dir",
                        str(args.work / "prepared"), "--validation_split_percentage", "0"], check=True, stdout=sys.stderr)
    kept = {"num_hidden_layers": args.num_hidden_layers}
    config = load_config(args.model_name_or_path, "--model_name_or_path", kept)
    config.save_pretrained(args.work / "model")
    load_feature_extractor(args.model_name_or_path, "--model_name_or_path").save_pretrained(args.work / "model")
    with torch.device("meta"):
        return sum(each.numel() for each in build(config, ObjectiveSettings()).parameters() if each.requires_grad)


def expected(args: argparse.Namespace, results: dict[str, list[Round]], accumulation: int, num_parameters: int) -> Round:
    """What the simple model says of `together`, and what it was."""
    from wavtrain.loading import budget_of
    from wavtrain.models.encoders import load_config, takes_uneven_clips
    from wavtrain.speech.prepared_directory import open_prepared

    num_samples = open_prepared(str(args.work / "prepared")).load("train").data.column("num_samples").to_numpy()
    is_cropped = takes_uneven_clips(load_config(str(args.work / "model"), "--model_name_or_path", {})) == "crop"
    budget = budget_of(None, args.max_batch_duration_in_seconds)
    wait = communication.waiting(num_samples, budget, is_cropped, args.num_processes, accumulation)
    seconds = measured_exchange(args.num_processes, 4 * num_parameters)
    rate = {side: median(each["audio_seconds_per_second"] for each in rounds) for side, rounds in results.items()}
    ceiling, alone = rate["apart"] / rate["one"], median(each["seconds_per_update"] for each in results["apart"])
    return {"gradient MB": 4 * num_parameters / 1e6, "seconds of their exchange": seconds, "waiting": wait,
            "apart/one": ceiling, "expected together/one": ceiling / (wait + seconds / alone),
            "measured": rate["together"] / rate["one"]}


def measure(args: argparse.Namespace) -> None:
    """Every side in turn, for each number of micro-batches per process and update."""
    rows, models, everything = [], [], {}
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        num_parameters = make_inputs(args)
        for accumulation in args.gradient_accumulation_steps:
            argv = [*sys.argv[1:], "--gradient_accumulation_steps", str(accumulation), "--work", work]
            results = in_turn(SIDES, args.rounds, argv)
            model = expected(args, results, accumulation, num_parameters)
            for other in SIDES[1:]:
                pair = {side: results[side] for side in ("together", other)}
                of = MEASURES if other == "one" else [each._replace(target=None) for each in MEASURES]
                rows += compared(pair, of, f"{accumulation}, {other}")
            models.append(f"{accumulation}, the model: " + ", ".join(f"{name} {value:.3f}" for name, value in model.items()))
            everything[accumulation] = {"rounds": results, "model": model}
    report(rows, ["micro-batches, other", "", "together", "other", "together/other", "target"], args, everything)
    print("\n".join(models))


def main() -> None:
    args = parse_arguments()
    if args.model_of_communication:
        return communication.print_tables(args)
    if args.side and args.side.startswith("exchange "):
        return exchange(int(args.side.split()[1]))
    places = cores_or_gpus(args.num_processes)
    if args.side:
        return serve(lambda: train(args, places, args.gradient_accumulation_steps[0]))
    return measure(args)


if __name__ == "__main__":
    main()
