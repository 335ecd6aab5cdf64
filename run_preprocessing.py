"""Speech, wherever it is -> prepared speech on disk: checked, mono, 16 kHz, with an account of what was left out.

    python run_preprocessing.py --dataset_name librispeech_asr \\
        --dataset_config_names clean clean \\
        --dataset_split_names train.100 train.360 \\
        --output_dir prepared/librispeech_460h    # needs the Hub
    python run_preprocessing.py --dataset_name demo_corpus \\
        --validation_split_names validation --output_dir prepared/demo

The second takes seconds on a laptop and needs no network. The directory holds train/ and validation/ (plain `datasets` on
disk), rejected.jsonl (every clip left out, with its reason) and preparation.json (the counts); every other script takes it as
--dataset_name. A preparation that was killed goes on where it was when the same command runs again. A job array shares the
work with --num_shards and --shard_index; the same command without these two joins it. --push_to_hub puts what is prepared on
the Hub. docs/data.md shows every form of corpus.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from wavtrain import InputError, arguments, flags
from wavtrain.hub.dataset_card import push_prepared
from wavtrain.hub.hub_flags import add_hub_arguments
from wavtrain.hub.repository import Repository, name_of
from wavtrain.reporting.summaries import preparation_summary
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import prepared_speech


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__)
    flags.add_corpus_arguments(parser)
    flags.add_preparation_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", required=True, metavar="DIR", help="the prepared directory to write")
    array = parser.add_argument_group("job array")
    array.add_argument("--num_shards", type=arguments.positive, metavar="N", help="number of jobs that share the work")
    array.add_argument("--shard_index", type=arguments.natural, metavar="I", help="which of them this is, from 0")
    add_hub_arguments(parser, "dataset")
    args = arguments.parse(parser, argv)
    if (args.num_shards is None) != (args.shard_index is None):
        raise InputError("--num_shards and --shard_index go together")
    if args.shard_index is not None and args.shard_index >= args.num_shards:
        raise InputError(f"--shard_index {args.shard_index}: counts from 0 and must be below --num_shards {args.num_shards}")
    if args.overwrite_cache and args.num_shards:
        raise InputError("--overwrite_cache has no place in a job array, whose jobs would drop each other's work: remove "
                         f"{args.output_dir} first")
    if args.push_to_hub and args.num_shards:
        raise InputError("--push_to_hub has no place in a job array: the call that joins its work pushes it")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prepare; return what preparation.json says."""
    args = parse_arguments(argv)
    repository = Repository(args.hub_dataset_id or name_of(args.output_dir), "dataset", args.hub_token, args.hub_private_repo)
    if args.push_to_hub:
        repository.refuse_if_closed()
    prepared = prepared_speech(
        arguments.options_of(CorpusOptions, args),
        arguments.options_of(ClipLimits, args),
        args.output_dir,
        validation_percentage=args.validation_split_percentage,
        num_workers=args.preprocessing_num_workers,
        cache_dir=args.cache_dir,
        overwrite=args.overwrite_cache,
        share=None if args.shard_index is None else (args.shard_index, args.num_shards),
        waits=False,
    )
    if prepared is None:
        print(f"share {args.shard_index} of {args.num_shards} is done; when all are, the same command without --num_shards and "
              "--shard_index joins them")
        return {}
    print(preparation_summary(prepared.folder, prepared.report))
    if args.push_to_hub:
        print(f"{push_prepared(prepared, repository, args.license)}: the prepared speech is there")
    return prepared.report


if __name__ == "__main__":
    arguments.run_as_script(main)
