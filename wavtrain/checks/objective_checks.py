"""What concerns pretraining alone: masks, padding that the model hears, the Gumbel temperature, clips that are left out."""

from dataclasses import dataclass

import numpy as np

from wavtrain.batching import planned_lengths
from wavtrain.checks.findings import Checked, percent
from wavtrain.checks.published import BASE
from wavtrain.masking import span_mask
from wavtrain.planned_run import PlannedRun
from wavtrain.schedules import gumbel_temperature

NUM_MASKED = 16  # micro-batches of which masks are drawn
FEW, MANY = 0.25, 0.75  # masked frames
OF_BASE = 0.69  # of its updates pass before the lowest temperature is reached


@dataclass(frozen=True)
class Annealing:
    """The fields are flags of the same names."""

    max_gumbel_temperature: float
    min_gumbel_temperature: float
    gumbel_temperature_decay: float


def masked_share(run: PlannedRun) -> float:
    """Of the frames of a few micro-batches, drawn as the run draws them."""
    speech, plan = run.speech, run.plan
    settings, generator, masked, frames = speech.settings, np.random.default_rng(0), 0, 0
    for batch in np.unique(np.linspace(0, plan.num_batches - 1, NUM_MASKED).astype(int)).tolist():
        lengths = planned_lengths(speech.num_samples[plan.clips_of(batch)], speech.budget).astype(np.int64)
        num_frames = settings.frames_of(np.full_like(lengths, lengths.min()) if settings.crops else lengths)
        masked += span_mask(num_frames, settings.mask_time_prob, settings.mask_time_length, settings.mask_time_min_masks,
                            generator, settings.require_same_masks).sum()
        frames += num_frames.sum()
    return float(masked / frames)


def objective_checks(run: PlannedRun, annealing: Annealing) -> Checked:
    """Each finding names the flag that changes it."""
    found, settings = Checked(), run.speech.settings
    share = masked_share(run)
    found.facts["masks"] = f"{percent(share)} of the frames"
    found.numbers["masked_fraction"] = share
    if run.recipe is None:
        found.facts["recipe"] = f"none for a model of this size; BASE (95 million weights) had {BASE.hours:.2f} h an update"
    if settings.mask_time_prob < 0.3:
        found.warn("masks", f"mask_time_prob is {settings.mask_time_prob}, a value for fine-tuning: give --mask_time_prob 0.65")
    elif not FEW <= share <= MANY:
        found.note("masks", f"{percent(share)} of the frames are masked, about half of them in the recipes: --mask_time_prob "
                   f"{settings.mask_time_prob} and --mask_time_length {settings.mask_time_length} decide that")
    if run.model.config.feat_extract_norm == "group" and not settings.crops:
        found.warn("group_norm", "the model's first layer has group norm, which hears padding as if it were speech: "
                   "--uneven_clips crop, or a model with layer norm")
    if run.speech.num_too_short:
        found.note("too_short", f"{run.speech.num_too_short} clips are too short for a mask of {settings.mask_time_length} "
                   "frames and are left out: raise --min_duration_in_seconds to have them counted in rejected.jsonl")
    if run.held_out is None:
        found.note("validation", "nothing is held out for validation, so nothing will tell learning from learning by heart: "
                   "--validation_split_percentage or --validation_split_names")
    return _with_temperature(found, annealing, run.total_steps)


def _with_temperature(found: Checked, annealing: Annealing, total_steps: int) -> Checked:
    highest, lowest = annealing.max_gumbel_temperature, annealing.min_gumbel_temperature
    last = gumbel_temperature(total_steps, highest, lowest, annealing.gumbel_temperature_decay)
    if last > lowest + 0.1 * (highest - lowest):
        decay = (lowest / highest) ** (1 / max(1.0, OF_BASE * total_steps))
        way = f"falls from {highest:g} to {last:.3g}, never" if last < 0.99 * highest else f"stays near {highest:g}, never"
        found.note("temperature", f"the Gumbel temperature {way} near {lowest:g}: "
                   f"--gumbel_temperature_decay {decay:.6g} reaches that after two thirds of the run, as in BASE")
    return found
