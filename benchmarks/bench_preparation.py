"""What preparing speech costs, beside HuggingFace's way: processor time, disk and memory over the same folders of audio.

    python benchmarks/bench_preparation.py --dataset_name CORPUS_A CORPUS_B --repeats 7 --json preparation.json
    python benchmarks/bench_preparation.py --dataset_name demo_corpus --repeats 3          # a minute or two on a laptop

The suite is run_preprocessing.py with one worker. The peer does what transformers' run_wav2vec2_pretraining_no_trainer.py does:
an Arrow dataset of the encoded bytes (making it is not counted) is mapped through Wav2Vec2FeatureExtractor to float32 lists,
then filtered. It decodes as datasets < 4 did (soundfile, librosa's soxr_hq): datasets 5 needs FFmpeg. Both keep 0.1 to 40 s.
The sides alternate, and so do their start-ups, the same runs over one short clip. A core-second is a second of processor time
of the process or its children. The table gives medians (least-most), of ratios too, and marks them against what is promised;
its last line has the wall time of the suite with one worker for each core, start-up taken off, and with one worker.
"""

import argparse
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import soundfile  # and nothing heavier: the peak memory of a child, as Linux counts it, begins at its parent's
from side_by_side import ROOT, SAMPLING_RATE, report, spread

SUITE = ROOT / "run_preprocessing.py"
NUM_CORES = len(os.sched_getaffinity(0))
SHORTEST, LONGEST = 0.1, 40.0  # seconds, on both sides
DEFAULT_MINUTES = 120  # so that the work stands out of the noise of the start-up
SPEED_TARGET, DISK_TARGET, MEMORY_TARGET = 4.0, 0.30, 300.0
SCALING_TARGET = 0.9 * NUM_CORES
SIDES, PARTS = ("suite", "peer"), ("speech", "start_up")
EVERY_CORE = "suite, a worker for each core"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", nargs="+", required=True, type=Path, metavar="FOLDER", help="folders of audio files")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each side (%(default)s)")
    parser.add_argument("--copies", type=int, metavar="N",
                        help=f"how often each file is taken (default: until there are {DEFAULT_MINUTES} minutes)")
    parser.add_argument("--peer_workers", type=int, default=1, metavar="N", help="num_proc of the peer (%(default)s)")
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="where to work; nothing stays (a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single number here")
    parser.add_argument("--peer", choices=("input", "prepare"), help="be the peer: for the benchmark itself, not for users")
    return parser.parse_args()


def peer(step: str, folder: Path, output: Path, num_workers: int) -> None:
    """Files -> Arrow dataset of encoded bytes; or that -> normalised float32 lists in a cache file, then filtered by length."""
    import datasets
    import librosa
    from transformers import Wav2Vec2FeatureExtractor

    if step == "input":
        files = sorted(folder.iterdir())
        datasets.Dataset.from_generator(lambda: ({"audio": path.read_bytes()} for path in files)).save_to_disk(output)
        return
    settings = {"feature_size": 1, "padding_value": 0, "do_normalize": True, "return_attention_mask": False}
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE, **settings)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
        samples = librosa.to_mono(samples.T)
        if rate != SAMPLING_RATE:
            samples = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLING_RATE, res_type="soxr_hq")
        values = extractor(samples, sampling_rate=SAMPLING_RATE, max_length=int(LONGEST * SAMPLING_RATE), truncation=True)
        return {"input_values": values.input_values[0], "input_length": len(values.input_values[0])}

    output.mkdir()
    speech = datasets.load_from_disk(folder)
    mapped = speech.map(prepare, remove_columns=["audio"], num_proc=num_workers, cache_file_name=str(output / "mapped.arrow"))
    mapped.filter(lambda length: length > SHORTEST * SAMPLING_RATE, input_columns=["input_length"], num_proc=num_workers,
                  cache_file_name=str(output / "indices.arrow"))


def find_clips(folder: Path) -> dict[Path, float]:
    """Every file that libsndfile reads, and its seconds by its header."""
    clips = {}
    for path in sorted(folder.rglob("*")):
        with suppress(soundfile.LibsndfileError):
            clips[path] = soundfile.info(path).duration
    return clips or sys.exit(f"bench_preparation.py: error: --dataset_name {folder}: holds no audio that libsndfile reads")


def take(clips: list[Path], num_copies: int, folder: Path) -> None:
    """A flat folder of the clips: the first copy is one, the others are hard links to it where that can be."""
    folder.mkdir()
    for number, clip in enumerate(clips):
        first, *others = (folder / f"{number:06d}-{copy:04d}{clip.suffix}" for copy in range(num_copies))
        shutil.copyfile(clip, first)
        for other in others:
            try:
                os.link(first, other)
            except OSError:
                shutil.copyfile(clip, other)


def run(script: list[Any], work: Path) -> dict[str, float]:
    """What a script and its children use; the memory is that of the largest process. Its output is shown if it fails."""
    command = [sys.executable, *map(str, script)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(work / "huggingface")}
    started = time.perf_counter()
    with open(work / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | quiet)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{(work / 'log').read_text()}\nbench_preparation.py: error: this failed: {' '.join(command)}")
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "wall_seconds": time.perf_counter() - started,
            "system_seconds": usage.ru_stime, "peak_megabytes": usage.ru_maxrss * 1024 / 1e6}


