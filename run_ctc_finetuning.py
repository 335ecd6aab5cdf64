"""Fine-tune with CTC: an encoder and prepared speech with text -> a recogniser.

    accelerate launch run_ctc_finetuning.py --dataset_name librispeech_asr \\
        --dataset_config_names clean --dataset_split_names train.100 \\
        --validation_split_names validation --model_name_or_path runs/base \\
        --output_dir runs/base_100h    # needs a GPU and the Hub
    python run_ctc_finetuning.py --config configs/demo_finetuning.yaml \\
        --model_name_or_path runs/demo_pretraining \\
        --output_dir runs/demo_finetuning

The second is a part of `make demo`. --model_name_or_path is the output of a pretraining, or what can be given a CTC head;
--config_name starts from random weights. The vocabulary is that of the training transcripts. Every --eval_steps the
validation split is decoded: the model with the lowest word error rate lies in --output_dir, the last one is the newest of its
checkpoints. One update is one exact mean over the utterances of all micro-batches of all processes, and a killed run goes on
exactly with --resume_from_checkpoint latest. run_ctc_decoding.py decodes and scores; docs/recipes.md has the papers'.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from wavtrain import InputError, arguments, flags  # before torch, whose threads it tells how to wait

# isort: split
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn
from transformers import FeatureExtractionMixin, PreTrainedModel

from wavtrain.accumulation import Agreement, FiniteUpdates, Interruption, clipped, synchronised_if
from wavtrain.checks.published import fine_tuning_recipe
from wavtrain.checks.run_shape import RunSettings
from wavtrain.checks.transcript_checks import FineTuning, transcript_checks
from wavtrain.doors import refuse_closed_doors
from wavtrain.engine import accelerator_for, spread
from wavtrain.loading import budget_of, validation_batches
from wavtrain.measures import Sums, recognition_measures
from wavtrain.models import encoders
from wavtrain.optimizers import OptimizerOptions
from wavtrain.planned_run import PlannedRun
from wavtrain.preflight import preflight
from wavtrain.recognition import recognisers
from wavtrain.recognition.ctc_batches import ON_THE_CPU, CtcBatches, CtcSettings, SpanMasks, write_lists
from wavtrain.recognition.decoding import greedy
from wavtrain.recognition.evaluate_metrics import CharacterErrorRate, WordErrorRate
from wavtrain.recognition.padding import convolutions
from wavtrain.recognition.transcribed_clips import texts_of
from wavtrain.recognition.transcripts import TextRules, normalised
from wavtrain.recognition.vocabularies import Vocabulary, build_vocabulary, read_vocabulary
from wavtrain.reporting.meter import Meter
from wavtrain.schedules import Schedule, learning_rate_factor
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.training_run import RunOptions, TrainingRun
from wavtrain.training_speech import CacheOptions, training_speech

CONFIG_FLAGS = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length", "hidden_dropout",
                "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop", "add_adapter")
RANKING = ("wer", "cer", "loss")  # the later ones tell apart what is equal: without spaces a sentence is one word, mostly wrong


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    flags.add_training_arguments(parser)
    group = flags.add_text_arguments(parser)
    group.add_argument("--vocabulary", metavar="PATH", help="vocab.json, fairseq's dict.ltr.txt, or a recogniser's (default: "
                       "the letters of the training transcripts)")
    flags.add_recogniser_arguments(parser)
    group = flags.add_batch_arguments(parser)
    group.add_argument("--speed_perturbation", type=arguments.above_zero, nargs="+", default=(1.0,), metavar="F",
                       help="each time a clip is heard it runs at one of these speeds, as 0.9 1.0 1.1 (1)")
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--mean_over", choices=("utterances", "tokens"), default="utterances",
                       help="what an update is the mean of (%(default)s)")
    for axis, what in (("time", "frames"), ("feature", "channels")):
        group.add_argument(f"--mask_{axis}_prob", type=arguments.share, metavar="P",
                           help=f"share of {what} that spans would mask if none overlapped (the config's)")
        group.add_argument(f"--mask_{axis}_length", type=arguments.span, metavar="N", help=f"{what} of a span (config's)")
    group.add_argument("--validate_after_updates", type=arguments.natural, default=0, metavar="N",
                       help="no validation before (%(default)s; fairseq 10000)")
    args = arguments.parse(parser, argv)
    arguments.options_of(Schedule, args)  # refuses what does not go together
    arguments.options_of(TextRules, args)
    if not 0.1 <= min(args.speed_perturbation) <= max(args.speed_perturbation) <= 10:
        raise InputError("--speed_perturbation: 1 is as recorded; give speeds from 0.1 to 10")
    if not args.preprocessing_only and not args.output_dir:
        raise InputError("--output_dir is needed to train; --preprocessing_only stops before that")
    if not args.preprocessing_only and bool(args.model_name_or_path) == bool(args.config_name):
        raise InputError("give --model_name_or_path to start from weights, or --config_name to start from random ones")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prepare what is not prepared yet, check the run, train; return the best validation, or what --..._only asks for."""
    args = parse_arguments(argv)
    accelerator = accelerator_for(args.mixed_precision, torch_compile=args.torch_compile,
                                  adapter_language=args.adapter_language, freeze_finetune_updates=args.freeze_finetune_updates)
    refuse_closed_doors(arguments.options_of(RunOptions, args), accelerator)
    prepared = training_speech(arguments.options_of(CorpusOptions, args), arguments.options_of(ClipLimits, args),
                               arguments.options_of(CacheOptions, args), accelerator)
    if args.preprocessing_only:
        return prepared.report
    ahead = planned_run(args, accelerator, prepared)
    found = preflight(ahead, partial(transcript_checks, options=arguments.options_of(FineTuning, args)),
                      lambda inputs: ahead.model(**on_device(inputs, accelerator))["loss"])
    return found if args.check_only else train(args, ahead)


