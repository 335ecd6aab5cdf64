"""Pretrain wav2vec 2.0. This version prepares: the loop itself is the next part, so --preprocessing_only is asked for.

    accelerate launch run_wav2vec2_pretraining_no_trainer.py --dataset_name librispeech_asr \\
        --dataset_config_names clean clean --dataset_split_names validation test --preprocessing_only
    python run_wav2vec2_pretraining_no_trainer.py --dataset_name demo_corpus \\
        --validation_split_names validation --preprocessing_only

A corpus is prepared once, under --cache_dir, by one process while the others wait; a directory written by run_preprocessing.py
is taken as it is. Run the same command again and nothing is redone.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from wavtrain import InputError, arguments, flags
from wavtrain.reports import preparation_summary
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import already_prepared, cache_folder, prepared_speech


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    flags.add_corpus_arguments(parser)
    flags.add_preparation_arguments(parser)
    parser.add_argument("--preprocessing_only", action="store_true", help="prepare the corpus and stop")
    args = arguments.parse(parser, argv)
    if not args.preprocessing_only:
        raise InputError("this version prepares speech and does not train yet: add --preprocessing_only")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prepare what is not prepared yet; return what preparation.json says."""
    args = parse_arguments(argv)
    state = PartialState(cpu=not torch.accelerator.is_available())
    corpus, limits = arguments.options_of(CorpusOptions, args), arguments.options_of(ClipLimits, args)
    prepared = already_prepared(corpus, limits, args.validation_split_percentage) or prepared_speech(
        corpus,
        limits,
        cache_folder(args.cache_dir, corpus, limits, args.validation_split_percentage),
        validation_percentage=args.validation_split_percentage,
        num_workers=args.preprocessing_num_workers,
        cache_dir=args.cache_dir,
        overwrite=args.overwrite_cache,
        may_prepare=state.is_local_main_process,
    )
    if state.is_main_process:
        print(preparation_summary(prepared.folder, prepared.report))
    return prepared.report


if __name__ == "__main__":
    arguments.run_as_script(main)
