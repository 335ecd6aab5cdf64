"""The flags of the Hub, of scripts that train and of the one that prepares; the words of the card's command."""

import argparse
import re

STRATEGIES = ("end", "best", "every_save", "checkpoint")


def add_hub_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """`what` is pushed: a model, as a run goes on, or a dataset, when it is there."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help=f"upload the {what}, with a card, to a repository of the Hub")
    group.add_argument(f"--hub_{what}_id", metavar="ID", help="repository to push to (default: the name of --output_dir)")
    group.add_argument("--hub_token", metavar="TOKEN", help="token to push with (default: that of `hf auth login`)")
    group.add_argument("--hub_private_repo", action="store_true", help="make the repository private, where it is a new one")
    group.add_argument("--license", type=_license, metavar="NAME",
                       help=f"of the {what}, for its card: a name that the Hub knows, as apache-2.0 or cc-by-4.0")
    if what == "model":
        group.add_argument("--hub_strategy", choices=STRATEGIES, default="every_save",
                           help="push at the end alone; when a better model is there (pretraining: at every save); at every "
                           "save, in the background; or that with the checkpoint, so that the run can go on elsewhere "
                           "(%(default)s)")


def _license(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a licence: small letters, digits, dots and hyphens, as "
                                         "apache-2.0, mit, cc-by-4.0 or other")
    return text


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `python -m wavtrain.hub.model_card`."""
    parser.add_argument("run", metavar="RUN", help="--output_dir of a training script")
    parser.add_argument("scores", nargs="*", default=[], metavar="SCORES", help="--output_dir of run_ctc_decoding.py, "
                        "which decoded with this run's model; it is added to those that the card has already")
    parser.add_argument("--forget_scores", action="store_true", help="those that the card has already")