def train(args: argparse.Namespace, ahead: PlannedRun) -> dict[str, Any]:
    """From an encoder, or from a checkpoint, to a recogniser. Returns the best validation."""
    accelerator, recogniser, held_out, total_steps = ahead.accelerator, ahead.model, ahead.held_out, ahead.total_steps
    model, optimizer = spread(accelerator, recogniser, arguments.options_of(OptimizerOptions, args))
    run = TrainingRun(arguments.options_of(RunOptions, args), accelerator, model, optimizer, describer(args, ahead),
                      vars(args), identity(ahead), ahead, serves_best=held_out is not None)
    done = run.begin(total_steps, best={"step": 0})
    if accelerator.is_main_process:
        write_lists(args.output_dir, ahead.speech, held_out)
    finite = FiniteUpdates(optimizer, done["skipped_updates"], args.max_skipped_in_a_row, accelerator.device)
    agreement, meter, best = Agreement(accelerator), Meter(accelerator, done["samples_heard"]), done["best"]
    with Interruption() as interruption, run:
        for update in ahead.updates(args.dataloader_num_workers, **run.next_place(done)):
            place, sums = update[0].place, Sums()
            num_targets, stop = agreement.total(sum(each.counted_targets for each in update), interruption.requested)
            rate = args.learning_rate * learning_rate_factor(place.step, total_steps, arguments.options_of(Schedule, args))
            recogniser.encoder_is_frozen = place.step <= args.freeze_finetune_updates
            for number, batch in enumerate(update, start=1):
                torch.manual_seed(batch.seed)
                with synchronised_if(number == len(update), accelerator, model):
                    output = model(**on_device(batch.inputs, accelerator))
                    accelerator.backward(output["loss"] * (batch.weight * accelerator.num_processes) / num_targets)
                sums.add({"loss": output["loss"], **batch.known()}, batch.weight)
                meter.hear(batch.weight * batch.speech_samples)
            recogniser.forget_frozen_gradients()
            gradient_norm = clipped(accelerator, model, args.max_grad_norm)
            finite.step(gradient_norm, rate)
            is_last = place.step == total_steps
            if place.step % args.logging_steps == 0 or is_last:
                run.record("train", place.step, {
                    **recognition_measures(sums.over_processes(accelerator)), "gradient_norm": float(gradient_norm),
                    "learning_rate": rate, **meter.read(), "epoch": place.epoch, "skipped_updates": finite.skipped()})
            with meter.paused():
                best = validated(args, accelerator, run, recogniser, held_out, place.step, is_last, best)
                if place.step % args.saving_steps == 0 or is_last or stop:
                    run.save(place, {"samples_heard": meter.samples(), "skipped_updates": finite.skipped(), "best": best})
            run.advance(place.step)
            if stop and not is_last:
                run.leave(place.step, interruption.signal)
    run.finish(what_next(args.output_dir, best, total_steps))
    return best


