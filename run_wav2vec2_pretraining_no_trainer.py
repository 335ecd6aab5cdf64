"""Pretrain wav2vec 2.0: prepared speech -> encoder.

    accelerate launch run_wav2vec2_pretraining_no_trainer.py \\
        --dataset_name librispeech_asr --dataset_config_names clean clean \\
        --dataset_split_names validation test \\
        --model_name_or_path configs/models/wav2vec2-base \\
        --output_dir runs/base    # needs a GPU and the Hub
    python run_wav2vec2_pretraining_no_trainer.py \\
        --config configs/demo_pretraining.yaml

The second learns on two cores of a laptop within minutes: contrastive accuracy rises from 0.01 (chance), and the picture
training_curves.png shows how. The corpus may be raw, then it is prepared first (once, under --cache_dir, by one process while
the others wait; --preprocessing_only stops there), or a directory of run_preprocessing.py. One update is one exact mean over
the masked frames of all micro-batches of all processes: --gradient_accumulation_steps 4 on one process, 2 on two and 1 on
four are the same run. A killed run goes on exactly with --resume_from_checkpoint latest. docs/recipes.md has the papers'.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from wavtrain import InputError, arguments, flags  # before torch, whose threads it tells how to wait

# isort: split
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from transformers import FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel

from wavtrain.accumulation import Agreement, FiniteUpdates, Interruption, clipped, synchronised_if
from wavtrain.checks.collapse import CollapseGuard
from wavtrain.checks.objective_checks import Annealing, objective_checks
from wavtrain.checks.published import pretraining_recipe
from wavtrain.checks.run_shape import RunSettings
from wavtrain.doors import refuse_closed_doors
from wavtrain.engine import accelerator_for, spread
from wavtrain.loading import budget_of, validation_batches
from wavtrain.measures import Sums, pretraining_measures
from wavtrain.models import encoders
from wavtrain.models.contrastive import ObjectiveSettings
from wavtrain.models.convolutions import kernels_and_strides
from wavtrain.optimizers import OptimizerOptions
from wavtrain.planned_run import PlannedRun
from wavtrain.preflight import preflight
from wavtrain.reporting.meter import Meter
from wavtrain.schedules import Schedule, gumbel_temperature, learning_rate_factor
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.speech_batches import BatchSettings, SpeechBatches
from wavtrain.training_run import RunOptions, TrainingRun
from wavtrain.training_speech import CacheOptions, training_speech

CONFIG_FLAGS = ("mask_time_prob", "mask_time_length", "diversity_loss_weight", "hidden_dropout", "attention_dropout",
                "activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout", "layerdrop")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    flags.add_training_arguments(parser)
    flags.add_model_arguments(parser)
    group = flags.add_batch_arguments(parser)
    group.add_argument("--random_crop_in_seconds", type=arguments.duration, metavar="S",
                       help="longer clips are cropped to this, at a random place (fairseq's max_sample_size / 16000)")
    group.add_argument("--uneven_clips", choices=("crop", "pad"), help="to the shortest of their batch, as fairseq, or to the "
                       "longest (default: crop for models with group norm, which cannot tell padding from speech, else pad)")
    group = parser.add_argument_group("objective")
    group.add_argument("--mask_time_prob", type=arguments.share, metavar="P",
                       help="share of frames that spans would mask if none overlapped (the config's; 0.65 in all recipes)")
    group.add_argument("--mask_time_length", type=arguments.span, metavar="N", help="frames of a span (the config's)")
    group.add_argument("--require_same_masks", action="store_true", help="as many masked frames in every clip of a micro-batch")
    group.add_argument("--cross_sample_negatives", type=arguments.few, default=0, metavar="N",
                       help="negatives from all clips of the micro-batch, beside those of the same clip (%(default)s)")
    group.add_argument("--codebook_negatives", type=arguments.few, default=0, metavar="N",
                       help="negatives that are random codes (%(default)s)")
    group.add_argument("--diversity_loss_weight", type=arguments.amount, metavar="W", help="the config's; papers 0.1")
    group.add_argument("--feature_penalty_weight", type=arguments.amount, default=10.0, metavar="W",
                       help="weight of mean(features^2) (%(default)s, as BASE)")
    group.add_argument("--feature_grad_mult", type=arguments.amount, default=0.1, metavar="F",
                       help="the feature encoder's gradient is multiplied by this (%(default)s, as BASE)")
    group.add_argument("--max_gumbel_temperature", type=arguments.above_zero, default=2.0, metavar="T",
                       help="of the quantizer, at the first update (%(default)s)")
    group.add_argument("--min_gumbel_temperature", type=arguments.above_zero, default=0.5, metavar="T",
                       help="it falls no lower (%(default)s)")
    group.add_argument("--gumbel_temperature_decay", type=arguments.share, default=0.999995, metavar="F",
                       help="it is multiplied by this at each update (%(default)s)")
    group.add_argument("--on_collapse", choices=("warn", "stop"), default="warn",
                       help="where codes, accuracy or gradients say so: warn, or end the run with code 3 (%(default)s)")
    args = arguments.parse(parser, argv)
    args.model_name_or_path = args.model_name_or_path or args.init_from
    if args.min_gumbel_temperature > args.max_gumbel_temperature:
        raise InputError(f"--min_gumbel_temperature {args.min_gumbel_temperature:g} is above --max_gumbel_temperature "
                         f"{args.max_gumbel_temperature:g}")
    arguments.options_of(Schedule, args)  # refuses what does not go together
    if not args.preprocessing_only and not (args.model_name_or_path and args.output_dir):
        raise InputError("--model_name_or_path (or --init_from) and --output_dir are needed to train; --preprocessing_only "
                         "stops before that")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prepare what is not prepared yet, check the run, train; return the last validation, or what --..._only asks for."""
    args = parse_arguments(argv)
    accelerator = accelerator_for(args.mixed_precision, torch_compile=args.torch_compile)
    refuse_closed_doors(arguments.options_of(RunOptions, args), accelerator)
    prepared = training_speech(arguments.options_of(CorpusOptions, args), arguments.options_of(ClipLimits, args),
                               arguments.options_of(CacheOptions, args), accelerator)
    if args.preprocessing_only:
        return prepared.report
    ahead = planned_run(args, accelerator, prepared)
    found = preflight(ahead, partial(objective_checks, annealing=arguments.options_of(Annealing, args)),
                      lambda inputs: ahead.model(**send_to_device(inputs, accelerator.device), temperature=1.0)["loss"])
    return found if args.check_only else train(args, ahead)


