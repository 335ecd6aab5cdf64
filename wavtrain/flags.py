"""Groups of flags that scripts share. Only this module and `arguments` see argparse."""

import argparse
import os

from wavtrain.arguments import percentage, positive, seconds

NUM_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has it not


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Which speech. Fields of manifests.CorpusOptions."""
    group = parser.add_argument_group("corpus")
    group.add_argument("--dataset_name", nargs="+", required=True, metavar="CORPUS",
                       help="Hub id, folder, manifest file (tsv, csv, json, jsonl) or prepared directory; several are joined")
    group.add_argument("--dataset_config_names", nargs="+", default=(), metavar="CONFIG",
                       help="configurations (of a folder: subfolders), paired with the splits")
    group.add_argument("--dataset_split_names", nargs="+", default=(), metavar="SPLIT",
                       help="splits to train on, paired with the configurations (default: train, or the only one there is)")
    group.add_argument("--validation_split_names", nargs="+", default=(), metavar="SPLIT",
                       help="splits to validate on, instead of holding out a part of the training splits")
    for role, what in (("audio", "the audio"), ("text", "the transcript"), ("speaker", "the speaker"),
                       ("language", "the language"), ("id", "the utterance id")):
        group.add_argument(f"--{role}_column_name", metavar="COLUMN", help=f"column of {what} (default: known names are found)")
    group.add_argument("--audio_root", metavar="DIR", help="folder that audio paths of tables are relative to and must stay in "
                       "(default: the folder of the table, or of the corpus)")
    group.add_argument("--streaming", action="store_true", help="read a Hub or parquet corpus as a stream, store what passes")


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """What becomes of it. Fields of clips.ClipLimits, and how the work is done."""
    group = parser.add_argument_group("preparation")
    group.add_argument("--min_duration_in_seconds", type=seconds, default=0.1, metavar="S",
                       help="shorter clips are left out (%(default)s)")
    group.add_argument("--max_duration_in_seconds", type=seconds, default=40.0, metavar="S",
                       help="longer clips are long audio (%(default)s)")
    group.add_argument("--long_audio", choices=("drop", "crop", "split"), default="split",
                       help="leave long audio out, keep its first seconds, or cut it into equal pieces, crop and split without "
                       "its transcript (%(default)s)")
    group.add_argument("--validation_split_percentage", type=percentage, metavar="P",
                       help="share of the training clips held out for validation, by a hash of their ids "
                       "(1, or 0 with --validation_split_names)")
    group.add_argument("--preprocessing_num_workers", type=positive, default=NUM_CORES, metavar="N",
                       help="processes that prepare; any number gives the same result (%(default)s, the cores here)")
    group.add_argument("--overwrite_cache", action="store_true", help="prepare again what is prepared already")
    group.add_argument("--cache_dir", metavar="DIR", help="folder for downloads and for what a training script prepares "
                       "(~/.cache/huggingface and ~/.cache/wavtrain)")