def measure(side: str, part: str, work: Path, num_workers: int) -> dict[str, float]:
    """One run of one side over one part; what it writes for training is weighed, all it writes removed."""
    output = work / "output"
    commands = {
        "suite": [SUITE, "--dataset_name", work / part, "--min_duration_in_seconds", SHORTEST, "--max_duration_in_seconds",
                  LONGEST, "--validation_split_percentage", 0, "--preprocessing_num_workers",
                  NUM_CORES if side == EVERY_CORE else 1],
        "peer": [__file__, "--peer", "prepare", "--dataset_name", work / f"{part}_arrow", "--peer_workers", num_workers],
    }
    used = run([*commands["peer" if side == "peer" else "suite"], "--output_dir", output], work)
    if side != "peer" and (output / "rejected.jsonl").stat().st_size:
        print("note: the suite leaves clips out that the peer takes: no fair comparison", file=sys.stderr)
    written = output.glob("mapped*") if side == "peer" else output.rglob("*")
    num_bytes = sum(path.stat().st_size for path in written if path.is_file())
    shutil.rmtree(output)
    return used | {"disk_megabytes": num_bytes / 1e6}


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every run over one folder, by side and part: all its "speech", and the "start_up" with one short clip."""
    clips = find_clips(folder)
    num_copies = args.copies or math.ceil(DEFAULT_MINUTES * 60 / sum(clips.values()))
    sides = (*SIDES, EVERY_CORE) if NUM_CORES > 1 else SIDES
    costs = {side: {part: [] for part in PARTS} for side in sides}
    with tempfile.TemporaryDirectory(dir=args.output_dir) as name:
        work = Path(name)
        take(list(clips), num_copies, work / "speech")
        take([min(clips, key=lambda clip: (clips[clip] < 0.5, clips[clip]))], 1, work / "start_up")
        for part in PARTS:
            run([__file__, "--peer", "input", "--dataset_name", work / part, "--output_dir", work / f"{part}_arrow"], work)
        for side in SIDES:
            measure(side, "start_up", work, args.peer_workers)  # not counted: it fills caches of bytecode
        for _, part, side in product(range(args.repeats), PARTS, sides):
            costs[side][part].append(measure(side, part, work, args.peer_workers))
            print(f"{folder}: {side} {part} {costs[side][part][-1]['cpu_seconds']:.2f} core-seconds", file=sys.stderr)
    return {"folder": str(folder), "copies": num_copies, "audio_seconds": sum(clips.values()) * num_copies, "costs": costs}


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Four lines on one folder. The median start-up is taken off; what is left is at least a tenth of it, for that is noise."""
    seconds, figures = result["audio_seconds"], {}
    for side in SIDES:
        runs, idle = result["costs"][side]["speech"], median(run["cpu_seconds"] for run in result["costs"][side]["start_up"])
        figures[side] = ([seconds / max(run["cpu_seconds"] - idle, idle / 10) for run in runs],
                         [seconds / run["cpu_seconds"] for run in runs],
                         [run["disk_megabytes"] * 3600 / seconds for run in runs], [run["peak_megabytes"] for run in runs])
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(figures["suite"], figures["peer"], strict=True)]
    targets = (*((f"ratio >= {SPEED_TARGET:g}", median(ratios[place]) >= SPEED_TARGET) for place in (0, 1)),
               (f"ratio <= {DISK_TARGET:.2f}", median(ratios[2]) <= DISK_TARGET),
               (f"suite <= {MEMORY_TARGET:g}", median(figures["suite"][3]) <= MEMORY_TARGET))
    names = ("audio-s per core-s", "  with the start-up", "MB per hour", "peak MB")
    return [[result["folder"], f"{seconds / 3600:.2f}", name, spread(suite, 0), spread(peer, 0), spread(ratio, 2),
             f"{target}: {'met' if is_met else 'missed'}"]
            for name, suite, peer, ratio, (target, is_met) in zip(names, *figures.values(), ratios, targets, strict=True)]


def scaling_row(result: dict[str, Any]) -> list[str]:
    """How much sooner as many workers as cores are done."""
    seconds = {side: [run["wall_seconds"] - median(each["wall_seconds"] for each in result["costs"][side]["start_up"])
                      for run in result["costs"][side]["speech"]] for side in (EVERY_CORE, "suite")}
    ratios = [one / all_cores for all_cores, one in zip(*seconds.values(), strict=True)]
    return [result["folder"], f"{result['audio_seconds'] / 3600:.2f}", f"seconds with {NUM_CORES} workers, with one, speed-up",
            *(spread(each, 1) for each in seconds.values()), spread(ratios, 2),
            f"ratio >= {SCALING_TARGET:g}: {'met' if median(ratios) >= SCALING_TARGET else 'missed'}"]


def main() -> None:
    args = parse_arguments()
    if args.peer:
        return peer(args.peer, args.dataset_name[0], args.output_dir, args.peer_workers)
    results = [compare(folder, args) for folder in args.dataset_name]
    rows = [row for each in results for row in [*table_rows(each), *([scaling_row(each)] if NUM_CORES > 1 else [])]]
    report(rows, ["folder", "hours", "", *SIDES, "suite/peer", "target"], args, results)


if __name__ == "__main__":
    main()