def train(args: argparse.Namespace, ahead: PlannedRun) -> dict[str, Any]:
    """From random or given weights, or from a checkpoint, to a model directory. Returns the last validation."""
    accelerator, held_out, total_steps = ahead.accelerator, ahead.held_out, ahead.total_steps
    identity = encoders.identity(ahead.model.config, ahead.extractor, ahead.per_update, ahead.prepared.report["fingerprint"],
                                 accelerator.mixed_precision)
    guard = collapse_guard(args, ahead)
    model, optimizer = spread(accelerator, ahead.model, arguments.options_of(OptimizerOptions, args))
    run = TrainingRun(arguments.options_of(RunOptions, args), accelerator, model, optimizer,
                      partial(encoders.describe, ahead.extractor), vars(args), identity, ahead)
    done = run.begin(total_steps)
    finite = FiniteUpdates(optimizer, done["skipped_updates"], args.max_skipped_in_a_row, accelerator.device)
    agreement, meter, measured = Agreement(accelerator), Meter(accelerator, done["samples_heard"]), {}
    with Interruption() as interruption, run:
        for update in ahead.updates(args.dataloader_num_workers, **run.next_place(done)):
            place, sums = update[0].place, Sums()
            num_targets, stop = agreement.total(sum(each.counted_targets for each in update), interruption.requested)
            rate, temperature = planned(args, place.step, total_steps)
            for number, batch in enumerate(update, start=1):
                torch.manual_seed(batch.seed)
                inputs = send_to_device(batch.inputs, accelerator.device, non_blocking=True)
                with synchronised_if(number == len(update), accelerator, model):
                    output = model(**inputs, temperature=temperature)
                    accelerator.backward(output["loss"] * (batch.weight * accelerator.num_processes) / num_targets)
                sums.add({**output, **batch.known()}, batch.weight)
                meter.hear(batch.weight * batch.speech_samples)
            gradient_norm = clipped(accelerator, model, args.max_grad_norm)
            finite.step(gradient_norm, rate)
            is_last = place.step == total_steps
            if place.step % args.logging_steps == 0 or is_last:
                guard.look(run.record("train", place.step, {
                    **pretraining_measures(sums.over_processes(accelerator)), "gradient_norm": float(gradient_norm),
                    "learning_rate": rate, "gumbel_temperature": temperature, **meter.read(), "epoch": place.epoch,
                    "skipped_updates": finite.skipped()}))
            with meter.paused():
                if held_out and (place.step % (args.eval_steps or args.saving_steps) == 0 or is_last):
                    measured = validate(args, accelerator, model, held_out)
                    run.record("validation", place.step, measured)
                if place.step % args.saving_steps == 0 or is_last or stop:
                    run.save(place, {"samples_heard": meter.samples(), "skipped_updates": finite.skipped()})
            run.advance(place.step)
            if stop and not is_last:
                run.leave(place.step, interruption.signal)
    run.finish(f"{args.output_dir}: the model is there, training_curves.png shows how; run_ctc_finetuning.py goes on")
    return measured


