"""Groups of flags that scripts share. Only `arguments`, `hub_flags` and this module see argparse."""

import argparse
import os

from wavtrain.arguments import above_zero, amount, below_one, duration, few, natural, percentage, positive, seconds, seed, share
from wavtrain.hub.hub_flags import add_hub_arguments
from wavtrain.schedules import SCHEDULES

NUM_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has it not


def add_corpus_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Which speech. Fields of manifests.CorpusOptions."""
    group = parser.add_argument_group("corpus")
    group.add_argument("--dataset_name", nargs="+", required=True, metavar="CORPUS",
                       help="Hub id, folder, table (tsv, csv, json, jsonl), audio file or prepared speech; several are joined")
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
    return group


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """What becomes of it. Fields of clips.ClipLimits, and how the work is done."""
    group = parser.add_argument_group("preparation")
    group.add_argument("--min_duration_in_seconds", type=seconds, default=0.1, metavar="S",
                       help="shorter clips are left out (0.1; when decoding 0.025)")
    group.add_argument("--max_duration_in_seconds", type=seconds, default=40.0, metavar="S",
                       help="longer clips are long audio (40; when decoding a day)")
    group.add_argument("--long_audio", choices=("drop", "crop", "split"), default="split",
                       help="leave long audio out, keep its first seconds, or cut it into equal pieces, crop and split without "
                       "its transcript (split; when decoding drop)")
    group.add_argument("--validation_split_percentage", type=percentage, metavar="P",
                       help="share of training clips held out, by a hash of their ids (1, or 0 with --validation_split_names)")
    group.add_argument("--preprocessing_num_workers", type=positive, default=NUM_CORES, metavar="N",
                       help="processes that prepare; any number gives the same result (%(default)s, the cores here)")
    group.add_argument("--overwrite_cache", action="store_true", help="prepare again what is prepared already")
    group.add_argument("--cache_dir", metavar="DIR", help="folder for downloads and for what a training script prepares "
                       "(~/.cache/huggingface and ~/.cache/wavtrain)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model is pretrained, and what of its config is to be other than it says."""
    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", metavar="MODEL", help="Hub id or folder of a config and a feature extractor, as "
                       "configs/models/wav2vec2-base; its weights are not taken, --init_from takes them (default: --init_from)")
    group.add_argument("--config_name", metavar="MODEL", help="Hub id or folder of the config, if not the model's own")
    group.add_argument("--init_from", metavar="MODEL", help="go on from these weights (Hub id, folder, a run's checkpoint)")
    _add_ways_of_a_model(group, "feat_quantizer_dropout")


def add_recogniser_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model is fine-tuned, and what of its config is to be other than it says."""
    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", metavar="MODEL", help="weights to start from: the output of a pretraining, any "
                       "checkpoint that transformers can give a CTC head (folder or Hub id)")
    group.add_argument("--config_name", metavar="MODEL", help="start from random weights of this config (folder or Hub id)")
    group.add_argument("--feature_encoder", choices=("frozen", "trained"),
                       help="the convolutions (default: frozen, from random weights trained)")
    group.add_argument("--freeze_finetune_updates", type=natural, default=0, metavar="N",
                       help="train the new head alone for so many updates (%(default)s; fairseq 10000)")
    group.add_argument("--add_adapter", action="store_const", const=True, help="layers of stride 2 on top, new ones if the "
                       "weights have none (as the well-known recipe of w2v-BERT)")
    group.add_argument("--adapter_language", metavar="LANG", help="train only the adapters and the head of this language (MMS)")
    _add_ways_of_a_model(group, "final_dropout")


def _add_ways_of_a_model(group: argparse._ArgumentGroup, last_dropout: str) -> None:
    group.add_argument("--trust_remote_code", action="store_true", help="run code that comes with a config of the Hub")
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", last_dropout, "layerdrop"):
        group.add_argument(f"--{name}", type=share, metavar="P", help="probability, in place of the config's")
    group.add_argument("--gradient_checkpointing", action="store_true", help="compute activations twice to keep fewer")
    group.add_argument("--torch_compile", action="store_true", help="compile the layers: slow at first, then faster on GPUs")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: as accelerate is configured")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Of every script that trains."""
    add_corpus_arguments(parser)
    add_preparation_arguments(parser)
    add_training_cache_arguments(parser)
    add_optimizer_arguments(parser)
    add_run_arguments(parser)
    add_hub_arguments(parser, "model")


