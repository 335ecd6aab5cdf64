"""Learning rate and Gumbel temperature as pure functions of the step, so there is no scheduler to save or to resume.

Steps are optimizer updates, numbered from 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wavtrain import InputError

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "tri_stage")
WITHOUT_WARMUP = {
    "constant": "constant has no warm-up: leave the flag out, or take --lr_scheduler_type constant_with_warmup",
    "tri_stage": "tri_stage warms up during the first of --tri_stage_ratios: leave the flag out",
}


@dataclass(frozen=True)
class Schedule:
    """The shape of the learning rate over a run; the fields are the flags of the same names."""

    lr_scheduler_type: str = "linear"
    num_warmup_steps: int = 0
    tri_stage_ratios: Sequence[float] = (0.1, 0.4, 0.5)  # warm-up, hold, decay
    lr_init_scale: float = 0.01  # tri_stage alone, as is the next one
    lr_final_scale: float = 0.05
    polynomial_power: float = 1.0
    max_train_steps: int | None = None

    def __post_init__(self) -> None:
        if self.lr_scheduler_type not in SCHEDULES:
            raise InputError(f"--lr_scheduler_type {self.lr_scheduler_type}: is none of {', '.join(SCHEDULES)}")
        if self.num_warmup_steps < 0:
            raise InputError(f"--num_warmup_steps {self.num_warmup_steps}: cannot be negative; 0 is no warm-up")
        if self.num_warmup_steps and self.lr_scheduler_type in WITHOUT_WARMUP:
            raise InputError(f"--num_warmup_steps {self.num_warmup_steps}: {WITHOUT_WARMUP[self.lr_scheduler_type]}")
        ratios = self.tri_stage_ratios
        if len(ratios) != 3 or not all(ratio >= 0 for ratio in ratios) or not math.isclose(sum(ratios), 1.0, abs_tol=1e-6):
            given = " ".join(f"{ratio:g}" for ratio in ratios)
            raise InputError(f"--tri_stage_ratios {given}: give three parts of the run that sum to 1, as 0.1 0.4 0.5")
        if not 0 <= self.lr_init_scale <= 1:
            raise InputError(f"--lr_init_scale {self.lr_init_scale:g}: give a fraction of the learning rate, from 0 to 1")
        if not 0 < self.lr_final_scale <= 1:
            raise InputError(f"--lr_final_scale {self.lr_final_scale:g}: give a fraction of the learning rate, above 0 and "
                             "at most 1; an exponential never reaches 0")
        if not 0 < self.polynomial_power < math.inf:
            raise InputError(f"--polynomial_power {self.polynomial_power:g}: give a number above 0; 1 is a straight line")
        if self.max_train_steps:  # otherwise only the speech says how long the run is
            refuse_endless_warmup(self.num_warmup_steps, self.max_train_steps)


def refuse_endless_warmup(num_warmup_steps: int, total_steps: int) -> None:
    """A warm-up longer than its run, whose learning rate would never reach its height."""
    if num_warmup_steps > total_steps:
        raise InputError(f"--num_warmup_steps {num_warmup_steps}: is longer than the run of {total_steps} updates: give a "
                         "smaller one, or more of --max_train_steps or --num_train_epochs")


def learning_rate_factor(step: int, total_steps: int, schedule: Schedule) -> float:
    """The learning rate of a step as a fraction of the highest one.

    The values of transformers.get_scheduler at its step - 1, with three differences. In the warm-up ours are those at `step`:
    theirs begin with an update of rate 0. A polynomial ends at 0 as in fairseq (theirs at the absolute rate 1e-7). After the
    last step the end value stays (their cosine rises again). cosine_with_restarts has their default of one cycle.
    """
    assert step >= 1, "steps are numbered from 1"
    if schedule.lr_scheduler_type == "tri_stage":
        return _tri_stage(step - 1, total_steps, schedule)
    if step <= schedule.num_warmup_steps:
        return step / schedule.num_warmup_steps
    if schedule.lr_scheduler_type in ("constant", "constant_with_warmup"):
        return 1.0
    progress = min(1.0, (step - 1 - schedule.num_warmup_steps) / max(1, total_steps - schedule.num_warmup_steps))
    if schedule.lr_scheduler_type in ("cosine", "cosine_with_restarts"):
        return 0.5 * (1 + math.cos(math.pi * progress))
    return (1 - progress) ** (schedule.polynomial_power if schedule.lr_scheduler_type == "polynomial" else 1.0)


def _tri_stage(update: int, total_steps: int, schedule: Schedule) -> float:
    """fairseq's, whose updates count from 0: straight up, hold, then exponentially down (its code; the paper says linearly)."""
    warmup, hold, decay = (int(total_steps * ratio) for ratio in schedule.tri_stage_ratios)
    if update < warmup:
        return schedule.lr_init_scale + (1 - schedule.lr_init_scale) * update / warmup
    if update < warmup + hold:
        return 1.0
    decayed = (update - warmup - hold) / decay if decay else 1.0
    return schedule.lr_final_scale ** min(1.0, decayed)


def gumbel_temperature(step: int, maximum: float, minimum: float, decay: float) -> float:
    """Falls by a constant factor per step: codes are drawn freely at first and nearly by their logits alone later."""
    return max(maximum * decay ** (step - 1), minimum)
