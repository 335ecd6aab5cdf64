"""Sweep: a script + a search space -> trials, the best arguments.

    python run_sweep.py run_wav2vec2_pretraining_no_trainer.py \\
        --config configs/hf_readme_demo.yaml --output_dir runs/sweep \\
        --search_space configs/sweeps/pretraining.yaml --num_trials 40 \\
        --accelerate_arguments "--num_processes 8 --mixed_precision bf16" \\
        -- --max_train_steps 5000    # needs GPUs and the Hub
    python run_sweep.py run_wav2vec2_pretraining_no_trainer.py \\
        --config configs/demo_pretraining.yaml --output_dir runs/demo_sweep \\
        --search_space configs/sweeps/demo_pretraining.yaml --num_trials 8 \\
        -- --max_train_steps 300 --logging_steps 25    # needs half an hour

The second takes that on two cores which have other work too. Words after -- are the script's and go before its config.
Trial 0 is the base config as it is, so the end can say whether anything beats it. Each trial is a run of `accelerate launch` in
trials/NNNN/ with its log.txt; bad ones are ended early, collapsed ones have failed. Killed in whatever way, the same command
goes on, also with the trial that was running. The same command several times (CUDA_VISIBLE_DEVICES=1 before it, say) works on
one study together, on several machines with --storage. What comes out: best.yaml for the script's --config, trials.csv, and
pictures.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from wavtrain import InputError, arguments
from wavtrain.sweeps import sweep_report
from wavtrain.sweeps.objectives import Objective, objective_of
from wavtrain.sweeps.script_flags import Base, read_base
from wavtrain.sweeps.search_space import Space, read_space, remarks
from wavtrain.sweeps.study import LENGTH, TRIALS, Claim, Study
from wavtrain.sweeps.suggestions import Judges
from wavtrain.sweeps.sweep_pictures import draw
from wavtrain.sweeps.trial_rows import UNFINISHED
from wavtrain.sweeps.trials import LOG, Outcome, prepare, run_trial


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments.new_parser(__doc__, "the base config: YAML file of the script's flags, which trials vary")
    parser.usage = "%(prog)s SCRIPT --config FILE --flag value ... [-- flags of SCRIPT]"
    group = parser.add_argument_group("sweep")
    group.add_argument("script", metavar="SCRIPT", help="training script whose trials these are; words after -- are for it")
    group.add_argument("--output_dir", required=True, metavar="DIR", help="study, trials, best.yaml, trials.csv, pictures")
    group = parser.add_argument_group("search")
    group.add_argument("--search_space", required=True, metavar="FILE",
                       help="YAML: `flag: {low: 1.0e-4, high: 1.0e-3, log: true}` (or step) and `flag: {choices: [...]}`")
    group.add_argument("--num_trials", type=arguments.positive, required=True, metavar="N",
                       help="of the study, all sweeps on it together; a higher number later adds to them")
    group.add_argument("--metric", help="name in the validation records (pretraining: contrastive_accuracy; CTC: wer)")
    group.add_argument("--direction", choices=("minimize", "maximize"), help="what is good (known for the usual metrics)")
    group.add_argument("--sampler", choices=("tpe", "random"), default="tpe", help="chooses the trials (%(default)s)")
    group.add_argument("--seed", type=arguments.seed, default=0, metavar="N", help="of the sampler (%(default)s)")
    group = parser.add_argument_group("ending trials early")
    group.add_argument("--pruner", choices=("median", "hyperband", "none"), default="median",
                       help="ends trials that are worse than others were at the same validation (%(default)s)")
    group.add_argument("--num_startup_trials", type=arguments.natural, default=4, metavar="N",
                       help="trials drawn at random, and completed before any is ended early (%(default)s)")
    group.add_argument("--num_unpruned_steps", type=arguments.natural, metavar="N",
                       help="updates before which no trial is ended (a third of --max_train_steps)")
    group = parser.add_argument_group("running trials")
    group.add_argument("--accelerate_arguments", default="", metavar="WORDS", help="for `accelerate launch`, as "
                       "'--num_processes 2' or '--config_file FILE'; one word as --accelerate_arguments=--cpu; for several "
                       "sweeps on one machine with several processes each also --main_process_port 0")
    group.add_argument("--storage", metavar="URL", help="database of the study, for sweeps on several machines: an URL of "
                       "SQLAlchemy's as postgresql://user@host/sweeps (default: SQLite in --output_dir)")
    group.add_argument("--study_name", metavar="NAME", help="in that database (default: the name of --output_dir)")
    group.add_argument("--keep_models", choices=("best", "all"), default="best",
                       help="weights and checkpoints of the other trials are removed when they end, or kept (%(default)s)")
    argv = list(sys.argv[1:] if argv is None else argv)
    border = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:border])
    args.words = argv[border + 1 :]
    if args.config is None:
        raise InputError("--config is needed: the base config that trials vary")
    try:
        shlex.split(args.accelerate_arguments)
    except ValueError as error:
        raise InputError(f"--accelerate_arguments {args.accelerate_arguments}: {error}") from error
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run trials until the study has them all; return what the best one is and what it was measured against."""
    args = parse_arguments(argv)
    objective = objective_of(args.script, args.metric, args.direction)
    space = read_space(args.search_space)
    base = read_base(args.script, args.config, args.words, args.search_space, space, args.output_dir)
    study = open_study(args, base, space, objective)
    for remark in (*remarks(space, objective.metric), *base.remarks):
        print(remark)
    if not any(row.updates for row in study.rows()):  # the speech of those that ran is there
        prepare(base, args.output_dir)
    over = sum(row.kind not in UNFINISHED for row in study.rows())
    print(f"{args.output_dir}: {over} of {args.num_trials} trials are over; what each one prints is in its {TRIALS}/NNNN/{LOG}")
    while (claim := study.claim(args.num_trials, base.resolved)) is not None:
        began, hopeless = time.monotonic(), partial(study.is_hopeless, claim)
        announce(claim)
        words = shlex.split(args.accelerate_arguments)
        outcome = run_trial(base, claim.folder, claim.params, words, objective, hopeless)
        study.finish(claim, outcome, time.monotonic() - began)
        conclude(claim, outcome, objective)
        report(args, study, base, space, objective)
        if (fault := sweep_report.more_of_the_same(study.rows())):
            conclusion(args, study, base, space, objective)
            raise InputError(fault)
    return conclusion(args, study, base, space, objective)


