"""What a model has learned after the same number of updates: this suite against the way of transformers' example script.

    python benchmarks/bench_learning.py --updates 200 --seeds 0 1

Both sides get the same speech, model, initial weights, learning rate, masks, number of clips in a micro-batch and accumulation,
in turn for each seed; both are scored by this suite's validation. The other side is the stock model with random batches padded
to the longest, masks and negatives by transformers' own functions, and the accumulated gradient divided by the masked frames
after every micro-batch, which leaves little but the last one. The model has layer norm and pre-LN: the example refuses others.
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from wavtrain.arguments import options_of  # noqa: E402
from wavtrain.engine import keep_freed_memory  # noqa: E402
from wavtrain.loading import decoded, normalised  # noqa: E402
from wavtrain.schedules import Schedule, gumbel_temperature, learning_rate_factor  # noqa: E402
from wavtrain.speech.clips import ClipLimits  # noqa: E402
from wavtrain.speech.manifests import CorpusOptions  # noqa: E402
from wavtrain.speech.prepared_directory import PreparedSpeech  # noqa: E402
from wavtrain.speech_batches import SpeechBatches  # noqa: E402
from wavtrain.training_speech import CacheOptions, training_speech  # noqa: E402

SCRIPT = importlib.import_module("run_wav2vec2_pretraining_no_trainer")


def main() -> None:
    """Print accuracy and perplexity of both sides for every seed, medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/demo_pretraining.yaml"), help="recipe of both sides")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--clips", type=int, default=4, help="in a micro-batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    keep_freed_memory()
    results: dict[str, list[dict[str, float]]] = {"example": [], "suite": []}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            given = begin(options, seed, folder)
            for side, train in (("example", train_as_the_example), ("suite", train_as_the_suite)):
                start = time.perf_counter()
                train(options, given, f"{folder}/{side}")
                results[side].append({**score(given, f"{folder}/{side}"), "seconds": time.perf_counter() - start})
                print(side, seed, {name: round(value, 4) for name, value in results[side][-1].items()}, flush=True)
    medians = {side: statistics.median(each["contrastive_accuracy"] for each in found) for side, found in results.items()}
    print(json.dumps({"machine": platform.processor() or platform.machine(), "updates": options.updates,
                      "contrastive_accuracy": medians, "ratio": medians["suite"] / max(medians["example"], 1e-9)}, indent=1))


