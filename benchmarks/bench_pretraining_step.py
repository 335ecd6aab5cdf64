"""Pretraining as run_wav2vec2_pretraining_no_trainer.py does it, beside transformers' model driven as its example drives it.

    python benchmarks/bench_pretraining_step.py                                   # BASE, fp32, on whatever there is
    python benchmarks/bench_pretraining_step.py --durations commonvoice --json step.json
    python benchmarks/bench_pretraining_step.py --peer_script my/run_wav2vec2_pretraining_no_trainer.py
    python benchmarks/bench_pretraining_step.py --clips 32 --updates 100 --mixed_precision bf16        # a GPU

Both sides learn from the same clips, of lengths like a corpus's, with the same model, dropout and optimizer, and updates of the
same mean length. The suite is its own script, loader and all, with batches of so many seconds. The peer has random batches of
--clips padded to the longest, float32 lists in Arrow, masks and negatives by transformers' functions, loops over parameters;
with --peer_script it is that very script. Preparation is not counted; audio-seconds are counted without padding.
The model has layer norm and pre-LN, as the example accepts no other; --norm group is the published BASE, with the model alone.
Not measured on a GPU yet.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Clock, Measure, Round

BATCHES_IN_A_WINDOW = 64  # so many batches' worth of clips are sorted together
SPEED_TARGETS, MEMORY_TARGET = {"librispeech": 1.8, "commonvoice": 2.8}, 0.6
MORE_MEASURES = [Measure("peak_megabytes", "peak MB", 0, MEMORY_TARGET, False), Measure("padding", "padding / batch", 3),
                 Measure("data_wait", "waiting for data / time", 4), Measure("gigaflops", "GFLOP/s for the model", 1),
                 Measure("share_of_peak", "share of the matmul peak", 3)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", type=Path, default=ROOT / "configs/models/wav2vec2-base")
    parser.add_argument("--num_hidden_layers", type=int, metavar="N", help="instead of the config's, for a quick look")
    parser.add_argument("--norm", choices=("layer", "group"), default="layer")
    parser.add_argument("--clips", type=int, default=8, help="in an update, on average (%(default)s)")
    parser.add_argument("--updates", type=int, default=2, help="in a round (%(default)s)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="on both sides")
    parser.add_argument("--peer_script", type=Path, help="a copy of transformers' example to be the peer")
    parser.add_argument("--suite_flags", default="", help="more flags of the suite's script, in quotes")
    side_by_side.add_corpus_arguments(parser)
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        return {"suite": be_the_suite, "peer": be_the_peer}[args.side](args)
    everything, rows = side_by_side.over_corpora(args.durations, args, set_up), []
    for kind, results in everything.items():
        speed = Measure("audio_seconds_per_second", "audio-s per second", 2, SPEED_TARGETS[kind])
        rows += side_by_side.compared(results, [speed, *MORE_MEASURES], kind)
    side_by_side.report(rows, ["durations", "", "suite", "peer", "suite/peer", "target"], args, everything)


def set_up(args: argparse.Namespace, kind: str, work: Path) -> None:
    """Prepared speech, and a model with its initial weights, for both sides."""
    import torch
    from transformers import AutoConfig, AutoFeatureExtractor, Wav2Vec2ForPreTraining

    seconds = side_by_side.durations(kind, BATCHES_IN_A_WINDOW * args.clips)
    side_by_side.prepared_speech(seconds, work)
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    config.num_hidden_layers = args.num_hidden_layers or config.num_hidden_layers
    config.mask_time_prob, config.layerdrop = 0.65, 0.0  # the example has no layerdrop
    if args.norm == "layer":
        config.feat_extract_norm, config.do_stable_layer_norm, config.conv_bias = "layer", True, True
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(config)
    model.save_pretrained(work / "model")
    extractor = AutoFeatureExtractor.from_pretrained(args.model_name_or_path)
    extractor.do_normalize, extractor.return_attention_mask = True, args.norm == "layer"
    extractor.save_pretrained(work / "model")
    facts = {"mean_seconds": float(seconds.mean()), "flops": flops_of_an_audio_second(model)}
    (work / "facts.json").write_text(json.dumps(facts))


def flops_of_an_audio_second(model: Any, seconds: int = 4) -> float:
    """Forward and backward, as transformers' model computes them."""
    import torch
    from example_way import masks_and_negatives
    from torch.utils.flop_counter import FlopCounterMode

    waves = torch.zeros(1, seconds * SAMPLING_RATE)
    drawn = masks_and_negatives(model, (1, int(model._get_feat_extract_output_lengths(waves.shape[1]))))
    with FlopCounterMode(display=False) as counter:
        model.train()(waves, **drawn).loss.backward()
    return counter.get_total_flops() / seconds


