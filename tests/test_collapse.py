"""The collapse guard: silent on runs that learn, plain on runs that do not."""

import math

import pytest

from wavtrain.checks.collapse import Collapsed, CollapseGuard

HEALTHY = {"code_perplexity": 100.0, "contrastive_accuracy": 0.2, "gradient_norm": 1.0, "learning_rate": 1e-3}


def told(capsys, records, logging_steps=10, stops=False):
    """What is said of records that say so, at which steps."""
    guard = CollapseGuard(num_groups=2, codes_per_group=80, num_negatives=99, stops=stops, is_main=True)
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
    ([{"contrastive_accuracy": 0.01}] * 12, "no better than guessing among 100 (0.0100)"),
    ([{"gradient_norm": 5.0}] * 12, "gradient norm 5, where 0.5 to 2 is healthy; too high"),
    ([{"gradient_norm": 0.2}] * 12, "gradient norm 0.2, where 0.5 to 2 is healthy; low"),
], ids=["codes", "accuracy", "high", "low"])
def test_each_finding_is_one_line_told_once(records, expected, capsys):
    (line,) = told(capsys, records)
    assert expected in line


def test_it_is_told_again_after_it_went_away(capsys):
    assert len(told(capsys, [{"gradient_norm": 5.0}] * 12 + [{}] * 12 + [{"gradient_norm": 5.0}] * 12)) == 2


def test_a_slow_beginning_that_rises_is_no_collapse(capsys):
    assert not told(capsys, between(2, 40, 30, "code_perplexity"))
    assert not told(capsys, between(0.001, 0.1, 30, "contrastive_accuracy"))


def test_nothing_is_asked_of_accuracy_and_gradients_during_the_warm_up(capsys):
    rates = between(0, 1e-3, 30, "learning_rate")
    assert not told(capsys, [{"contrastive_accuracy": 0.01, "gradient_norm": 9.0, **rate} for rate in rates])


@pytest.mark.parametrize("logging_steps", [1, 7, 500])
def test_it_waits_for_two_windows_of_records_and_updates(logging_steps, capsys):
    guard = CollapseGuard(num_groups=2, codes_per_group=80, num_negatives=99, stops=False, is_main=True)
    step = 0
    while not capsys.readouterr().err:
        step += logging_steps
        guard.look({**HEALTHY, "step": step, "code_perplexity": 2.0})
    assert step >= max(10 * logging_steps, 100)
    assert step <= max(11 * logging_steps, 120)


def test_records_of_skipped_updates_are_not_looked_at(capsys):
    assert not told(capsys, [{"gradient_norm": value} for value in (math.nan, math.inf)] * 30)


@pytest.mark.parametrize("name", ["code_perplexity", "contrastive_accuracy"])
def test_a_collapse_ends_the_run_where_asked(name, capsys):
    with pytest.raises(Collapsed, match="--on_collapse stop: ended after update 100") as error:
        told(capsys, [{name: 0.001}] * 20, stops=True)
    assert error.value.exit_code == 3
    told(capsys, [{"gradient_norm": 9.0}] * 20, stops=True)
