"""Pretrain wav2vec 2.0: prepared speech -> encoder.

    accelerate launch run_wav2vec2_pretraining_no_trainer.py --dataset_name librispeech_asr \\
        --dataset_config_names clean clean --dataset_split_names validation test \\
        --model_name_or_path configs/models/wav2vec2-base --output_dir runs/base
    python run_wav2vec2_pretraining_no_trainer.py --config configs/demo_pretraining.yaml

The second learns on two cores of a laptop within minutes: contrastive accuracy rises from 0.01 (chance), and the picture
training_curves.png shows how. The corpus may be raw, then it is prepared first (once, under --cache_dir, by one process while
the others wait; --preprocessing_only stops there), or a directory of run_preprocessing.py. One update is one exact mean over
the masked frames of all micro-batches of all processes: --gradient_accumulation_steps 4 on one process, 2 on two and 1 on
four are the same run. A killed run goes on exactly with --resume_from_checkpoint latest. docs/recipes.md has the papers'.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from torch import nn
from transformers import FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from wavtrain import InputError, arguments, encoders, flags
from wavtrain.accumulation import Agreement, FiniteUpdates, Interruption, synchronised_if
from wavtrain.allocator import keep_freed_memory
from wavtrain.batching import BatchBudget, EpochPlan
from wavtrain.contrastive import ObjectiveSettings
from wavtrain.measures import Sums, pretraining_measures
from wavtrain.places import TrainingPlaces, share_of, validation_places
from wavtrain.reports import preparation_summary
from wavtrain.schedules import Schedule, gumbel_temperature, learning_rate_factor
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import already_prepared, cache_folder, link_split, prepared_speech
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.speech.waveforms import SAMPLING_RATE
from wavtrain.speech_batches import BatchSettings, SpeechBatches, loaded
from wavtrain.training_run import Meter, RunOptions, TrainingRun

CONFIG_FLAGS = ("mask_time_prob", "mask_time_length", "diversity_loss_weight", "hidden_dropout", "attention_dropout",
                "activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout", "layerdrop")
ENGINES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    flags.add_corpus_arguments(parser)
    flags.add_preparation_arguments(parser)
    flags.add_training_cache_arguments(parser)
    flags.add_model_arguments(parser)
    group = parser.add_argument_group("batches")
    group.add_argument("--per_device_train_batch_size", type=arguments.positive, metavar="N", help="clips in a micro-batch at "
                       "most (8; with --max_batch_duration_in_seconds as many as fit)")
    group.add_argument("--per_device_eval_batch_size", type=arguments.positive, default=8, metavar="N", help="%(default)s")
    group.add_argument("--max_batch_duration_in_seconds", type=arguments.above_zero, metavar="S",
                       help="clips x the longest of them in a micro-batch (fairseq's max_tokens / 16000)")
    group.add_argument("--random_crop_in_seconds", type=arguments.above_zero, metavar="S",
                       help="longer clips are cropped to this, at a random place (fairseq's max_sample_size / 16000)")
    group.add_argument("--uneven_clips", choices=("crop", "pad"), help="to the shortest of their batch, as fairseq, or to the "
                       "longest (default: crop for models with group norm, which cannot tell padding from speech, else pad)")
    group.add_argument("--pad_to_multiple_of", type=arguments.positive, metavar="N", help="of samples in a batch")
    group = parser.add_argument_group("objective")
    group.add_argument("--mask_time_prob", type=arguments.share, metavar="P",
                       help="share of frames that spans would mask if none overlapped (the config's; 0.65 in all recipes)")
    group.add_argument("--mask_time_length", type=arguments.positive, metavar="N", help="frames of a span (the config's)")
    group.add_argument("--require_same_masks", action="store_true", help="as many masked frames in every clip of a micro-batch")
    group.add_argument("--cross_sample_negatives", type=arguments.natural, default=0, metavar="N",
                       help="negatives from all clips of the micro-batch, beside those of the same clip (%(default)s)")
    group.add_argument("--codebook_negatives", type=arguments.natural, default=0, metavar="N",
                       help="negatives that are random codes (%(default)s)")
    group.add_argument("--diversity_loss_weight", type=arguments.amount, metavar="W", help="in place of the config's")
    group.add_argument("--feature_penalty_weight", type=arguments.amount, default=10.0, metavar="W",
                       help="%(default)s, as BASE")
    group.add_argument("--feature_grad_mult", type=arguments.amount, default=0.1, metavar="F",
                       help="the feature encoder's gradient is multiplied by this (%(default)s, as BASE)")
    group.add_argument("--max_gumbel_temperature", type=arguments.above_zero, default=2.0, metavar="T", help="%(default)s")
    group.add_argument("--min_gumbel_temperature", type=arguments.above_zero, default=0.5, metavar="T", help="%(default)s")
    group.add_argument("--gumbel_temperature_decay", type=arguments.share, default=0.999995, metavar="F", help="%(default)s")
    flags.add_optimizer_arguments(parser)
    flags.add_run_arguments(parser)
    args = arguments.parse(parser, argv)
    args.per_device_train_batch_size = args.per_device_train_batch_size or (None if args.max_batch_duration_in_seconds else 8)
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
    """Prepare what is not prepared yet, then train; return the last validation, or the report of the preparation."""
    args = parse_arguments(argv)
    disable_progress_bar()  # of transformers, which draws one for each file it saves
    can_accelerate = torch.accelerator.is_available() and not torch.backends.mps.is_available()  # which has no float64
    accelerator = Accelerator(cpu=not can_accelerate, mixed_precision=args.mixed_precision)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise InputError("--mixed_precision fp16 needs a GPU, on a CPU it would do nothing: give bf16 or no")
    if accelerator.distributed_type not in ENGINES:
        raise InputError(f"{accelerator.distributed_type.value} is not supported yet: launch without it, for DDP")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    prepared = prepare(args, accelerator)
    if accelerator.is_main_process:
        print(preparation_summary(prepared.folder, prepared.report))
    return prepared.report if args.preprocessing_only else train(args, accelerator, prepared)


def prepare(args: argparse.Namespace, accelerator: Accelerator) -> PreparedSpeech:
    """Open --dataset_name if it is a prepared directory, otherwise prepare it where later runs find it."""
    corpus, limits = arguments.options_of(CorpusOptions, args), arguments.options_of(ClipLimits, args)
    percentage = args.validation_split_percentage
    prepared = already_prepared(corpus, limits, percentage) or prepared_speech(
        corpus, limits, args.train_cache_file_name or cache_folder(args.cache_dir, corpus, limits, percentage),
        validation_percentage=percentage, num_workers=args.preprocessing_num_workers, cache_dir=args.cache_dir,
        overwrite=args.overwrite_cache, may_prepare=accelerator.is_local_main_process)
    if args.validation_cache_file_name and accelerator.is_local_main_process:
        link_split(prepared, "validation", args.validation_cache_file_name)
    return prepared


def train(args: argparse.Namespace, accelerator: Accelerator, prepared: PreparedSpeech) -> dict[str, Any]:
    """From random or given weights, or from a checkpoint, to a model directory. Returns the last validation."""
    model, extractor = load_model(args)
    speech, held_out = open_speech(args, prepared, model.config, extractor)
    per_update = accelerator.num_processes * args.gradient_accumulation_steps
    plan = speech.plan(epoch=0)
    total_steps = args.max_train_steps or args.num_train_epochs * plan.num_updates(per_update)
    announce(args, accelerator, speech, plan, per_update, total_steps)
    identity = encoders.identity(model.config, extractor)  # before prepare() wraps the model
    model, optimizer = accelerator.prepare(model, build_optimizer(args, model))
    run = TrainingRun(arguments.options_of(RunOptions, args), accelerator, model, extractor, vars(args),
                      {"micro_batches_per_update": per_update, "prepared_speech": prepared.report["fingerprint"],
                       "mixed_precision": accelerator.mixed_precision, **identity})
    done = run.begin(total_steps)
    finite = FiniteUpdates(optimizer, done["skipped_updates"], args.max_skipped_in_a_row, accelerator.device)
    agreement, meter, measured = Agreement(accelerator), Meter(accelerator, done["samples_heard"]), {}
    places = TrainingPlaces(speech.plan, per_update, share_of(accelerator), total_steps, **run.next_place(done))
    with Interruption() as interruption, run:
        for update in loaded(speech, places, args.dataloader_num_workers, accelerator.device):
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
            gradient_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
            finite.step(gradient_norm, rate)
            is_last = place.step == total_steps
            if place.step % args.logging_steps == 0 or is_last:
                run.record("train", place.step, {
                    **pretraining_measures(sums.over_processes(accelerator)), "gradient_norm": float(gradient_norm),
                    "learning_rate": rate, "gumbel_temperature": temperature, **meter.read(), "epoch": place.epoch,
                    "skipped_updates": finite.skipped()})
            with meter.paused():
                if held_out and (place.step % (args.eval_steps or args.saving_steps) == 0 or is_last):
                    measured = validate(args, accelerator, model, held_out)
                    run.record("validation", place.step, measured)
                if place.step % args.saving_steps == 0 or is_last or stop:
                    run.save(place, {"samples_heard": meter.samples(), "skipped_updates": finite.skipped()})
            run.advance(place.step)
            if stop and not is_last:
                run.leave(place.step, interruption.signal)
    run.finish(f"{args.output_dir}: the model is there, training_curves.png shows how it learned; go on with --init_from "
               f"{args.output_dir} on other speech, or load it with AutoModelForCTC.from_pretrained to fine-tune it")
    return measured


def load_model(args: argparse.Namespace) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """The model, and what is saved beside it."""
    where = {"cache_dir": args.cache_dir, "trust_remote_code": args.trust_remote_code}
    name, flag = (args.config_name, "--config_name") if args.config_name else (args.model_name_or_path, "--model_name_or_path")
    config = encoders.load_config(name, flag, {name: getattr(args, name) for name in CONFIG_FLAGS}, **where)
    name = args.model_name_or_path if args.config_name else config.name_or_path
    extractor = encoders.load_feature_extractor(name, "--model_name_or_path", **where)
    torch.manual_seed(args.seed)
    model = encoders.build(config, arguments.options_of(ObjectiveSettings, args), args.init_from, args.cache_dir)
    if args.gradient_checkpointing:
        encoders.checkpoint_layers(model)
    if args.torch_compile:
        encoders.compile_layers(model)
    return model, extractor


def open_speech(args: argparse.Namespace, prepared: PreparedSpeech, config: PreTrainedConfig,
                extractor: FeatureExtractionMixin) -> tuple[SpeechBatches, SpeechBatches | None]:
    """Training and validation clips, as micro-batches."""
    def batches(split: str, max_clips: int | None) -> SpeechBatches | None:
        seconds = (args.max_batch_duration_in_seconds, args.random_crop_in_seconds)
        budget = BatchBudget(max_clips, *(round(each * SAMPLING_RATE) if each else None for each in seconds))
        crops = (args.uneven_clips or encoders.takes_uneven_clips(config)) == "crop"
        settings = BatchSettings(args.seed, budget, crops, extractor.do_normalize, encoders.convolutions(config),
                                 config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks,
                                 args.require_same_masks, args.pad_to_multiple_of)
        clips = prepared.load(split)
        return SpeechBatches(clips, settings) if clips else None

    return batches("train", args.per_device_train_batch_size), batches("validation", args.per_device_eval_batch_size)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, the fused one: it can leave out an update without asking the device first."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    exempt = [each for each in parameters if each.ndim <= 1] if args.exempt_norms_and_biases else []
    decayed = [each for each in parameters if not any(each is other for other in exempt)]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=args.learning_rate,
                             betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True)


def planned(args: argparse.Namespace, step: int, total_steps: int) -> tuple[float, float]:
    """Learning rate and Gumbel temperature of an update."""
    rate = args.learning_rate * learning_rate_factor(step, total_steps, arguments.options_of(Schedule, args))
    temperatures = args.max_gumbel_temperature, args.min_gumbel_temperature, args.gumbel_temperature_decay
    return rate, gumbel_temperature(step, *temperatures)


@torch.no_grad()
def validate(args: argparse.Namespace, accelerator: Accelerator, model: nn.Module, speech: SpeechBatches) -> dict[str, float]:
    """The same measures on clips that are not trained on, with the same masks and negatives every time."""
    model.eval()
    sums = Sums()
    places = validation_places(speech.plan_in_order(), share_of(accelerator))
    for (batch,) in loaded(speech, places, args.dataloader_num_workers, accelerator.device):
        torch.manual_seed(batch.seed)
        output = model(**send_to_device(batch.inputs, accelerator.device, non_blocking=True), temperature=1.0)
        sums.add({**output, **batch.known()}, batch.weight)
    model.train()
    return pretraining_measures(sums.over_processes(accelerator))


def announce(args: argparse.Namespace, accelerator: Accelerator, speech: SpeechBatches, plan: EpochPlan, per_update: int,
             total_steps: int) -> None:
    """What is about to happen, and what is likely to be a mistake."""
    if not accelerator.is_main_process:
        return
    settings = speech.settings
    hours = speech.num_samples.sum() / SAMPLING_RATE / 3600
    print(f"{len(speech.num_samples)} clips, {hours:.2f} h, in {plan.num_batches} micro-batches; {per_update} of them make an "
          f"update, on {accelerator.num_processes} processes: {hours * per_update / plan.num_batches:.4f} h an update, "
          f"{total_steps} updates, {total_steps * per_update / plan.num_batches:.1f} epochs")
    if speech.num_too_short:
        print(f"note: {speech.num_too_short} clips are too short for a mask of {settings.mask_time_length} frames and are left "
              "out: raise --min_duration_in_seconds to have them counted in rejected.jsonl")
    if settings.mask_time_prob < 0.3:
        print(f"note: mask_time_prob is {settings.mask_time_prob}, a value for fine-tuning: give --mask_time_prob 0.65")
    if args.num_warmup_steps >= total_steps:
        print(f"note: --num_warmup_steps {args.num_warmup_steps} is not shorter than the run of {total_steps} updates, so the "
              "learning rate never reaches its height")


if __name__ == "__main__":
    arguments.run_as_script(main)
