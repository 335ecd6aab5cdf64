"""Updates, epochs, padding, schedule and learning rate of a run, beside those of the recipe. Nothing here opens audio."""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from wavtrain.batching import BatchBudget, EpochPlan, planned_lengths
from wavtrain.checks.findings import Checked, in_hours, percent
from wavtrain.checks.published import ADAM, WARMUP_SHARES, Recipe
from wavtrain.schedules import WITHOUT_WARMUP, Schedule

SAMPLES_PER_HOUR = 16_000 * 3600
MUCH_PADDING, MUCH_CROPPED = 0.15, 0.25
LONG_WARMUP, ENDLESS_WARMUP = 0.25, 0.5
FASTER, SLOWER = 1.5, 5.0  # than the recipe's rate: what is worth a word


@dataclass(frozen=True)
class RunSettings:
    """The fields are flags of the same names."""

    output_dir: str
    learning_rate: float
    weight_decay: float
    adam_beta2: float
    adam_epsilon: float
    gradient_accumulation_steps: int
    max_train_steps: int | None
    num_train_epochs: int
    per_device_train_batch_size: int | None
    max_batch_duration_in_seconds: float | None
    gradient_checkpointing: bool
    torch_compile: bool
    dataloader_num_workers: int | None
    logging_steps: int
    saving_steps: int
    save_total_limit: int


class BatchSizes(NamedTuple):
    """Samples of each micro-batch of an epoch, all of them arrays (batches,)."""

    stored: np.ndarray
    heard: np.ndarray  # what cropping leaves
    computed: np.ndarray  # with the padding
    longest: np.ndarray

    @property
    def padding(self) -> float:
        """Share of what the model computes."""
        return 1 - self.heard.sum() / self.computed.sum()

    @property
    def cropped(self) -> float:
        """Share of the speech that an epoch leaves out."""
        return 1 - self.heard.sum() / self.stored.sum()


def batch_sizes(num_samples: np.ndarray, budget: BatchBudget, crops: bool, plan: EpochPlan) -> BatchSizes:
    """Of a plan. With `crops` every clip is as long as the shortest of its batch."""
    lengths, starts = planned_lengths(num_samples, budget)[plan.order].astype(np.int64), plan.starts[:-1]
    counts, longest = np.diff(plan.starts), np.maximum.reduceat(lengths, starts)
    stored = np.add.reduceat(num_samples[plan.order].astype(np.int64), starts)
    if crops:
        longest = np.minimum.reduceat(lengths, starts)
        return BatchSizes(stored, counts * longest, counts * longest, longest)
    return BatchSizes(stored, np.add.reduceat(lengths, starts), counts * longest, longest)


def batch_checks(options: RunSettings, sizes: BatchSizes, num_processes: int, total_steps: int,
                 recipe: Recipe | None) -> Checked:
    """How much speech makes an update, how often all of it is heard, how much of the work is for nothing."""
    found = Checked()
    per_update = num_processes * options.gradient_accumulation_steps
    num_batches = len(sizes.heard)
    an_epoch = ceil(num_batches / per_update)
    hours = sizes.heard.sum() / SAMPLES_PER_HOUR * min(per_update / num_batches, 1)
    epochs = total_steps / an_epoch
    heard_in_all = in_hours(epochs * sizes.heard.sum() / SAMPLES_PER_HOUR)
    beside = f"; {recipe.name} had {recipe.hours:.2f} h" if recipe else ""
    processes = f"{num_processes} processes" if num_processes > 1 else "one process"
    rounds = min(options.gradient_accumulation_steps, ceil(num_batches / num_processes))
    found.facts["update"] = (f"{in_hours(hours)} of speech: {rounds} x "
                             f"{sizes.heard.mean() / 16_000:.1f} s on {processes}{beside}")
    found.facts["run"] = f"{total_steps:,} updates, {epochs:,.{1 if epochs < 100 else 0}f} epochs, {heard_in_all} heard"
    if recipe and recipe.updates:
        found.facts["run"] += f"; {recipe.name} had {recipe.updates:,} updates"
    for share, what in ((sizes.padding, "of the work is padding"), (sizes.cropped, "cropped away")):
        found.facts["run"] += f"; {percent(share)} {what}" if share else ""
    found.numbers.update(hours_per_update=float(hours), updates=total_steps, epochs=epochs,
                         padding_fraction=float(sizes.padding), cropped_fraction=float(sizes.cropped))
    if per_update > num_batches:
        remedy = (f"lower --gradient_accumulation_steps, to {num_batches // num_processes} at most"
                  if num_batches >= num_processes else f"launch {num_batches} of the {num_processes} processes")
        found.warn("accumulation", f"micro-batches of an epoch: {num_batches}, fewer than the {per_update} of an update, which "
                   f"will have less speech than was asked for: {remedy}")
    if epochs < 1:
        found.note("epochs", f"the run hears {percent(epochs)} of the clips; all, once: --max_train_steps {an_epoch}")
    if sizes.padding > MUCH_PADDING:
        found.note("padding", f"{percent(sizes.padding)} of what the model computes is padding, as few clips are of like "
                   "length: a lower --per_device_train_batch_size or --max_batch_duration_in_seconds, and a higher "
                   "--gradient_accumulation_steps")
    if sizes.cropped > MUCH_CROPPED:
        found.note("cropping", f"{percent(sizes.cropped)} of the speech is cropped away, another part in each epoch, to "
                   "--random_crop_in_seconds, --max_batch_duration_in_seconds and the shortest of a batch, which a lower "
                   "--per_device_train_batch_size brings closer")
    return found