def open_study(args: argparse.Namespace, base: Base, space: Space, objective: Objective) -> Study:
    """Begun, or gone on with."""
    steps = base.resolved.get(LENGTH)
    unpruned = steps // 3 if args.num_unpruned_steps is None and steps else args.num_unpruned_steps or 0
    judges = Judges(args.seed, args.sampler, args.pruner, args.num_startup_trials, unpruned,
                    None if LENGTH in space else steps)
    facts = {"script": os.path.basename(args.script), "config": base.given}
    name = args.study_name or os.path.basename(os.path.abspath(args.output_dir))
    return Study(args.output_dir, args.storage, name, space, objective, facts, judges)


def announce(claim: Claim) -> None:
    """What is run now."""
    shown = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in claim.params.items())
    begins = "goes on, as a sweep before this left it" if claim.is_resumed else "begins"
    print(f"trial {claim.trial.number:04d} {begins}: {'the base config' if claim.is_base else shown}", flush=True)


def conclude(claim: Claim, outcome: Outcome, objective: Objective) -> None:
    """What became of it."""
    value = f", {objective.metric} {outcome.value:.4g}" if outcome.value is not None else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    kind = sweep_report.SPOKEN.get(outcome.kind, outcome.kind)
    print(f"trial {claim.trial.number:04d} {kind} after {outcome.updates} updates{value}{reason}", flush=True)


def report(args: argparse.Namespace, study: Study, base: Base, space: Space, objective: Objective) -> None:
    """The table and the best arguments so far; what the others leave on the disk is removed."""
    rows = study.rows()
    sweep_report.write_table(os.path.join(args.output_dir, sweep_report.TABLE), rows, list(space), objective)
    best = sweep_report.best_of(rows)
    if best is not None:
        sweep_report.write_best(args.output_dir, best, base, objective)
    if args.keep_models == "best":
        sweep_report.drop_models(rows, {row.number: study.folder(row.number) for row in rows})


def conclusion(args: argparse.Namespace, study: Study, base: Base, space: Space, objective: Objective) -> dict[str, Any]:
    """The last words, of whichever sweep ends last."""
    report(args, study, base, space, objective)
    rows = study.rows()
    print(sweep_report.table(rows, list(space), objective))
    running = [f"{row.number:04d}" for row in rows if row.state == "running"]
    if running:
        print(f"trial {', '.join(running)}: still running in another sweep, or left by one elsewhere, which goes on with it")
    pictures = draw(args.output_dir, rows, space, objective, study.importances())
    print("so far: " * bool(running) + sweep_report.verdict(rows, objective))
    best = sweep_report.best_of(rows)
    if best is not None:
        path = os.path.join(args.output_dir, sweep_report.BEST)
        print(f"python {args.script} --config {path} runs the best arguments")
    if pictures:
        print(f"pictures: {', '.join(pictures)}")
    against = next((row.value for row in rows if row.is_base and row.kind == "complete"), None)
    counts = {state: sum(row.state == state for row in rows) for state in sorted({row.state for row in rows})}
    return {"trials": counts, "best_trial": best and best.number, "best_value": best and best.value, "base_value": against,
            "best_params": best.params if best else {}}


if __name__ == "__main__":
    arguments.run_as_script(main)
