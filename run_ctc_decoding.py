"""Decode and score: a recogniser + speech -> hypotheses, error rates.

    python run_ctc_decoding.py --dataset_name librispeech_asr \\
        --dataset_config_names clean --dataset_split_names test \\
        --model_name_or_path facebook/wav2vec2-base-960h \\
        --output_dir scores/test_clean    # needs the Hub
    python run_ctc_decoding.py --model_name_or_path runs/demo_finetuning \\
        --dataset_name interview.mp3 --output_dir scores/demo

The speech may be a corpus, a directory of run_preprocessing.py, or audio files as they are; long recordings are heard in
overlapping windows that are joined frame by frame. --decoder greedy takes the best path; beam searches with an n-gram
language model (--lm_path), whose weights --tune finds on a validation split, and --rescoring_lm lets a transformer choose
among its hypotheses (requirements-decoding.txt). In --output_dir: hypotheses.jsonl (text, score, confidence, when each word
is), and where there are transcripts scores.json (WER, CER, intervals, tables by speaker and language, the worst utterances)
and sclite's reference.trn and hypothesis.trn. --pseudo_label writes a corpus with the hypotheses as transcripts.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

from wavtrain import InputError, arguments, flags  # before torch, whose threads it tells how to wait

# isort: split
import datasets
import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from wavtrain.durable_files import write_lines
from wavtrain.engine import accelerator_for
from wavtrain.hub.model_scores import of_a_decoding
from wavtrain.progress import Heard, progress_bar
from wavtrain.recognition import recognisers
from wavtrain.recognition.beam_decoding import BeamDecoder, BeamOptions
from wavtrain.recognition.beam_workers import candidates_of
from wavtrain.recognition.decoding import Hypothesis, greedy
from wavtrain.recognition.pseudo_labels import make_folder, write_pseudo_labels
from wavtrain.recognition.rescoring import Rescorer
from wavtrain.recognition.scores import Scored, how_decoded, score, score_table, write_scores, write_trn
from wavtrain.recognition.transcription import Recordings, WindowOptions, log_probs_of
from wavtrain.recognition.transcripts import TextRules, has_digits, normalised
from wavtrain.recognition.tuning import tuned
from wavtrain.recognition.vocabularies import Vocabulary, read_text_rules
from wavtrain.reporting.summaries import preparation_summary
from wavtrain.run_directory import held
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import already_prepared, cache_folder, prepared_speech
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.speech.waveforms import SAMPLING_RATE

WHOLE = {"min_duration_in_seconds": 0.025, "max_duration_in_seconds": 86_400.0, "long_audio": "drop"}  # nothing is cut here
TEXT_FLAGS = ("text_case", "remove_punctuation", "chars_to_ignore", "unicode_form", "unit")
OF_SCORES = ("scores.json", "reference.trn", "hypothesis.trn")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    group = flags.add_corpus_arguments(parser)
    group.add_argument("--prepared_split", choices=("train", "validation"), default="train",
                       help="which part of a prepared directory is decoded (%(default)s)")
    flags.add_preparation_arguments(parser)
    parser.set_defaults(**dict.fromkeys(WHOLE))
    flags.add_text_arguments(parser)
    parser.set_defaults(**dict.fromkeys(TEXT_FLAGS))
    group = parser.add_argument_group("recogniser")
    group.add_argument("--model_name_or_path", required=True, metavar="MODEL", help="output of run_ctc_finetuning.py, or any "
                       "CTC checkpoint (folder or Hub id)")
    group.add_argument("--adapter_language", metavar="LANG", help="the adapters and the vocabulary of this language (MMS)")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"),
                       help="default: as accelerate is configured")
    group.add_argument("--per_device_eval_batch_size", type=arguments.positive, metavar="N",
                       help="windows at once (8; on a CPU 1, which is faster there)")
    group.add_argument("--window_in_seconds", type=arguments.duration, default=30.0, metavar="S",
                       help="longer recordings are heard in windows (%(default)s)")
    group.add_argument("--window_overlap_in_seconds", type=arguments.seconds, default=6.0, metavar="S",
                       help="seconds that neighbours share (%(default)s)")
    flags.add_loader_argument(group)
    group.add_argument("--decoder", choices=("greedy", "beam"),
                       help="the best path, or a search (default: beam with --lm_path or --lexicon_path, else greedy)")
    group.add_argument("--decoding_num_workers", type=arguments.natural, default=1, metavar="N",
                       help="processes of the beam search, beside the model (%(default)s)")
    flags.add_beam_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, metavar="DIR", help="hypotheses.jsonl, scores.json, *.trn")
    group.add_argument("--pseudo_label", metavar="DIR", help="write a corpus with the hypotheses as transcripts, to train on")
    group.add_argument("--min_confidence", type=arguments.share, metavar="P",
                       help="less certain utterances stay out of --pseudo_label (0)")
    group.add_argument("--seed", type=arguments.seed, default=0, metavar="N", help="of intervals and of --tune (%(default)s)")
    args = arguments.parse(parser, argv)
    args.decoder = args.decoder or ("beam" if args.lm_path or args.lexicon_path else "greedy")
    refuse_what_does_nothing(args)
    if args.decoder == "beam":
        arguments.options_of(BeamOptions, args)  # refuses what does not go together
    arguments.options_of(WindowOptions, args)
    return args


def refuse_what_does_nothing(args: argparse.Namespace) -> None:
    """Flags without the one that they go with."""
    for_beam = ("tune", "rescoring_lm", "lm_path", "lexicon_path")
    given = [f"--{name}" for name in for_beam if getattr(args, name)] + ["--num_hypotheses"] * (args.num_hypotheses > 1)
    if args.decoder == "greedy" and given:
        raise InputError(f"{', '.join(given)}: of use only to --decoder beam")
    if args.rescoring_lm and args.num_hypotheses == 1:
        raise InputError("--rescoring_lm: chooses among --num_hypotheses, of which there is 1: give more, as 50")
    if args.tune and not (args.lm_path or args.lm_unit == "word"):
        raise InputError("--tune: finds weights of --lm_path and of a lexicon, and there is neither")
    if args.min_confidence is not None and not args.pseudo_label:
        raise InputError("--min_confidence: what is less certain stays out of --pseudo_label, which is not given")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Decode one part of the speech; return what scores.json says, without transcripts only how much there was."""
    args = parse_arguments(argv)
    accelerator = accelerator_for(args.mixed_precision)
    args.mixed_precision = accelerator.mixed_precision
    args.per_device_eval_batch_size = args.per_device_eval_batch_size or (1 if accelerator.device.type == "cpu" else 8)
    with ExitStack() as kept:  # from other runs: the output directory
        if accelerator.is_main_process:
            if args.pseudo_label:
                make_folder(args.pseudo_label)
            kept.enter_context(held(args.output_dir))
        return decode(args, accelerator)


