"""Sums over micro-batches become the numbers of a record: one mean over all targets, not a mean of means."""

import math

import pytest
import torch
from accelerate import Accelerator

from wavtrain.measures import Sums, perplexity, pretraining_measures


def test_perplexity_counts_the_codes_in_use():
    assert float(perplexity(torch.full((2, 8), 1 / 8))) == pytest.approx(16)
    assert float(perplexity(torch.eye(8)[:2])) == pytest.approx(2)  # a code that is never used adds nothing, and no NaN
    usage = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    assert float(perplexity(usage)) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


def test_a_code_whose_share_is_zero_makes_no_gradient_nan():
    logits = torch.tensor([[1.0, 0.0, -200.0]], requires_grad=True)  # exp(-200) is 0 in float32
    perplexity(logits.softmax(-1)).backward()
    two_codes = torch.tensor([[1.0, 0.0]], requires_grad=True)
    perplexity(two_codes.softmax(-1)).backward()
    torch.testing.assert_close(logits.grad[:, :2], two_codes.grad)
    assert float(logits.grad[0, 2]) == 0


def batch(targets, loss, codes, padding=0):
    counted = {"targets": targets, "frames": 2 * targets, "speech_samples": 100 - padding, "samples": 100}
    parts = {"loss": loss, "contrastive_loss": loss / 2, "diversity_loss": 0.0, "feature_penalty": 1.0, "correct": targets // 4}
    return {**counted, **{name: torch.tensor(value) for name, value in parts.items()}, "code_counts": torch.tensor(codes)}


def test_means_are_over_all_targets():
    sums = Sums()
    sums.add(batch(40, 80.0, [[40, 0], [20, 20]]))
    sums.add(batch(120, 840.0, [[40, 80], [60, 60]], padding=30))
    measured = pretraining_measures(sums.over_processes(Accelerator(cpu=True)))
    assert measured["loss"] == pytest.approx(920 / 160)
    assert measured["contrastive_loss"] == pytest.approx(460 / 160)
    assert measured["feature_penalty"] == pytest.approx(2 / 160)
    assert measured["contrastive_accuracy"] == pytest.approx(40 / 160)
    assert measured["code_perplexity"] == pytest.approx(2 + 2)  # shares of a half each, in both groups
    assert measured["masked_fraction"] == pytest.approx(0.5)
    assert measured["padding_fraction"] == pytest.approx(0.15)


def test_what_has_weight_zero_does_not_count():
    counted, filled = Sums(), Sums()
    for sums in (counted, filled):
        sums.add(batch(40, 80.0, [[40, 0], [20, 20]]))
    filled.add(batch(99, 7.0, [[1, 98], [9, 90]]), weight=0.0)
    accelerator = Accelerator(cpu=True)
    assert pretraining_measures(filled.over_processes(accelerator)) == pretraining_measures(counted.over_processes(accelerator))


def test_a_process_with_nothing_but_fillers_still_has_every_name():
    sums = Sums()
    sums.add(batch(40, 80.0, [[40, 0], [20, 20]]), weight=0.0)
    totals = sums.over_processes(Accelerator(cpu=True))
    assert totals["code_counts"].shape == (2, 2)
    assert not any(value.any() for value in totals.values())


def test_sums_keep_small_numbers_beside_large_ones():
    sums = Sums()
    sums.add({"samples": 2.0**40})
    for _ in range(1000):
        sums.add({"samples": torch.tensor(0.25)})
    assert float(sums.over_processes(Accelerator(cpu=True))["samples"]) == 2.0**40 + 250


def test_nothing_masked_is_no_division_by_zero():
    sums = Sums()
    sums.add(batch(0, 0.0, [[0, 0], [0, 0]]) | {"frames": 10})
    assert pretraining_measures(sums.over_processes(Accelerator(cpu=True)))["loss"] == 0
