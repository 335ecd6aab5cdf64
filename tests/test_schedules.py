"""Schedules against the values of transformers and of fairseq's formulas."""

import math

import pytest
import torch
from transformers import get_scheduler

from wavtrain import InputError
from wavtrain.schedules import SCHEDULES, Schedule, gumbel_temperature, learning_rate_factor, refuse_endless_warmup

TOTAL = 100


def factors(steps=range(1, TOTAL + 1), total=TOTAL, **fields):
    return [learning_rate_factor(step, total, Schedule(**fields)) for step in steps]


def theirs(name, num_warmup_steps, **specific):
    """transformers' factors of the updates 0, 1, ... TOTAL."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps, TOTAL, scheduler_specific_kwargs=specific or None)
    values = []
    for _ in range(TOTAL + 1):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize("num_warmup_steps", [0, 1, 10])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "tri_stage"])
def test_the_values_are_those_of_transformers_without_the_wasted_update(name, num_warmup_steps):
    num_warmup_steps *= name != "constant"
    ours, other = factors(lr_scheduler_type=name, num_warmup_steps=num_warmup_steps), theirs(name, num_warmup_steps)
    assert ours[:num_warmup_steps] == pytest.approx(other[1 : num_warmup_steps + 1], rel=1e-12)
    close = 1.1e-7 if name == "polynomial" else 1e-12  # theirs ends at 1e-7
    assert ours[num_warmup_steps:] == pytest.approx(other[num_warmup_steps:-1], abs=close)
    assert all(0 < factor <= 1 for factor in ours), "no update is wasted"


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_the_power_of_a_polynomial(power):
    ours = factors(lr_scheduler_type="polynomial", polynomial_power=power, num_warmup_steps=20)
    assert ours[20:] == pytest.approx(theirs("polynomial", 20, power=power, lr_end=1e-12)[20:-1], abs=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_the_rate_stays_at_zero_after_the_end(name):
    assert factors([TOTAL + 1, TOTAL + 2, 10 * TOTAL], lr_scheduler_type=name, num_warmup_steps=10) == pytest.approx([0] * 3)
    assert factors([1, 10, 11, 12], 10, lr_scheduler_type=name, num_warmup_steps=10) == pytest.approx([0.1, 1, 1, 0])


def test_tri_stage_at_its_corners():
    steps = [1, 6, 11, 31, 50, 51, 76, 101, 102, 500]
    half = math.sqrt(0.05)
    expected = [0.01, 0.505, 1, 1, 1, 1, half, 0.05, 0.05, 0.05]
    assert factors(steps, lr_scheduler_type="tri_stage") == pytest.approx(expected, rel=1e-12)


def test_tri_stage_with_other_ratios_and_scales():
    fields = {"lr_scheduler_type": "tri_stage", "lr_init_scale": 0.5, "lr_final_scale": 0.25}
    halves = factors([1, 50, 51, 100], tri_stage_ratios=[0.0, 0.5, 0.5], **fields)
    assert halves == pytest.approx([1, 1, 1, 0.25 ** (49 / 50)])
    no_hold = factors([1, 26, 51, 76, 101], tri_stage_ratios=[0.5, 0, 0.5], **fields)
    assert no_hold == pytest.approx([0.5, 0.75, 1, 0.5, 0.25])
    no_decay = factors([1, 51, 100, 101], tri_stage_ratios=[0.5, 0.5, 0], **fields)
    assert no_decay == pytest.approx([0.5, 1, 1, 0.25])


@pytest.mark.parametrize(("fields", "flag"), [
    ({"lr_scheduler_type": "cosinus"}, "--lr_scheduler_type cosinus"),
    ({"num_warmup_steps": -1}, "--num_warmup_steps -1"),
    ({"lr_scheduler_type": "tri_stage", "num_warmup_steps": 5}, "--num_warmup_steps 5"),
    ({"lr_scheduler_type": "constant", "num_warmup_steps": 5}, "--num_warmup_steps 5"),
    ({"tri_stage_ratios": (0.1, 0.4, 0.4)}, "--tri_stage_ratios 0.1 0.4 0.4"),
    ({"tri_stage_ratios": (0.5, 0.5)}, "--tri_stage_ratios 0.5 0.5"),
    ({"tri_stage_ratios": (-0.5, 1.0, 0.5)}, "--tri_stage_ratios -0.5 1 0.5"),
    ({"lr_init_scale": -0.1}, "--lr_init_scale -0.1"),
    ({"lr_final_scale": 0.0}, "--lr_final_scale 0"),
    ({"lr_final_scale": math.nan}, "--lr_final_scale nan"),
    ({"polynomial_power": 0.0}, "--polynomial_power 0"),
])
def test_flags_that_make_no_schedule_are_refused(fields, flag):
    with pytest.raises(InputError, match=f"^{flag}: ") as caught:
        Schedule(**fields)
    assert "\n" not in str(caught.value)


def test_the_gumbel_temperature_falls_by_a_factor_and_stops():
    values = [gumbel_temperature(step, 2.0, 0.5, 0.5) for step in range(1, 6)]
    assert values == [2.0, 1.0, 0.5, 0.5, 0.5]
    assert gumbel_temperature(100_001, 2.0, 0.5, 0.999995) == pytest.approx(2 * math.exp(-0.5), rel=1e-5)


def test_a_warmup_longer_than_the_run_is_refused():
    refuse_endless_warmup(10, 10)
    with pytest.raises(InputError, match="--num_warmup_steps 11: is longer than the run of 10 updates"):
        refuse_endless_warmup(11, 10)
    Schedule(num_warmup_steps=10, max_train_steps=10)
    with pytest.raises(InputError, match="--num_warmup_steps 11: is longer than the run of 10 updates"):  # before any speech
        Schedule(num_warmup_steps=11, max_train_steps=10)
