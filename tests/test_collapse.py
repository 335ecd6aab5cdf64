"""The collapse guard: silent on runs that learn, plain on runs that do not."""

import math

import numpy as np
import pytest

from wavtrain.checks.collapse import Collapsed, CollapseGuard

HEALTHY = {"code_perplexity": 100.0, "contrastive_accuracy": 0.2, "gradient_norm": 1.0, "learning_rate": 1e-3}


def guard_of(logging_steps=10, total_steps=10_000, stops=False):
    return CollapseGuard(2, 80, 99, total_steps, logging_steps, stops, is_main=True)


def told(capsys, records, logging_steps=10, **options):
    """What is said of records that say so, at which steps."""
    guard = guard_of(logging_steps, **options)
    found = []
    for number, record in enumerate(records, start=1):
        guard.look({**HEALTHY, "step": number * logging_steps, **record})
        found += capsys.readouterr().err.splitlines()
    return found


def between(first, last, number, name):
    """Records whose one value goes from first to last."""
    return [{name: first + (last - first) * each / (number - 1)} for each in range(number)]


def test_a_healthy_run_is_left_alone(capsys):
    assert not told(capsys, [{}] * 50)


@pytest.mark.parametrize(("records", "expected"), [
    (between(100, 3, 20, "code_perplexity") + [{"code_perplexity": 3.0}] * 10, "collapse: of 160 codes"),
    ([{"contrastive_accuracy": 0.01}] * 42, "no better than guessing among 100 (0.0100)"),
    ([{"gradient_norm": 5.0}] * 22, "gradient norm 5, where 0.5 to 2 is healthy; too high"),
    ([{"gradient_norm": 0.2}] * 22, "gradient norm 0.2, where 0.5 to 2 is healthy; low"),
], ids=["codes", "accuracy", "high", "low"])
def test_each_finding_is_one_line_told_once(records, expected, capsys):
    (line,) = told(capsys, records)
    assert expected in line


def test_it_is_told_again_after_it_went_away(capsys):
    assert len(told(capsys, [{"gradient_norm": 5.0}] * 22 + [{}] * 22 + [{"gradient_norm": 5.0}] * 22)) == 2


def test_a_slow_beginning_that_rises_is_no_collapse(capsys):
    assert not told(capsys, between(2, 40, 30, "code_perplexity"))
    assert not told(capsys, between(0.001, 0.1, 30, "contrastive_accuracy"))


def test_nothing_is_asked_of_accuracy_and_gradients_during_the_warm_up(capsys):
    rates = between(0, 1e-3, 30, "learning_rate")
    assert not told(capsys, [{"contrastive_accuracy": 0.01, "gradient_norm": 9.0, **rate} for rate in rates])


def first_told(capsys, values, logging_steps, total_steps=10_000):
    """The step at which a run whose every record says so is told of."""
    guard, step = guard_of(logging_steps, total_steps), 0
    while not capsys.readouterr().err:
        step += logging_steps
        guard.look({**HEALTHY, "step": step, **values})
    return step


@pytest.mark.parametrize("logging_steps", [1, 7, 10, 25])
def test_it_depends_on_updates_and_not_on_records(logging_steps, capsys):
    assert 100 <= first_told(capsys, {"code_perplexity": 2.0}, logging_steps) < 100 + 2 * logging_steps
    assert 400 <= first_told(capsys, {"contrastive_accuracy": 0.01}, logging_steps) < 400 + 8 * logging_steps
    assert 4_000 <= first_told(capsys, {"code_perplexity": 2.0}, logging_steps, 400_000) < 4_000 + 2 * logging_steps


def test_four_records_are_enough(capsys):
    assert first_told(capsys, {"code_perplexity": 2.0}, 500) == 2_000


@pytest.mark.parametrize("logging_steps", [1, 10, 25, 100])
def test_a_beginning_that_is_noisy_and_hardly_better_than_chance_is_no_collapse(logging_steps, capsys):
    """The demo's first updates: accuracy 0.015, a record of 250 frames each, for 300 updates; then it rises."""
    for seed in range(20):
        right = np.random.default_rng(seed).binomial(250, 0.015 + np.linspace(0, 0.14, 1_000).clip(0.04) - 0.04) / 250
        records = [{"contrastive_accuracy": right[step - 1]} for step in range(logging_steps, 1_001, logging_steps)]
        assert not told(capsys, records, logging_steps, total_steps=1_000, stops=True)


@pytest.mark.parametrize(("steps", "logging_steps"), [(300, 1_000), (300, 200), (60, 10), (90, 50)])
def test_a_run_of_few_records_is_judged_at_its_end(steps, logging_steps, capsys):
    def said_of(value, total_steps):
        guard = guard_of(logging_steps, total_steps)
        for step in [*range(logging_steps, total_steps, logging_steps), total_steps]:
            guard.look({**HEALTHY, "step": step, "code_perplexity": value})
        return capsys.readouterr().err

    assert said_of(2.0, steps).startswith(f"step {steps} warning: collapse: of 160 codes 2.0")
    assert not said_of(90.0, steps)
    assert not said_of(2.0, 40), "a beginning"


@pytest.mark.parametrize("first", [0, 9_940])
def test_a_few_updates_in_which_codes_become_more_are_no_collapse(first, capsys):
    """Of a short run, or of a long one that is resumed shortly before its end."""
    guard = guard_of(total_steps=first + 60, stops=True)
    for step in range(10, 61, 10):
        guard.look({**HEALTHY, "step": first + step, "code_perplexity": 2 + step / 10})
    assert not capsys.readouterr().err


def test_a_last_update_of_little_speech_is_no_collapse(capsys):
    """The last of an epoch may have one short clip, whose frames cannot use many codes."""
    assert not told(capsys, [{}] * 25 + [{"code_perplexity": 6.0}], total_steps=260, stops=True)


def test_records_of_skipped_updates_are_not_looked_at(capsys):
    assert not told(capsys, [{"gradient_norm": value} for value in (math.nan, math.inf)] * 30)


@pytest.mark.parametrize(("name", "step"), [("code_perplexity", 100), ("contrastive_accuracy", 400)])
def test_a_collapse_ends_the_run_where_asked(name, step, capsys):
    with pytest.raises(Collapsed, match=f"--on_collapse stop: ended after update {step}") as error:
        told(capsys, [{name: 0.001}] * 50, stops=True)
    assert error.value.exit_code == 3
    told(capsys, [{"gradient_norm": 9.0}] * 50, stops=True)