def planned_run(args: argparse.Namespace, accelerator: Accelerator, prepared: PreparedSpeech) -> PlannedRun:
    """The model, its vocabulary, and the speech it will hear."""
    vocabulary = open_vocabulary(args, prepared)
    model, extractor = load_model(args, vocabulary)
    speech = open_speech(args, prepared, vocabulary, model.config, extractor)
    recipe = fine_tuning_recipe(model.config) if args.model_name_or_path else None
    return PlannedRun(accelerator, prepared, model, extractor, *speech, recipe, arguments.options_of(RunSettings, args),
                      arguments.options_of(Schedule, args), args.freeze_finetune_updates)


def open_vocabulary(args: argparse.Namespace, prepared: PreparedSpeech) -> Vocabulary:
    """The letters of the training transcripts, or those that were asked for."""
    if args.vocabulary:
        return read_vocabulary(args.vocabulary, "--vocabulary", args.unit, args.adapter_language)
    return build_vocabulary(texts_of(prepared.load("train"), arguments.options_of(TextRules, args)), args.unit)


def load_model(args: argparse.Namespace, vocabulary: Vocabulary) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """The model, and what turns a waveform into what it takes."""
    flag = "--config_name" if args.config_name else "--model_name_or_path"
    name = args.config_name or args.model_name_or_path
    config = recognisers.load_config(name, flag, vocabulary, {name: getattr(args, name) for name in CONFIG_FLAGS},
                                     args.cache_dir, args.trust_remote_code)
    extractor = encoders.load_feature_extractor(name, flag, args.cache_dir, args.trust_remote_code)
    torch.manual_seed(args.seed)
    model = recognisers.build(config, vocabulary, args.model_name_or_path, args.adapter_language, args.cache_dir)
    if args.feature_encoder == "frozen" or (args.feature_encoder is None and args.model_name_or_path):
        model.freeze_feature_encoder()
    return encoders.adapted(model, args.gradient_checkpointing, args.torch_compile), extractor


def describer(args: argparse.Namespace, ahead: PlannedRun) -> Any:
    """Writes what belongs beside the weights of a recogniser."""
    settings = ahead.speech.settings
    return partial(recognisers.describe, ahead.extractor, settings.vocabulary, settings.rules, args.adapter_language)


def identity(ahead: PlannedRun) -> dict[str, Any]:
    """What a run that is resumed must have in common with its beginning, beside the arguments."""
    config = ahead.model.config
    of_encoder = encoders.identity(config, ahead.extractor, ahead.per_update, ahead.prepared.report["fingerprint"],
                                   ahead.accelerator.mixed_precision)
    masks = {name: getattr(config, name, None) for name in ("mask_feature_prob", "mask_feature_length", "final_dropout")}
    return {**of_encoder, **masks, "vocabulary": list(ahead.speech.settings.vocabulary.tokens)}


