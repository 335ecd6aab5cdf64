"""What a careful colleague would say before a run starts: a few facts, and a line for whatever is likely to be a mistake.

Nothing here changes a number of the run, and only what would end it anyway ends it here. --check_only stops after it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from wavtrain.checks.cost import cost_checks
from wavtrain.checks.findings import SEVERITIES, Checked
from wavtrain.checks.run_shape import SAMPLES_PER_HOUR, batch_checks, recipe_checks, schedule_checks
from wavtrain.checks.speech_survey import corpus_checks, sound_checks
from wavtrain.checks.timing import Loss, timed_micro_batches
from wavtrain.planned_run import PlannedRun
from wavtrain.schedules import refuse_endless_warmup


def preflight(run: PlannedRun, of_task: Callable[[PlannedRun], Checked], loss_of: Loss) -> dict[str, Any]:
    """Print it, on the main process, and return it. Every process times the model, as they do in the run; none waits for
    another. `of_task` checks what only pretraining or only fine-tuning has, `loss_of` is a forward pass."""
    refuse_endless_warmup(run.schedule.num_warmup_steps, run.total_steps)
    found = Checked()
    if run.accelerator.is_main_process:
        for part in (corpus_checks(run), sound_checks(run), *_shape_checks(run), of_task(run)):
            found.add(part)
        learning, weights = (run.weights(only_learning) / 1e6 for only_learning in (True, False))
        few = f"{learning:,.1f}" if learning >= 0.1 else f"{learning:.2g}"
        found.facts["model"] = f"{weights:,.1f} million weights" + (f", {few} learn" if learning < weights else "")
        print(f"{run.options.output_dir}: the run as it is planned")
        _tell(found.facts)
    timing = timed_micro_batches(run, loss_of)
    if run.accelerator.is_main_process:
        _tell(found.add(cost_checks(run, timing)).facts)
        for finding in sorted(found.findings, key=lambda each: SEVERITIES.index(each.severity)):
            print(f"  {finding}")
    return found.as_dict()


def _shape_checks(run: PlannedRun) -> Iterator[Checked]:
    batches = batch_checks(run.options, run.sizes, run.accelerator.num_processes, run.total_steps, run.recipe)
    hours_of_epoch = run.sizes.heard.sum() / SAMPLES_PER_HOUR
    yield batches
    yield recipe_checks(run.options, batches.numbers["hours_per_update"], hours_of_epoch, run.recipe)
    yield schedule_checks(run.schedule, run.options, run.total_steps)


def _tell(facts: dict[str, str]) -> None:
    for about, fact in facts.items():
        print(f"  {about:<9}{fact}")