def begin(options: argparse.Namespace, seed: int, folder: str) -> argparse.Namespace:
    """The recipe's arguments for a model that the example script takes, with its initial weights in `folder`/start."""
    argv = ["--config", options.config, "--seed", str(seed), "--output_dir", f"{folder}/suite"]
    args = SCRIPT.parse_arguments(argv)
    config = SCRIPT.encoders.load_config(args.model_name_or_path, "--model_name_or_path",
                                         {name: getattr(args, name) for name in SCRIPT.CONFIG_FLAGS})
    config.feat_extract_norm, config.do_stable_layer_norm, config.conv_bias = "layer", True, True
    torch.manual_seed(seed)
    Wav2Vec2ForPreTraining(config).save_pretrained(f"{folder}/start")
    extractor = SCRIPT.encoders.load_feature_extractor(args.model_name_or_path, "--model_name_or_path")
    extractor.return_attention_mask = True
    extractor.save_pretrained(f"{folder}/start")
    return SCRIPT.parse_arguments([
        *argv, "--init_from", f"{folder}/start", "--model_name_or_path", f"{folder}/start", "--max_train_steps",
        str(options.updates), "--gradient_accumulation_steps", str(options.accumulation), "--per_device_train_batch_size",
        str(options.clips), "--uneven_clips", "pad", "--num_warmup_steps", str(max(options.updates // 12, 1)),
        "--eval_steps", str(options.updates), "--saving_steps", str(options.updates), "--report_to", "none"])


def train_as_the_suite(options: argparse.Namespace, args: argparse.Namespace, output_dir: str) -> None:
    """The script's own loop."""
    args.max_batch_duration_in_seconds = None
    accelerator = Accelerator(cpu=True)
    SCRIPT.train(args, SCRIPT.planned_run(args, accelerator, prepared(args, accelerator)))


def train_as_the_example(options: argparse.Namespace, args: argparse.Namespace, output_dir: str) -> None:
    """The stock model, driven as transformers' example drives it."""
    accelerator = Accelerator(cpu=True)
    model = Wav2Vec2ForPreTraining.from_pretrained(f"{Path(output_dir).parent}/start").train()
    extractor = SCRIPT.encoders.load_feature_extractor(f"{Path(output_dir).parent}/start", "")
    clips = prepared(args, accelerator).load("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2),
                                  eps=args.adam_epsilon)
    schedule = Schedule(num_warmup_steps=args.num_warmup_steps)
    np.random.seed(args.seed)  # transformers' masks and negatives come from numpy's global state
    generator, order = np.random.default_rng(args.seed), np.zeros(0, dtype=int)
    for step in range(1, options.updates + 1):
        for _ in range(options.accumulation):
            if len(order) < options.clips:
                order = generator.permutation(len(clips))
            batch = example_batch(clips[order[: options.clips].tolist()], model)
            order = order[options.clips :]
            (model(**batch).loss / options.accumulation).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / batch["mask_time_indices"].sum())
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * learning_rate_factor(step, options.updates, schedule)
        optimizer.step()
        optimizer.zero_grad()
        model.set_gumbel_temperature(gumbel_temperature(step, args.max_gumbel_temperature, args.min_gumbel_temperature,
                                                        args.gumbel_temperature_decay))
    model.save_pretrained(output_dir)
    extractor.save_pretrained(output_dir)


def example_batch(rows: dict[str, Any], model: Wav2Vec2ForPreTraining) -> dict[str, torch.Tensor]:
    """Clips padded to the longest of them, with transformers' masks and negatives."""
    waves = [normalised(decoded(name, audio["bytes"])) for name, audio in zip(rows["utterance_id"], rows["audio"], strict=True)]
    values = np.zeros((len(waves), max(map(len, waves))), dtype=np.float32)
    attention = np.zeros(values.shape, dtype=np.int64)
    for row, wave in enumerate(waves):
        values[row, : len(wave)], attention[row, : len(wave)] = wave, 1
    values, attention = torch.from_numpy(values), torch.from_numpy(attention)
    num_frames = int(model._get_feat_extract_output_lengths(values.shape[1]))
    frames = model._get_feature_vector_attention_mask(num_frames, attention)
    mask = _compute_mask_indices((len(waves), num_frames), model.config.mask_time_prob, model.config.mask_time_length, frames)
    negatives = _sample_negative_indices(mask.shape, model.config.num_negatives, mask)
    return {"input_values": values, "attention_mask": attention, "mask_time_indices": torch.from_numpy(mask),
            "sampled_negative_indices": torch.from_numpy(negatives)}


def prepared(args: argparse.Namespace, accelerator: Accelerator) -> PreparedSpeech:
    """The recipe's speech."""
    return training_speech(*(options_of(kind, args) for kind in (CorpusOptions, ClipLimits, CacheOptions)), accelerator)


def score(args: argparse.Namespace, model_dir: str) -> dict[str, float]:
    """The suite's validation of a model directory."""
    args = argparse.Namespace(**{**vars(args), "init_from": model_dir, "model_name_or_path": model_dir})
    accelerator = Accelerator(cpu=True)
    model, extractor = SCRIPT.load_model(args)
    held_out: SpeechBatches = SCRIPT.open_speech(args, prepared(args, accelerator), model.config, extractor)[1]
    measured = SCRIPT.validate(args, accelerator, model, held_out)
    return {name: measured[name] for name in ("contrastive_accuracy", "code_perplexity", "contrastive_loss")}


if __name__ == "__main__":
    main()
