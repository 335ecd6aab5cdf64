"""A script to sweep: it learns at its rate, in no time; it can be refused, collapse, and wait to be killed."""

import json
import os
import signal

from wavtrain import InputError, arguments
from wavtrain.durable_files import read_json_lines

TOO_FAST = 5e-3


class Collapsed(InputError):  # noqa: N818 (as in wavtrain.checks.collapse)
    exit_code = 3


def parse_arguments(argv=None):
    parser = arguments.new_parser(__doc__)
    parser.add_argument("--dataset_name", nargs="+", default=())
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--learning_rate", type=arguments.above_zero, default=1e-3)
    parser.add_argument("--num_warmup_steps", type=arguments.natural, default=0)
    parser.add_argument("--max_train_steps", type=arguments.positive, default=4)
    parser.add_argument("--lr_scheduler_type", choices=("linear", "cosine"), default="linear")
    parser.add_argument("--exempt_norms_and_biases", action="store_true")
    parser.add_argument("--on_collapse", choices=("warn", "stop"), default="warn")
    args = arguments.parse(parser, argv)
    if args.exempt_norms_and_biases and args.lr_scheduler_type == "cosine":
        raise InputError("--exempt_norms_and_biases does not go with cosine")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.num_warmup_steps > args.max_train_steps:
        raise InputError(f"--num_warmup_steps {args.num_warmup_steps}: is longer than the run")
    path = os.path.join(args.output_dir, "metrics.jsonl")
    done = len(read_json_lines(path))
    with open(path, "a", buffering=1) as file:
        for step in range(done + 1, args.max_train_steps + 1):
            record = {"phase": "validation", "step": step, "contrastive_accuracy": step * args.learning_rate}
            file.write(json.dumps(record) + "\n")
            if args.learning_rate > TOO_FAST and args.on_collapse == "stop":
                raise Collapsed(f"--on_collapse stop: ended after update {step}")
            if done == 0 and step == 2 and os.path.basename(args.output_dir) == os.environ.get("WAITS"):
                signal.pause()


if __name__ == "__main__":
    arguments.run_as_script(main)
