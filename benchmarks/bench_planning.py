"""What a run does before its first update, at scale: the plan of an epoch, and the way of a prepared corpus to its first batch.

    python benchmarks/bench_planning.py --json planning.json              # 10^7 lengths, 10^6 clips, 0.4 GB of disk
    python benchmarks/bench_planning.py --clips 1000000 --corpus_clips 100000 --rounds 2                # a laptop

The plan: wavtrain.batching.plan_epoch beside transformers' get_length_grouped_indices (of its LengthGroupedSampler) over the
same lengths; the memory is what a process needs beyond its lengths at its worst. The way: a prepared directory of so many
rows in 256 shards, as run_preprocessing.py writes them but for their sound (silence, so that it stays small), is opened by
the functions of run_wav2vec2_pretraining_no_trainer.py itself with a tiny model, in a new process each round. Imports are not
counted; what they leave for later is. The files are in memory when they are read: a disk adds its own time.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Clock, Measure, Round, spread

PLAN_TARGETS = {"seconds": 5.0, "megabytes": 500.0}
WAY_TARGET = 10.0
SECONDS_IN_A_BATCH, CLIPS_IN_A_BATCH = 87.5, 8
PLAN = [Measure("seconds", "s", 2), Measure("megabytes", "MB more", 0)]
NUM_SHARDS, ROWS_AT_ONCE = 256, 100


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10**7, help="of the plan (%(default)s)")
    parser.add_argument("--corpus_clips", type=int, default=10**6, help="of the prepared directory (%(default)s)")
    side_by_side.add_corpus_arguments(parser)
    side_by_side.add_arguments(parser, rounds=3)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side == "way":
        return print(json.dumps(way_to_the_first_batch(args.work)))
    if args.side:
        return side_by_side.serve({"suite": suite, "peer": peer}[args.side](args))
    rows, everything = [], {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for kind in args.durations:
            lengths = (side_by_side.durations(kind, args.clips) * SAMPLING_RATE).astype(np.int64)
            np.save(work / "lengths.npy", lengths)
            results = side_by_side.in_turn(("suite", "peer"), args.rounds, ["--work", name, *sys.argv[1:]])
            everything[kind] = results
            found = side_by_side.compared(results, PLAN, f"plan of {args.clips:,} clips, {kind}")
            for row, (measure, target) in zip(found, PLAN_TARGETS.items(), strict=True):
                row[-1] = verdict([each[measure] for each in results["suite"]], target)
            rows += found
        write_prepared(work / "prepared", args.corpus_clips)
        command = [sys.executable, __file__, "--side", "way", "--work", name]
        found = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
                 for _ in range(args.rounds + 1)][1:]
    everything["way"] = found
    for stage in found[0]:
        rows.append([f"{args.corpus_clips:,} clips: {stage}", "s", spread([each[stage] for each in found], 2)])
    rows[-1] += ["", "", verdict([each["to the first batch"] for each in found], WAY_TARGET)]
    side_by_side.report(rows, ["", "", "suite", "peer", "suite / peer", "target"], args, everything)


def verdict(values: list[float], most: float) -> str:
    return f"suite <= {most:g}: {'met' if max(values) <= most else 'missed'} in the worst round"


def suite(args: argparse.Namespace) -> Callable[[], Round]:
    """plan_epoch."""
    sys.path.insert(0, str(ROOT))
    from wavtrain.batching import BatchBudget, plan_epoch

    budget = BatchBudget(max_samples=round(SECONDS_IN_A_BATCH * SAMPLING_RATE))
    return planning(args, lambda lengths: plan_epoch(lengths, 0, 0, budget))


def peer(args: argparse.Namespace) -> Callable[[], Round]:
    """As LengthGroupedSampler does it, which has a list of lengths."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return planning(args, lambda lengths: get_length_grouped_indices(lengths, CLIPS_IN_A_BATCH), np.ndarray.tolist)


def planning(args: argparse.Namespace, plan: Callable[[Any], Any],
             form: Callable[[np.ndarray], Any] = np.asarray) -> Callable[[], Round]:
    """Seconds, and the memory beyond what there was with the lengths."""
    lengths = form(np.load(args.work / "lengths.npy"))
    before = resident_megabytes("VmRSS")

    def work() -> Round:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        clock = Clock()
        made = plan(lengths)
        used = clock.read()
        del made
        return {**used, "megabytes": resident_megabytes("VmHWM") - before}

    return work