def add_batch_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How many clips are a micro-batch."""
    group = parser.add_argument_group("batches")
    group.add_argument("--per_device_train_batch_size", type=positive, metavar="N", help="clips in a micro-batch at "
                       "most (8; with --max_batch_duration_in_seconds as many as fit)")
    group.add_argument("--per_device_eval_batch_size", type=positive, default=8, metavar="N", help="validation (%(default)s)")
    group.add_argument("--max_batch_duration_in_seconds", type=duration, metavar="S",
                       help="clips x the longest of them in a micro-batch (fairseq's max_tokens / 16000)")
    group.add_argument("--pad_to_multiple_of", type=few, metavar="N", help="of the samples of a batch, when padded")
    return group


def add_beam_arguments(parser: argparse.ArgumentParser) -> None:
    """The beam search, and language models. Fields of beam_decoding.BeamOptions."""
    group = parser.add_argument_group("beam search")
    group.add_argument("--lm_path", metavar="FILE", help="n-gram language model, ARPA or KenLM binary")
    group.add_argument("--lm_unit", choices=("word", "token"), default="word",
                       help="of the language model; token spells freely, word needs a lexicon or an ARPA file (%(default)s)")
    group.add_argument("--lexicon_path", metavar="FILE", help="the only words there are: lines of `word`, or of "
                       "`word<TAB>t o k e n s` (default: those of the ARPA file)")
    group.add_argument("--lm_weight", type=amount, default=2.0, metavar="W", help="of --lm_path (%(default)s)")
    group.add_argument("--word_score", type=float, default=-1.0, metavar="W", help="added for each word (%(default)s)")
    group.add_argument("--unk_score", type=float, default=float("-inf"), metavar="W", help="for what is no word (never)")
    group.add_argument("--beam_size", type=positive, default=50, metavar="N", help="texts kept (%(default)s; papers 500, 1500)")
    group.add_argument("--beam_size_token", type=positive, metavar="N", help="tokens tried in each frame (all)")
    group.add_argument("--beam_threshold", type=above_zero, default=25.0, metavar="T", help="drop what is worse (%(default)s)")
    group.add_argument("--num_hypotheses", type=positive, default=1, metavar="N",
                       help="texts of each utterance in hypotheses.jsonl, and for --rescoring_lm to choose from (%(default)s)")
    group.add_argument("--rescoring_lm", metavar="MODEL", help="causal transformer that chooses among --num_hypotheses texts")
    group.add_argument("--rescoring_weight", type=amount, default=1.0, metavar="W", help="of --rescoring_lm (%(default)s)")
    group.add_argument("--tune", type=positive, nargs="?", const=30, metavar="N", help="find --lm_weight and --word_score on "
                       "the --validation_split_names, in so many trials (30)")


def add_text_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is learned of the transcripts. Fields of transcripts.TextRules."""
    group = parser.add_argument_group("transcripts", "what a model was trained with is its default when it decodes")
    group.add_argument("--text_case", choices=("keep", "lower", "upper"), default="keep", help="of letters (keep)")
    group.add_argument("--remove_punctuation", action="store_true", help="remove it, but apostrophes inside words")
    group.add_argument("--chars_to_ignore", nargs="+", default=(), metavar="C", help="characters to remove")
    group.add_argument("--unicode_form", choices=("NFC", "NFD", "NFKC", "none"), default="NFC", help="of accents (NFC)")
    group.add_argument("--digits", choices=("keep", "reject"), default="keep",
                       help="train on transcripts with digits, whose reading is unknown, or leave them out (%(default)s)")
    group.add_argument("--unit", choices=("letters", "phones"), default="letters", help="phones have spaces between (letters)")
    return group


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    """AdamW, its learning rate, how many updates. The schedule's are fields of schedules.Schedule."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--learning_rate", type=above_zero, default=5e-5, metavar="R", help="the highest (%(default)s)")
    group.add_argument("--weight_decay", type=amount, default=0.0, metavar="W", help="of AdamW (%(default)s)")
    group.add_argument("--exempt_norms_and_biases", action="store_true", help="no weight decay there (fairseq decays all)")
    group.add_argument("--adam_beta1", type=below_one, default=0.9, metavar="B", help="of AdamW (%(default)s)")
    group.add_argument("--adam_beta2", type=below_one, default=0.999, metavar="B", help="of AdamW (%(default)s; papers 0.98)")
    group.add_argument("--adam_epsilon", type=above_zero, default=1e-8, metavar="E", help="of AdamW (%(default)s; papers 1e-6)")
    group.add_argument("--max_grad_norm", type=above_zero, metavar="G", help="clip the gradient to this norm (default: not)")
    group.add_argument("--max_skipped_in_a_row", type=positive, default=20, metavar="N",
                       help="updates whose gradient is not finite are skipped; so many in a row end the run (%(default)s)")
    group.add_argument("--num_train_epochs", type=positive, default=3, metavar="N", help="passes over the speech (%(default)s)")
    group.add_argument("--max_train_steps", type=positive, metavar="N", help="optimizer updates, instead of epochs")
    group.add_argument("--gradient_accumulation_steps", type=positive, default=1, metavar="N",
                       help="micro-batches of each process in one exact update (%(default)s)")
    group.add_argument("--lr_scheduler_type", choices=SCHEDULES, default="linear", metavar="NAME",
                       help=f"after the warm-up: {', '.join(SCHEDULES)} (%(default)s)")
    group.add_argument("--num_warmup_steps", type=natural, default=0, metavar="N", help="of rising rate (%(default)s)")
    group.add_argument("--polynomial_power", type=above_zero, default=1.0, metavar="P", help="of the polynomial (%(default)s)")
    group.add_argument("--tri_stage_ratios", type=share, nargs="+", default=(0.1, 0.4, 0.5), metavar="R",
                       help="tri_stage: warm-up, hold and decay as parts of the run (0.1 0.4 0.5)")
    group.add_argument("--lr_init_scale", type=share, default=0.01, metavar="S", help="tri_stage: begins there (%(default)s)")
    group.add_argument("--lr_final_scale", type=share, default=0.05, metavar="S", help="tri_stage: ends there (%(default)s)")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a run lives, what it tells and keeps, how it is resumed."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", metavar="DIR", help="model, checkpoints, metrics.jsonl, curves")
    group.add_argument("--overwrite_output_dir", action="store_true", help="remove the run that is in it")
    group.add_argument("--check_only", action="store_true", help="say what is likely to be a mistake, and what it takes; stop")
    group.add_argument("--resume_from_checkpoint", metavar="PATH", help="checkpoint, latest, or Hub id of a pushed run")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of everything random (%(default)s)")
    group.add_argument("--logging_steps", type=positive, default=500, metavar="N", help="updates between records (%(default)s)")
    group.add_argument("--saving_steps", type=positive, default=500, metavar="N", help="updates between saves (%(default)s)")
    group.add_argument("--eval_steps", type=positive, metavar="N", help="updates between validations (as --saving_steps)")
    group.add_argument("--save_total_limit", type=positive, default=2, metavar="N", help="checkpoints to keep (%(default)s)")
    add_loader_argument(group)
    group.add_argument("--report_to", nargs="+", metavar="TRACKER", help="tensorboard wandb trackio mlflow ..., or all (none)")
    group.add_argument("--run_name", metavar="NAME", help="in trackers (default: the name of --output_dir)")
    group.add_argument("--tracker_project", metavar="NAME", help="project or experiment in trackers (wavtrain)")
    group.add_argument("--tracker_tags", nargs="+", default=(), metavar="TAG", help="in trackers; for mlflow KEY=VALUE")


def add_loader_argument(group: argparse._ArgumentGroup) -> None:
    """Beside every model."""
    group.add_argument("--dataloader_num_workers", type=natural, metavar="N", help="processes of each process that load ahead; "
                       "any number gives the same result (1, on a GPU up to 4 of the cores)")


def add_training_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """What a training script does with the speech that it prepares."""
    group = parser.add_argument_group("prepared speech")
    group.add_argument("--preprocessing_only", action="store_true", help="prepare the corpus and stop")
    group.add_argument("--train_cache_file_name", metavar="DIR", help="directory to prepare in (default: one in --cache_dir)")
    group.add_argument("--validation_cache_file_name", metavar="LINK", help="make this a link to its validation split")
