"""CTC fine-tuning as run_ctc_finetuning.py does it, beside transformers' Wav2Vec2ForCTC in its Trainer.

    python benchmarks/bench_ctc_step.py                                      # BASE with two of its layers, fp32
    python benchmarks/bench_ctc_step.py --num_hidden_layers 12 --json ctc_step.json                 # all of BASE
    python benchmarks/bench_ctc_step.py --num_hidden_layers 12 --clips 32 --updates 100 --mixed_precision bf16     # a GPU

Both sides learn the same random letters from the same clips, of lengths like a corpus's, with the same model, frozen feature
encoder, shares of masks and dropout, and updates of the same mean length. The suite is its own script, loader and all, with
batches of so many seconds. The peer is what transformers' run_speech_recognition_ctc.py makes of its Trainer: random batches of
--clips padded to the longest, float lists in Arrow. Preparation is not counted. The table gives audio-seconds (without padding)
per second. With few layers the feature encoder weighs more than in the whole model. Not measured on a GPU.
"""

import argparse
import importlib
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from bench_pretraining_step import BATCHES_IN_A_WINDOW, Rounds, do_also
from side_by_side import ROOT, SAMPLING_RATE, Measure

LETTERS_PER_SECOND, LETTERS = 14, "abcdefghijklmnopqrstuvwxyz "
MEASURES = [Measure("audio_seconds_per_second", "audio-s per second", 2), Measure("peak_megabytes", "peak MB", 0),
            Measure("padding", "padding / batch", 3), Measure("gigaflops", "GFLOP/s for the model", 1),
            Measure("share_of_peak", "share of the matmul peak", 3)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_name", type=Path, default=ROOT / "configs/models/wav2vec2-base")
    parser.add_argument("--num_hidden_layers", type=int, default=2, metavar="N", help="instead of the config's (%(default)s)")
    parser.add_argument("--clips", type=int, default=8, help="in an update, on average (%(default)s)")
    parser.add_argument("--updates", type=int, default=2, help="in a round (%(default)s)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="on both sides")
    side_by_side.add_corpus_arguments(parser)
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        return {"suite": be_the_suite, "peer": be_the_peer}[args.side](args)
    everything = side_by_side.over_corpora(args.durations, args, set_up)
    rows = [row for kind, results in everything.items() for row in side_by_side.compared(results, MEASURES, kind)]
    side_by_side.report(rows, ["durations", "", "suite", "peer", "suite/peer"], args, everything)


def set_up(args: argparse.Namespace, kind: str, work: Path) -> None:
    """Prepared speech with texts, and a model with its initial weights and its vocabulary, for both sides."""
    import torch
    from transformers import AutoConfig, AutoFeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC, Wav2Vec2Processor

    seconds = side_by_side.durations(kind, BATCHES_IN_A_WINDOW * args.clips)
    side_by_side.prepared_speech(seconds, work, [random_text(number, each) for number, each in enumerate(seconds)])
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS.strip()]
    (work / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    extractor = AutoFeatureExtractor.from_pretrained(args.config_name)
    extractor.do_normalize = True
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(work / "vocab.json")).save_pretrained(work / "model")
    config = AutoConfig.from_pretrained(args.config_name, num_hidden_layers=args.num_hidden_layers, vocab_size=len(tokens),
                                        pad_token_id=0, bos_token_id=1, eos_token_id=2, mask_time_prob=0.05, layerdrop=0.0,
                                        ctc_loss_reduction="mean", ctc_zero_infinity=True)  # layerdrop would be drawn apart
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(config)
    model.save_pretrained(work / "model")
    facts = {"mean_seconds": float(seconds.mean()), "flops": flops_of_an_audio_second(model)}
    (work / "facts.json").write_text(json.dumps(facts))


def random_text(seed: int, seconds: float) -> str:
    """Nothing can be learned of it, but that is no matter here."""
    letters = np.random.default_rng(seed).choice(list(LETTERS), round(seconds * LETTERS_PER_SECOND))
    return " ".join("".join(letters).split()) or "a"


def flops_of_an_audio_second(model: Any, seconds: int = 4) -> float:
    """Forward and backward, but no backward pass of the feature encoder."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.freeze_feature_encoder()
    with FlopCounterMode(display=False) as counter:
        model.train()(torch.randn(1, seconds * SAMPLING_RATE), labels=torch.ones(1, 1, dtype=torch.long)).loss.backward()
    return counter.get_total_flops() / seconds


def be_the_peer(args: argparse.Namespace) -> None:
    """The Trainer, which asks for random batches."""
    import datasets
    import torch
    from example_way import float_lists
    from transformers import Trainer, TrainerCallback, TrainingArguments, Wav2Vec2ForCTC, Wav2Vec2Processor

    rounds, ahead = Rounds(args), deque()  # the loader is a batch ahead
    processor = Wav2Vec2Processor.from_pretrained(args.work / "model")
    model = Wav2Vec2ForCTC.from_pretrained(args.work / "model")
    model.freeze_feature_encoder()
    stored = args.work / "prepared" / "train"
    labels = [processor.tokenizer(text).input_ids for text in datasets.load_from_disk(stored)["text"]]
    speech = float_lists(stored, processor.feature_extractor).add_column("labels", labels)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor.pad(input_features=[{"input_values": each["input_values"]} for each in features], padding=True,
                              return_tensors="pt")
        said = processor.pad(labels=[{"input_ids": each["labels"]} for each in features], padding=True, return_tensors="pt")
        batch["labels"] = said["input_ids"].masked_fill(said.attention_mask.ne(1), -100)
        ahead.append((sum(len(each["input_values"]) for each in features), batch["input_values"].numel()))
        return dict(batch)

    class Answers(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            rounds.hear(*ahead.popleft())
            rounds.update_is_done()

    flags = TrainingArguments(
        output_dir=str(args.work / "trainer"), per_device_train_batch_size=args.clips, max_steps=10**9, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, bf16=args.mixed_precision == "bf16",
        use_cpu=not torch.cuda.is_available(), dataloader_drop_last=True, remove_unused_columns=False)
    Trainer(model, flags, data_collator=collate, train_dataset=speech, callbacks=[Answers()]).train()


def be_the_suite(args: argparse.Namespace) -> None:
    """The script itself, stopped between rounds."""
    sys.path.insert(0, str(ROOT))
    script = importlib.import_module("run_ctc_finetuning")
    from wavtrain.recognition.ctc_batches import CtcBatch
    from wavtrain.training_run import TrainingRun

    rounds = Rounds(args)
    do_also(CtcBatch, "known", lambda batch: rounds.hear(batch.speech_samples, batch.samples))
    do_also(TrainingRun, "advance", lambda *_: rounds.update_is_done())
    mean_seconds = json.loads((args.work / "facts.json").read_text())["mean_seconds"]
    script.main([
        "--dataset_name", str(args.work / "prepared"), "--model_name_or_path", str(args.work / "model"), "--vocabulary",
        str(args.work / "model"), "--output_dir", str(args.work / "suite"), "--max_batch_duration_in_seconds",
        str(args.clips * mean_seconds), "--num_train_epochs", "1000", "--report_to", "none", "--logging_steps", "1000000",
        "--saving_steps", "1000000", "--mixed_precision", args.mixed_precision])


if __name__ == "__main__":
    main()