def resident_megabytes(which: str) -> float:
    """Now ("VmRSS"), or the most since the peak began anew ("VmHWM"); getrusage would have that of the parent in it."""
    return int(re.search(rf"^{which}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024 / 1e6


def write_prepared(folder: Path, num_clips: int) -> None:
    """A prepared directory with ten different clips, again and again."""
    sys.path.insert(0, str(ROOT))
    import pyarrow as pa

    from wavtrain.speech.prepared_directory import features

    clips = [silence(seconds) for seconds in range(1, 11)]
    schema, train = features().arrow_schema, folder / "train"
    train.mkdir(parents=True)
    names = [f"data-{shard:04d}-00000.arrow" for shard in range(NUM_SHARDS)]
    for name, numbers in zip(names, np.array_split(np.arange(num_clips), NUM_SHARDS), strict=True):
        with pa.ipc.new_stream(str(train / name), schema) as writer:
            for first in range(0, len(numbers), ROWS_AT_ONCE):
                some = numbers[first : first + ROWS_AT_ONCE].tolist()
                rows = [row_of(number, *clips[number % len(clips)]) for number in some]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    describe(folder, names, num_clips)


def describe(folder: Path, names: list[str], num_clips: int) -> None:
    """What is to be found beside the Arrow files."""
    import datasets

    from wavtrain.speech.prepared_directory import features
    from wavtrain.speech.shard_checksums import CHECKSUMS, checksum

    datasets.DatasetInfo(features=features()).write_to_directory(folder / "train")
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0" * 16, "_format_columns": None,
             "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "train"}
    (folder / "train/state.json").write_text(json.dumps(state))
    known = {name: checksum(str(folder / "train" / name)) for name in (*names, "dataset_info.json", "state.json")}
    (folder / "train" / CHECKSUMS).write_text(json.dumps(known))
    report = {"fingerprint": "0" * 32, "splits": {"train": {"clips": num_clips, "hours": num_clips * 5.5 / 3600, "bytes": 0}},
              "rejected": {}, "remarks": {}, "arguments": {"validation_split_percentage": 0.0}}
    (folder / "preparation.json").write_text(json.dumps(report))


def silence(seconds: int) -> tuple[bytes, int]:
    import soundfile

    samples = np.zeros(seconds * SAMPLING_RATE, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue(), len(samples)


def row_of(number: int, audio: bytes, num_samples: int) -> dict[str, Any]:
    return {"utterance_id": f"speaker-{number % 5_000}-{number:08d}.flac", "audio": {"bytes": audio, "path": None},
            "num_samples": num_samples, "text": None, "speaker": None, "language": None, "corpus": "silence"}


def way_to_the_first_batch(work: Path) -> dict[str, float]:
    """Seconds of each stage, with the functions of the script, after its imports."""
    sys.path.insert(0, str(ROOT))
    import run_wav2vec2_pretraining_no_trainer as script
    start, stages = time.perf_counter(), {}

    def done(stage: str) -> None:
        stages[stage] = time.perf_counter() - start - sum(stages.values())

    args = script.parse_arguments(["--dataset_name", str(work / "prepared"), "--output_dir", str(work / "run"),
                                   "--model_name_or_path", str(ROOT / "configs/models/wav2vec2-tiny"),
                                   "--max_batch_duration_in_seconds", str(SECONDS_IN_A_BATCH)])
    accelerator = script.accelerator_for(args.mixed_precision)
    done("flags and devices")
    prepared = script.training_speech(*(script.arguments.options_of(kind, args) for kind in (
        script.CorpusOptions, script.ClipLimits, script.CacheOptions)), accelerator)
    done("the directory")
    ahead = script.planned_run(args, accelerator, prepared)
    done("the model and the clips")
    of_task = partial(script.objective_checks, annealing=script.arguments.options_of(script.Annealing, args))
    script.preflight(ahead, of_task, lambda inputs: ahead.model(**inputs, temperature=1.0)["loss"])
    done("the check before the run")
    next(ahead.updates(args.dataloader_num_workers))
    done("the loader and its first batch")
    return {**stages, "to the first batch": sum(stages.values())}


if __name__ == "__main__":
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    main()