def recipe_checks(options: RunSettings, hours: float, hours_of_epoch: float, recipe: Recipe | None) -> Checked:
    """Hours per update, learning rate and Adam beside the recipe's for a model of this size. Without a recipe, nothing."""
    found = Checked()
    if recipe is None:
        return found
    say = found.warn if recipe.pretrains else found.note
    little = 2 if recipe.pretrains else 4
    if hours * little < recipe.hours:
        needed = ceil(options.gradient_accumulation_steps * recipe.hours / hours)
        reach = (f"--gradient_accumulation_steps {needed} reaches that" if hours_of_epoch >= recipe.hours else
                 f"an epoch is {in_hours(hours_of_epoch)} in all, so more speech reaches that, and no "
                 "--gradient_accumulation_steps")
        why = ", and with so little pretraining is known to collapse" if recipe.pretrains else ""
        say("hours_per_update", f"an update hears {in_hours(hours)} of speech, {recipe.name}'s heard {recipe.hours:.2f} "
            f"h{why}: {reach}")
    if hours > 2 * recipe.hours:
        found.note("hours_per_update", f"an update hears {in_hours(hours)} of speech, {recipe.name}'s heard {recipe.hours:.2f} "
                   "h: a lower --gradient_accumulation_steps makes more updates of the same speech")
    found.add(_rate_checks(options.learning_rate, hours, recipe))
    others = [name for name, value in ADAM.items() if getattr(options, name) != value] if recipe.pretrains else ()
    if others:
        told = ", ".join(f"--{name} {ADAM[name]:g} (here {getattr(options, name):g})" for name in others)
        found.note("adam", f"the recipes' Adam differs: {told}")
    return found


def _rate_checks(rate: float, hours: float, recipe: Recipe) -> Checked:
    """Published rates belong to published hours per update; for fewer, the square root of their ratio is the usual guess."""
    found = Checked()
    lowest, highest = recipe.rates
    factor = sqrt(min(1.0, hours / recipe.hours)) if recipe.pretrains else 1.0
    guess = (f"; for {in_hours(hours)} an update, square-root scaling gives {highest * factor:.1e}" if factor < 0.7 else "")
    published = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
    if rate > FASTER * highest:
        found.warn("learning_rate", f"--learning_rate {rate:g} is above {recipe.name}'s {published}, so training is likely "
                   f"to diverge or to collapse{guess}")
    elif rate > 2 * highest * factor:
        found.note("learning_rate", f"--learning_rate {rate:g} goes with {recipe.name}'s {recipe.hours:.2f} h an update{guess}")
    elif rate * SLOWER < lowest * factor:
        found.note("learning_rate", f"--learning_rate {rate:g} is far below {recipe.name}'s {published}{guess}: it will learn "
                   "slowly")
    return found


def schedule_checks(schedule: Schedule, options: RunSettings, total_steps: int) -> Checked:
    """Warm-up, decay and records against the length of the run. One longer than the run is refused elsewhere."""
    found = Checked()
    kind, warmup = schedule.lr_scheduler_type, schedule.num_warmup_steps
    share = schedule.tri_stage_ratios[0] if kind == "tri_stage" else warmup / total_steps
    flag = "--tri_stage_ratios" if kind == "tri_stage" else "--num_warmup_steps"
    advised = max(1, round(WARMUP_SHARES[0] * total_steps))
    published = " to ".join(f"{100 * each:.0f}" for each in WARMUP_SHARES) + " %"
    if share > LONG_WARMUP:
        say = found.warn if share > ENDLESS_WARMUP else found.note
        say("warmup", f"{flag}: the learning rate rises for {percent(share)} of the run, in published runs for {published}; "
            f"{percent(WARMUP_SHARES[0])} are {advised:,} updates here")
    elif not share and kind not in WITHOUT_WARMUP and advised < total_steps:
        found.note("warmup", f"no warm-up: the first updates have the highest learning rate, which rises for {published} of "
                   f"published runs: --num_warmup_steps {advised}")
    if kind.startswith("constant"):
        found.note("decay", f"--lr_scheduler_type {kind}: the learning rate never falls; published runs end near 0 (linear)")
    of_50 = max(1, total_steps // 50)
    if options.logging_steps > total_steps > 1:
        found.note("records", f"--logging_steps {options.logging_steps}: the only record will be that of the last update, so "
                   f"no curve; {of_50} makes {total_steps // of_50} points")
    return found