def planned_run(args: argparse.Namespace, accelerator: Accelerator, prepared: PreparedSpeech) -> PlannedRun:
    """The model and the speech it will hear."""
    model, extractor = load_model(args)
    speech = open_speech(args, prepared, model.config, extractor)
    return PlannedRun(accelerator, prepared, model, extractor, *speech, pretraining_recipe(model.config),
                      arguments.options_of(RunSettings, args), arguments.options_of(Schedule, args))


def load_model(args: argparse.Namespace) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """The model, and what is saved beside it."""
    where = {"cache_dir": args.cache_dir, "trust_remote_code": args.trust_remote_code}
    name, flag = (args.config_name, "--config_name") if args.config_name else (args.model_name_or_path, "--model_name_or_path")
    config = encoders.load_config(name, flag, {name: getattr(args, name) for name in CONFIG_FLAGS}, **where)
    name = args.model_name_or_path if args.config_name else config.name_or_path
    extractor = encoders.load_feature_extractor(name, "--model_name_or_path", **where)
    torch.manual_seed(args.seed)
    model = encoders.build(config, arguments.options_of(ObjectiveSettings, args), args.init_from, args.cache_dir)
    return encoders.adapted(model, args.gradient_checkpointing, args.torch_compile), extractor


def open_speech(args: argparse.Namespace, prepared: PreparedSpeech, config: PreTrainedConfig,
                extractor: FeatureExtractionMixin) -> tuple[SpeechBatches, SpeechBatches | None]:
    """Training and validation clips, as micro-batches."""
    def batches(split: str, max_clips: int | None) -> SpeechBatches | None:
        if not (clips := prepared.load(split)):
            return None
        budget = budget_of(max_clips, args.max_batch_duration_in_seconds, args.random_crop_in_seconds)
        crops = (args.uneven_clips or encoders.takes_uneven_clips(config)) == "crop"
        settings = BatchSettings(args.seed, budget, crops, extractor.do_normalize, kernels_and_strides(config),
                                 config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks,
                                 args.require_same_masks, args.pad_to_multiple_of)
        return SpeechBatches(clips, settings)

    return batches("train", args.per_device_train_batch_size), batches("validation", args.per_device_eval_batch_size)


def planned(args: argparse.Namespace, step: int, total_steps: int) -> tuple[float, float]:
    """Learning rate and Gumbel temperature of an update."""
    rate = args.learning_rate * learning_rate_factor(step, total_steps, arguments.options_of(Schedule, args))
    temperatures = args.max_gumbel_temperature, args.min_gumbel_temperature, args.gumbel_temperature_decay
    return rate, gumbel_temperature(step, *temperatures)


def collapse_guard(args: argparse.Namespace, ahead: PlannedRun) -> CollapseGuard:
    """Knows what chance is."""
    config, num_negatives = ahead.model.config, args.cross_sample_negatives + args.codebook_negatives
    return CollapseGuard(config.num_codevector_groups, config.num_codevectors_per_group, config.num_negatives + num_negatives,
                         ahead.total_steps, args.logging_steps, args.on_collapse == "stop", ahead.accelerator.is_main_process)


@torch.no_grad()
def validate(args: argparse.Namespace, accelerator: Accelerator, model: nn.Module, speech: SpeechBatches) -> dict[str, float]:
    """The same measures on clips that are not trained on, with the same masks and negatives every time."""
    model.eval()
    sums = Sums()
    for batch in validation_batches(speech, accelerator, args.dataloader_num_workers):
        torch.manual_seed(batch.seed)
        output = model(**send_to_device(batch.inputs, accelerator.device, non_blocking=True), temperature=1.0)
        sums.add({**output, **batch.known()}, batch.weight)
    model.train()
    return pretraining_measures(sums.over_processes(accelerator))


if __name__ == "__main__":
    arguments.run_as_script(main)
