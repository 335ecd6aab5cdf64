"""Greedy decoding as run_ctc_decoding.py does it, beside transformers' own: how many times faster than the speech is spoken.

    python benchmarks/bench_decoding.py --json decoding.json                              # BASE, fp32, on whatever there is
    python benchmarks/bench_decoding.py --clips 4 --num_hidden_layers 2 --rounds 2        # a minute on a laptop
    python benchmarks/bench_decoding.py --clips 256 --mixed_precision bf16                # a GPU

Every side reads the same prepared clips, of lengths like a corpus's, and decodes them by the same model with random weights.
The suite takes them by length, --batch_size at a time, on a CPU one. The peers do `processor -> model -> argmax ->
batch_decode`: `single` a file at a time, `batches` --batch_size files in the order they come in, padded to the longest. What a
model needs is counted in matrix products (without padding); `limit` is how fast it could be if the machine did nothing but
such products, at the rate of the best one, measured after every round. Not measured on a GPU.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Clock, Measure, Round

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SIDES = ("suite", "batches", "single")
MEASURES = [Measure("times_real_time", "times real time", 2), Measure("peak_megabytes", "peak MB", 0),
            Measure("limit", "limit, times real time", 1), Measure("share_of_peak", "share of the matmul peak", 2)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_name", type=Path, default=ROOT / "configs/models/wav2vec2-base")
    parser.add_argument("--num_hidden_layers", type=int, metavar="N", help="instead of the config's, for a quick look")
    parser.add_argument("--clips", type=int, default=16, help="decoded in a round (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips at once, but for the suite on a CPU (%(default)s)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="on all sides")
    side_by_side.add_corpus_arguments(parser)
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        return serve(args)
    everything = side_by_side.over_corpora(args.durations, args, set_up, SIDES)
    rows = [row for kind, results in everything.items() for other in SIDES[1:]
            for row in side_by_side.compared({"suite": results["suite"], other: results[other]}, MEASURES, f"{kind}, {other}")]
    side_by_side.report(rows, ["durations, peer", "", "suite", "peer", "suite/peer"], args, everything)


def set_up(args: argparse.Namespace, kind: str, work: Path) -> None:
    """Prepared speech, and a recogniser that has learned nothing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoFeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC, Wav2Vec2Processor

    side_by_side.prepared_speech(side_by_side.durations(kind, args.clips), work)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    (work / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    extractor = AutoFeatureExtractor.from_pretrained(args.config_name, do_normalize=True)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(work / "vocab.json")).save_pretrained(work / "model")
    config = AutoConfig.from_pretrained(args.config_name, vocab_size=len(tokens), pad_token_id=0)
    config.num_hidden_layers = args.num_hidden_layers or config.num_hidden_layers
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(work / "model")
    seconds = 10
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, seconds * SAMPLING_RATE))
    (work / "facts.json").write_text(json.dumps({"flops": counter.get_total_flops() / seconds}))


def serve(args: argparse.Namespace) -> None:
    """Be a side: decode all the clips in every round."""
    import datasets
    import torch

    clips = datasets.load_from_disk(args.work / "prepared" / "train")
    seconds = sum(clips["num_samples"]) / SAMPLING_RATE
    flops = json.loads((args.work / "facts.json").read_text())["flops"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
    decode = suite(args, clips) if args.side == "suite" else peer(args, device)

    def work() -> Round:
        clock = Clock()
        assert len(decode()) == len(clips)
        times = clock.read()
        rate, peak = seconds / times["seconds"], side_by_side.matmul_peak(device, kind)
        return {"times_real_time": rate, "peak_megabytes": side_by_side.peak_megabytes(), "limit": peak / flops,
                "share_of_peak": rate * flops / peak, **times}

    side_by_side.serve(work)


def suite(args: argparse.Namespace, clips: Any) -> Callable[[], list[str]]:
    """As the script does it."""
    sys.path.insert(0, str(ROOT))
    from wavtrain.engine import accelerator_for
    from wavtrain.recognition import recognisers
    from wavtrain.recognition.decoding import greedy
    from wavtrain.recognition.transcription import Recordings, WindowOptions, log_probs_of

    accelerator = accelerator_for(args.mixed_precision)
    model, extractor, vocabulary = recognisers.load_recogniser(str(args.work / "model"), device=accelerator.device)
    samples_per_frame = recognisers.samples_per_frame(model.config)
    at_once = 1 if accelerator.device.type == "cpu" else args.batch_size
    recordings = Recordings(clips, WindowOptions(at_once), partial(recognisers.features_of, extractor=extractor),
                            recognisers.frames_of(model.config), samples_per_frame)
    seconds_per_frame = samples_per_frame / SAMPLING_RATE
    return lambda: [greedy(log_probs, vocabulary, seconds_per_frame).text
                    for _, log_probs in log_probs_of(recordings, model, accelerator, num_workers=1)]


def peer(args: argparse.Namespace, device: Any) -> Callable[[], list[str]]:
    """As the model cards of transformers show it."""
    import torch
    from example_way import waves
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    processor = Wav2Vec2Processor.from_pretrained(args.work / "model")
    model = Wav2Vec2ForCTC.from_pretrained(args.work / "model").to(device).eval()
    together = args.batch_size if args.side == "batches" else 1

    @torch.inference_mode()
    def decode() -> list[str]:
        speech, texts = list(waves(args.work / "prepared" / "train")), []
        for first in range(0, len(speech), together):
            inputs = processor(speech[first : first + together], sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
            with torch.autocast(device.type, torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                logits = model(**inputs.to(device)).logits
            texts += processor.batch_decode(logits.argmax(-1))
        return texts

    return decode


if __name__ == "__main__":
    main()