def decode(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """From the model and the speech to the files of --output_dir."""
    model, extractor, vocabulary = recognisers.load_recogniser(args.model_name_or_path, args.adapter_language, args.cache_dir,
                                                               accelerator.device)
    rules = text_rules(args, vocabulary)
    search = BeamDecoder(vocabulary, arguments.options_of(BeamOptions, args)) if args.decoder == "beam" else None
    rescorer = Rescorer(args.rescoring_lm, accelerator.device, args.cache_dir) if args.rescoring_lm else None
    prepared = open_corpus(args, accelerator)
    clips = prepared.load(args.prepared_split)
    if clips is None:
        raise InputError(f"--prepared_split {args.prepared_split}: {prepared.folder} has no such part")
    frames_of, samples_per_frame = recognisers.frames_of(model.config), recognisers.samples_per_frame(model.config)

    def listen(clips: datasets.Dataset) -> Any:
        recordings = Recordings(clips, arguments.options_of(WindowOptions, args),
                                partial(recognisers.features_of, extractor=extractor), frames_of, samples_per_frame)
        return log_probs_of(recordings, model, accelerator, args.dataloader_num_workers)

    seconds_per_frame = samples_per_frame / SAMPLING_RATE
    if args.tune:
        held_out = prepared.load("validation")
        if held_out is None:
            raise InputError("--tune needs a part to tune on: name it with --validation_split_names")
        search = with_best_weights(args, accelerator, search, held_out, listen(held_out), rules, seconds_per_frame)

    found, heard, num_samples = [], Heard(), list(clips["num_samples"])
    with (closing(decoded(args, listen(clips), vocabulary, search, rescorer, seconds_per_frame)) as decoding,
          progress_bar(len(clips), "utterances", "decoding", disable=not accelerator.is_main_process) as bar):
        for each in decoding:
            found.append(each)
            seconds = num_samples[each[0]] / SAMPLING_RATE * accelerator.num_processes  # of which this is one
            bar.set_postfix_str(heard.add(seconds), refresh=False)
            bar.update(accelerator.num_processes)
    found = sorted(gather_object(found), key=lambda each: each[0])
    assert [row for row, _ in found] == list(range(len(clips))), "every utterance once"
    best = [best for _, best in found]
    return write_results(args, prepared.report, clips, best, rules) if accelerator.is_main_process else {}


def decoded(args: argparse.Namespace, heard: Iterable[tuple[int, np.ndarray]], vocabulary: Vocabulary,
            search: BeamDecoder | None, rescorer: Rescorer | None,
            seconds_per_frame: float) -> Iterator[tuple[int, list[Hypothesis]]]:
    """(row, the hypotheses, best first) for (row, log-probabilities)."""
    if search is None:
        for row, log_probs in heard:
            yield row, [greedy(log_probs, vocabulary, seconds_per_frame)]
        return
    with closing(candidates_of(search, heard, seconds_per_frame, args.decoding_num_workers)) as searched:
        for row, candidates in searched:
            if rescorer is None:
                yield row, [candidate.hypothesis for candidate in candidates]
            else:
                yield row, rescorer.ranked(candidates, args.rescoring_weight, args.lm_weight, args.word_score)


def text_rules(args: argparse.Namespace, vocabulary: Vocabulary) -> TextRules:
    """How transcripts are read before they are compared: as in training, unless flags say otherwise."""
    trained = read_text_rules(args.model_name_or_path, args.cache_dir) or TextRules(unit=vocabulary.unit)
    given = {name: getattr(args, name) for name in TEXT_FLAGS}
    if given["unit"] not in (None, vocabulary.unit):
        raise InputError(f"--unit {args.unit}: {args.model_name_or_path} recognises {vocabulary.unit}: leave the flag out")
    return replace(trained, digits=args.digits, **{name: value for name, value in given.items() if value is not None})


def open_corpus(args: argparse.Namespace, accelerator: Accelerator) -> PreparedSpeech:
    """What --dataset_name names, prepared without cutting anything."""
    corpus, percentage = arguments.options_of(CorpusOptions, args), args.validation_split_percentage
    given = {name: getattr(args, name) for name in WHOLE if getattr(args, name) is not None}
    limits = ClipLimits(**{**WHOLE, **given})
    prepared = already_prepared(corpus, ClipLimits(**given), percentage) or prepared_speech(
        corpus, limits, cache_folder(args.cache_dir, corpus, limits, percentage or 0.0),
        validation_percentage=percentage or 0.0, num_workers=args.preprocessing_num_workers, cache_dir=args.cache_dir,
        overwrite=args.overwrite_cache, may_prepare=accelerator.is_local_main_process)
    if accelerator.is_main_process:
        print(preparation_summary(prepared.folder, prepared.report))
    return prepared


def with_best_weights(args: argparse.Namespace, accelerator: Accelerator, search: BeamDecoder, clips: datasets.Dataset,
                      heard: Iterable[tuple[int, np.ndarray]], rules: TextRules, seconds_per_frame: float) -> BeamDecoder:
    """What --tune finds on held-out speech; the flags become what it found."""
    references = [reference_of(text, rules) for text in clips.select_columns("text")[:]["text"]]
    if not any(references):
        raise InputError("--tune: the part to tune on has no transcripts to compare with")
    cached = dict(gather_object(list(heard)))
    told = [row for row in sorted(cached) if references[row]]
    best = tuned(search, [cached[row] for row in told], [references[row] for row in told], seconds_per_frame, args.tune,
                 args.seed, args.decoding_num_workers, quiet=not accelerator.is_main_process)
    args.lm_weight, args.word_score = best.lm_weight, best.word_score
    if accelerator.is_main_process:
        print(f"tuned on {len(told)} utterances in {len(best.trials)} trials: --lm_weight {best.lm_weight:g} --word_score "
              f"{best.word_score:g}, WER {best.wer:.2%} (as given {best.start_wer:.2%}, greedy {best.greedy_wer:.2%})")
        if args.prepared_split == "validation":
            print("note: what is scored is what was tuned on, so the scores are too good")
    return search.with_weights(best.lm_weight, best.word_score)


def reference_of(text: str | None, rules: TextRules) -> str | None:
    """What hypotheses are compared with, if there is anything."""
    reference = normalised(text or "", rules)
    return None if not reference or (rules.digits == "reject" and has_digits(reference)) else reference


def write_results(args: argparse.Namespace, report: dict[str, Any], clips: datasets.Dataset, found: list[list[Hypothesis]],
                  rules: TextRules) -> dict[str, Any]:
    """The files of --output_dir, and the corpus of --pseudo_label."""
    for name in OF_SCORES:  # of an earlier decoding
        if os.path.exists(path := os.path.join(args.output_dir, name)):
            os.remove(path)
    known = clips.remove_columns("audio")
    records, scored = [], []
    for row, hypotheses in zip(known, found, strict=True):
        record = {"utterance_id": row["utterance_id"], "duration_in_seconds": row["num_samples"] / SAMPLING_RATE}
        record |= {name: row[name] for name in ("speaker", "language") if row[name] is not None}
        if reference := reference_of(row["text"], rules):
            record["reference"] = reference
            scored.append(Scored(row["utterance_id"], reference, hypotheses[0].text, row["speaker"], row["language"]))
        best, *others = (each._asdict() | {"words": [word._asdict() for word in each.words]} for each in hypotheses)
        records.append({**record, **best, **({"others": others} if others else {})})
    write_lines(os.path.join(args.output_dir, "hypotheses.jsonl"), [json.dumps(each, ensure_ascii=False) for each in records])
    print(f"{args.output_dir}: {len(records)} utterances, {sum(each['duration_in_seconds'] for each in records) / 3600:.2f} h")
    if args.pseudo_label:
        print(write_pseudo_labels(args.pseudo_label, clips, [best for best, *_ in found], args.min_confidence or 0.0))
    if not scored:
        print("note: there are no transcripts to compare with, so nothing is scored")
        return {"num_utterances": len(records)}
    about = of_a_decoding(args.model_name_or_path, args.cache_dir, report, args.prepared_split, settings(args), rules)
    scores = {**about, **score(scored, args.seed), "num_without_reference": len(records) - len(scored),
              "decoder": how_decoded(about["decoding"])}
    write_trn(args.output_dir, scored)
    write_scores(args.output_dir, scores)
    print(score_table([args.output_dir]))
    return scores


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """All that decides the hypotheses, but for the model and the speech."""
    names = ["decoder", "adapter_language", "mixed_precision", "window_in_seconds", "window_overlap_in_seconds"]
    if args.decoder == "beam":
        names += [*vars(arguments.options_of(BeamOptions, args)), "rescoring_lm", "rescoring_weight", "tune"]
    return {name: getattr(args, name) for name in names}


if __name__ == "__main__":
    arguments.run_as_script(main)
