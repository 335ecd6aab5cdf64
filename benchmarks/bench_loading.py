"""Prepared speech to micro-batches, a core: this suite's loader beside the way of transformers' pretraining example.

    python benchmarks/bench_loading.py --json loading.json                                  # a few minutes
    python benchmarks/bench_loading.py --durations librispeech --clips 100 --rounds 3       # a laptop, a quick look
    python benchmarks/bench_loading.py --dataset_name /data/librispeech/test-other          # real clips, at their own lengths

The suite decodes FLAC, normalises, crops and masks in one loader process, as its script does; negatives are drawn where the
model is, so they are timed apart and the second line has them in. The peer has float32 lists in Arrow (preparing them is not
counted), padded by its feature extractor, masks and negatives by transformers' functions, all in the main process
(num_workers=0). Both read the same clips; a round of the suite is several epochs, as its process has to start. A core-second is
a second of processor time, of the loader process and the one that it feeds together. The clips are demo_corpus cut to lengths
like a corpus's, or those of --dataset_name.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Clock, Measure, Round

MODEL = ROOT / "configs/models/wav2vec2-base"
TARGET = 5_000.0
MEASURES = [Measure("per_core_second", "audio-s per core-s", 0), Measure("with_negatives", "  with negatives", 0),
            Measure("per_second", "audio-s per second", 0), Measure("peak_megabytes", "peak MB of the main process", 0)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", metavar="FOLDER", help="clips as they are, not demo_corpus cut to --durations")
    parser.add_argument("--clips", type=int, default=400, help="in an epoch, of --durations (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of the suite in a round (%(default)s)")
    parser.add_argument("--seconds", type=float, default=87.5, help="in a batch of the suite (%(default)s)")
    parser.add_argument("--peer_clips", type=int, default=8, help="in a batch of the peer (%(default)s)")
    parser.add_argument("--dataloader_num_workers", type=int, default=1, help="of the suite (%(default)s)")
    side_by_side.add_corpus_arguments(parser)
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        return side_by_side.serve({"suite": suite, "peer": peer}[args.side](args))
    everything = side_by_side.over_corpora([args.dataset_name] if args.dataset_name else args.durations, args, prepare)
    rows = []
    for kind, results in everything.items():
        rows += side_by_side.compared(results, MEASURES, kind)
        slowest = min(each["per_core_second"] for each in results["suite"])
        rows[-len(MEASURES)][-1] = f"suite >= {TARGET:,.0f}: {'met' if slowest >= TARGET else 'missed'} in the slowest round"
    side_by_side.report(rows, ["clips", "", "suite", "peer", "suite / peer", "target"], args, everything)


def prepare(args: argparse.Namespace, kind: str, work: Path) -> None:
    """work/prepared, for both sides."""
    if not args.dataset_name:
        side_by_side.prepared_speech(side_by_side.durations(kind, args.clips), work)
        return
    subprocess.run([sys.executable, ROOT / "run_preprocessing.py", "--dataset_name", args.dataset_name, "--output_dir",
                    work / "prepared", "--validation_split_percentage", "0"], check=True, stdout=subprocess.DEVNULL)


def suite(args: argparse.Namespace) -> Callable[[], Round]:
    """Epochs as run_wav2vec2_pretraining_no_trainer.py is given them."""
    sys.path.insert(0, str(ROOT))
    import torch

    from wavtrain.engine import keep_freed_memory
    from wavtrain.loading import budget_of, loaded
    from wavtrain.masking import same_utterance_negatives
    from wavtrain.models.convolutions import kernels_and_strides
    from wavtrain.models.encoders import load_config
    from wavtrain.places import TrainingPlaces
    from wavtrain.speech.prepared_directory import open_prepared
    from wavtrain.speech_batches import BatchSettings, SpeechBatches

    keep_freed_memory()  # as every script does
    config = load_config(str(MODEL), "--model_name_or_path", {"mask_time_prob": 0.65})
    settings = BatchSettings(0, budget_of(None, args.seconds), True, True, kernels_and_strides(config), config.mask_time_prob,
                             config.mask_time_length, config.mask_time_min_masks)
    speech = SpeechBatches(open_prepared(str(args.work / "prepared")).load("train"), settings)
    num_batches = speech.plan(0).num_batches

    def work() -> Round:
        heard, masked, clock = 0, [], Clock()
        places = TrainingPlaces(speech.plan, 1, (0, 1), last_step=args.epochs * num_batches)
        for (batch,) in loaded(speech, places, args.dataloader_num_workers, torch.device("cpu")):
            heard += batch.speech_samples
            masked.append((batch.inputs["counts"], batch.inputs["places"].shape[1]))
        used, clock = clock.read(), Clock()
        for counts, most in masked:
            same_utterance_negatives(counts, most, config.num_negatives)
        return rates(heard, used, clock.read()["cpu_seconds"])

    return work


def peer(args: argparse.Namespace) -> Callable[[], Round]:
    """An epoch as the example is given it."""
    import example_way
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoConfig, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

    config = AutoConfig.from_pretrained(MODEL, mask_time_prob=0.65)
    with torch.device("meta"):
        model = Wav2Vec2ForPreTraining(config)  # it is only asked how many frames there are
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(MODEL)
    loader = DataLoader(example_way.float_lists(args.work / "prepared/train", extractor), shuffle=True,
                        batch_size=args.peer_clips, collate_fn=lambda rows: example_way.padded(rows, model, extractor))

    def work() -> Round:
        clock = Clock()
        heard = sum(int(batch["samples"]) for batch in loader)
        return rates(heard, clock.read(), 0.0)

    return work


def rates(heard: int, used: Round, negatives: float) -> dict[str, Any]:
    """Audio-seconds by what they cost."""
    seconds = heard / SAMPLING_RATE
    return {"per_core_second": seconds / used["cpu_seconds"], "with_negatives": seconds / (used["cpu_seconds"] + negatives),
            "per_second": seconds / used["seconds"], "peak_megabytes": side_by_side.peak_megabytes()}


if __name__ == "__main__":
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    main()