class Rounds:
    """Counts updates, answers the benchmark after so many, and waits until it asks again."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        self.updates = args.updates
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.flops = json.loads((args.work / "facts.json").read_text())["flops"]
        self.dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        self._clock: Clock | None = None
        self._begin()

    def hear(self, samples: float, with_padding: float) -> None:
        """What a micro-batch holds."""
        self.samples, self.with_padding = self.samples + samples, self.with_padding + with_padding

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same, and how long they were waited for."""
        batches = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def update_is_done(self) -> None:
        """The very first belongs to no round: what is made once is made then."""
        self.done += 1
        if self._clock is None:
            sys.stdin.readline()
            self._begin(Clock())
        elif self.done == self.updates:
            side_by_side.wait_for(self.device)
            print(json.dumps(self._found(self._clock)), flush=True)
            sys.stdin.readline()
            self._begin(Clock())

    def _begin(self, clock: Clock | None = None) -> None:
        self.samples = self.with_padding = self.waited = self.done = 0
        self._clock = clock

    def _found(self, clock: Clock) -> Round:
        times, seconds = clock.read(), self.samples / SAMPLING_RATE
        rate, peak = seconds / times["seconds"], side_by_side.matmul_peak(self.device, self.dtype)
        found = {"audio_seconds_per_second": rate, "audio_seconds": seconds, **times, "gigaflops": rate * self.flops / 1e9,
                 "peak_megabytes": side_by_side.peak_megabytes(), "padding": 1 - self.samples / self.with_padding,
                 "share_of_peak": rate * self.flops / peak}
        return found | ({"data_wait": self.waited / times["seconds"]} if self.waited else {})


def be_the_peer(args: argparse.Namespace) -> None:
    """Random batches, padded."""
    import example_way

    rounds = Rounds(args)
    if args.peer_script:
        example_way.run_script(args.peer_script, args.work, args.clips, args.mixed_precision, rounds)
    else:
        example_way.train(args.work, args.clips, args.mixed_precision, rounds)


def be_the_suite(args: argparse.Namespace) -> None:
    """The script itself, stopped between rounds."""
    sys.path.insert(0, str(ROOT))
    script = importlib.import_module("run_wav2vec2_pretraining_no_trainer")
    from wavtrain import planned_run
    from wavtrain.speech_batches import SpeechBatch
    from wavtrain.training_run import TrainingRun

    rounds = Rounds(args)
    loaded = planned_run.loaded
    planned_run.loaded = lambda *given: rounds.watched(loaded(*given))
    do_also(SpeechBatch, "known", lambda batch: rounds.hear(batch.speech_samples, batch.samples))
    do_also(TrainingRun, "advance", lambda *_: rounds.update_is_done())
    mean_seconds = json.loads((args.work / "facts.json").read_text())["mean_seconds"]
    script.main([
        "--dataset_name", str(args.work / "prepared"), "--init_from", str(args.work / "model"), "--output_dir",
        str(args.work / "suite"), "--max_batch_duration_in_seconds", str(args.clips * mean_seconds), "--report_to", "none",
        "--num_train_epochs", "1000", "--logging_steps", "1000000", "--saving_steps", "1000000", "--mixed_precision",
        args.mixed_precision, *args.suite_flags.split()])


def do_also(kind: type, name: str, also: Callable[..., None]) -> None:
    """Something more at every call of a method of the suite's."""
    method = getattr(kind, name)

    def both(*given: Any) -> Any:
        result = method(*given)
        also(*given)
        return result

    setattr(kind, name, both)


if __name__ == "__main__":
    main()