def open_speech(args: argparse.Namespace, prepared: PreparedSpeech, vocabulary: Vocabulary, config: Any,
                extractor: FeatureExtractionMixin) -> tuple[CtcBatches, CtcBatches | None]:
    """Training and validation clips, as micro-batches."""
    def batches(split: str, max_clips: int | None, is_training: bool) -> CtcBatches | None:
        budget = budget_of(max_clips, args.max_batch_duration_in_seconds if is_training else None)
        settings = CtcSettings(
            args.seed, budget,
            arguments.options_of(TextRules, args), vocabulary, partial(recognisers.features_of, extractor=extractor),
            recognisers.frames_of(config), convolutions(config), config.hidden_size, is_training,
            SpanMasks(config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks),
            SpanMasks(config.mask_feature_prob, config.mask_feature_length, config.mask_feature_min_masks),
            tuple(args.speed_perturbation) if is_training else (1.0,), args.mean_over == "tokens", args.pad_to_multiple_of)
        clips = prepared.load(split)
        return CtcBatches(clips, settings) if clips else None

    num_clips = args.per_device_train_batch_size, args.per_device_eval_batch_size
    return batches("train", num_clips[0], is_training=True), batches("validation", num_clips[1], is_training=False)


def on_device(inputs: dict[str, torch.Tensor], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """But for what the loss wants on the CPU."""
    return send_to_device(inputs, accelerator.device, non_blocking=True, skip_keys=ON_THE_CPU)


def validated(args: argparse.Namespace, accelerator: Accelerator, run: TrainingRun, model: nn.Module,
              held_out: CtcBatches | None, step: int, is_last: bool, best: dict[str, Any]) -> dict[str, Any]:
    """The best validation so far, after this step's if one is due; the model of the best one is written."""
    is_due = step % (args.eval_steps or args.saving_steps) == 0 and step >= args.validate_after_updates
    if held_out is None or not (is_due or is_last):
        return best
    measured = evaluate(args, accelerator, model, held_out, partial(run.show, step))
    run.record("validation", step, measured)
    if "wer" in best and not [measured[name] for name in RANKING] < [best[name] for name in RANKING]:
        return best
    run.serve()
    return {"step": step, **{name: value if math.isfinite(value) else sys.float_info.max for name, value in measured.items()}}


@torch.no_grad()
def evaluate(args: argparse.Namespace, accelerator: Accelerator, model: nn.Module, speech: CtcBatches,
             show: Callable[..., None]) -> dict[str, float]:
    """Loss and error rates of greedy decoding: counts of all utterances, each of them once, added and then divided."""
    model.eval()
    sums, found, vocabulary = Sums(), [], speech.settings.vocabulary
    for batch in validation_batches(speech, accelerator, args.dataloader_num_workers):
        output = model(**on_device(batch.inputs, accelerator))
        sums.add({"loss": output["loss"], **batch.known()}, batch.weight)
        log_probs = output["log_probs"].cpu().numpy()
        texts = [greedy(each[:length], vocabulary, 1.0).text
                 for each, length in zip(log_probs, batch.inputs["num_frames"].tolist(), strict=True)]
        found += zip(batch.place.micro_batch.clips.tolist(), texts, strict=True) if batch.weight else ()
    model.train()
    clips, hypotheses = zip(*gather_object(found), strict=True)
    assert len(set(clips)) == len(speech.clips) == len(clips), "every utterance once"
    references = [normalised(text, speech.settings.rules) for text in speech.clips.select_columns("text")[list(clips)]["text"]]
    show(speech.clips, clips, references, hypotheses)
    rates = {name: rate.compute(predictions=hypotheses, references=references)[name]
             for name, rate in (("wer", WordErrorRate()), ("cer", CharacterErrorRate()))}
    return {**recognition_measures(sums.over_processes(accelerator)), **rates}


def what_next(output_dir: str, best: dict[str, Any], total_steps: int) -> str:
    """The last words."""
    wer = f", WER {best['wer']:.2%}" if "wer" in best else ""
    return (f"{output_dir}: the recogniser of step {best['step'] or total_steps} is there{wer}; decode and score with\n"
            f"  python run_ctc_decoding.py --model_name_or_path {output_dir} --dataset_name ... --output_dir ...")


if __name__ == "__main__":
    arguments.run_as_script(main)
