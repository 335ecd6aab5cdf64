"""The plan of an epoch: every clip once, little padding, nothing over the budget, and equal on any number of processes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain.batching import BatchBudget, plan_epoch, plan_in_order, planned_lengths, updates_of

RATE = 16_000
SAMPLES = BatchBudget(max_samples=1_400_000)
CLIPS = BatchBudget(max_clips=8)


def like_librispeech(num_clips):
    generator = np.random.default_rng(1)
    full = generator.normal(14.3, 1.2, num_clips)
    seconds = np.where(generator.random(num_clips) < 0.75, full, generator.uniform(2, 14, num_clips))
    return (np.clip(seconds, 2, 17) * RATE).astype(np.int64)


def like_common_voice(num_clips):
    seconds = np.random.default_rng(2).lognormal(np.log(5.6) - 0.45**2 / 2, 0.45, num_clips)
    return (np.clip(seconds, 0.8, 40) * RATE).astype(np.int64)


def batches_of(plan):
    return [plan.clips_of(batch) for batch in range(plan.num_batches)]


def padded_sizes(plan, num_samples, budget):
    """Samples of each batch with its padding."""
    lengths = planned_lengths(num_samples, budget).astype(np.int64)[plan.order]
    return np.diff(plan.starts) * np.maximum.reduceat(lengths, plan.starts[:-1])


def same(one, other):
    return np.array_equal(one.order, other.order) and np.array_equal(one.starts, other.starts)


@st.composite
def budgets(draw):
    max_clips = draw(st.none() | st.integers(1, 50))
    max_samples = draw(st.integers(1_000, 200_000) if max_clips is None else st.none() | st.integers(1_000, 200_000))
    return BatchBudget(max_clips, max_samples, draw(st.none() | st.integers(400, 50_000)))


lengths_of_corpora = st.lists(st.integers(1, 60_000), max_size=300) | st.integers(1, 3_000).map(like_common_voice)


@settings(max_examples=150, deadline=None)
@given(lengths_of_corpora, st.integers(0, 5), st.integers(0, 5), budgets(), st.booleans())
def test_every_clip_once_within_the_budget(num_samples, seed, epoch, budget, in_order):
    num_samples = np.array(num_samples, dtype=np.int64)
    plan = plan_in_order(num_samples, budget) if in_order else plan_epoch(num_samples, seed, epoch, budget)
    assert plan.starts[0] == 0
    assert plan.starts[-1] == len(plan.order)
    assert (np.diff(plan.starts) > 0).all()
    assert np.array_equal(np.sort(plan.order), np.arange(len(num_samples)))
    if len(num_samples) and budget.max_samples:
        assert padded_sizes(plan, num_samples, budget).max() <= budget.max_samples
    if budget.max_clips:
        assert np.diff(plan.starts).max(initial=0) <= budget.max_clips


@pytest.mark.parametrize("num_clips", [1, 8, 511, 512, 513, 10_000, 10_001])
def test_a_fixed_number_of_clips_leaves_one_remainder_in_an_epoch(num_clips):
    sizes = np.diff(plan_epoch(like_common_voice(num_clips), 0, 0, CLIPS).starts)
    assert sorted(sizes.tolist()) == sorted([8] * (num_clips // 8) + [num_clips % 8] * (num_clips % 8 > 0))


def test_lengths_are_those_after_cropping():
    num_samples = np.array([10, 20, 30, 40])
    assert planned_lengths(num_samples, BatchBudget(2)).tolist() == [10, 20, 30, 40]
    assert planned_lengths(num_samples, BatchBudget(2, longest=25)).tolist() == [10, 20, 25, 25]
    assert planned_lengths(num_samples, BatchBudget(max_samples=30, longest=35)).tolist() == [10, 20, 30, 30]
    assert plan_in_order(num_samples, BatchBudget(max_samples=30)).num_batches == 4
    assert plan_in_order(num_samples, BatchBudget(max_samples=80, longest=20)).num_batches == 1
    assert plan_in_order(num_samples, BatchBudget(3, max_samples=10_000_000_000)).num_batches == 2


@pytest.mark.parametrize("budget", [SAMPLES, CLIPS, BatchBudget(12, 1_400_000, 10 * RATE)], ids=str)
@pytest.mark.parametrize("corpus", [like_librispeech, like_common_voice])
def test_little_is_padding(corpus, budget):
    num_samples = corpus(30_000)
    plan = plan_epoch(num_samples, 0, 0, budget)
    padding = 1 - planned_lengths(num_samples, budget).sum() / padded_sizes(plan, num_samples, budget).sum()
    assert 0.005 < padding < 0.04, "less than half a percent would be a sorted epoch"
    if budget is SAMPLES:
        assert padded_sizes(plan, num_samples, budget).mean() > 0.89 * budget.max_samples


def test_batches_of_equally_long_clips_are_full():
    """As the pieces of long recordings are: the room for like lengths must not cost them a place."""
    num_samples = np.concatenate([np.full(640, 10 * RATE), np.full(4, 25 * RATE)])
    plan = plan_epoch(num_samples, 0, 0, BatchBudget(max_samples=100 * RATE))
    assert sorted(np.diff(plan.starts).tolist()) == [4] + 64 * [10]


def test_a_plan_is_a_function_of_its_arguments():
    num_samples = like_common_voice(5_000)
    plan = plan_epoch(num_samples, 3, 4, SAMPLES)
    np.random.default_rng().random(3)
    assert same(plan, plan_epoch(num_samples.astype(np.int32), 3, 4, SAMPLES))
    for seed, epoch in ((4, 3), (3, 5), (2, 4)):
        assert not same(plan, plan_epoch(num_samples, seed, epoch, SAMPLES))
    assert plan.order.dtype == plan.starts.dtype == np.int32


def test_a_plan_of_long_ago_is_still_the_plan():
    """A run that resumes with a newer version must go on in the same epoch: change these numbers only knowingly."""
    plan = plan_epoch(np.arange(1_000, 13_000, 1_000), 1, 2, BatchBudget(max_samples=20_000))
    assert [clips.tolist() for clips in batches_of(plan)] == [[10], [7, 6], [5, 4, 3], [2, 1, 0], [9, 8], [11]]


@pytest.mark.parametrize("budget", [SAMPLES, CLIPS], ids=str)
@pytest.mark.parametrize(("num_clips", "most"), [(1_000, 0.5), (20_000, 0.03)])
def test_batch_mates_vary_between_epochs(budget, num_clips, most):
    num_samples = like_common_voice(num_clips)
    batch_of = np.empty(num_clips, dtype=int)
    first = plan_epoch(num_samples, 0, 0, budget)
    batch_of[first.order] = np.repeat(np.arange(first.num_batches), np.diff(first.starts))
    before = [batch_of[clips] for clips in batches_of(plan_epoch(num_samples, 0, 1, budget))]
    again = sum((batches[:, None] == batches).sum() - len(batches) for batches in before)
    assert again / sum(len(batches) * (len(batches) - 1) for batches in before) < most


def test_batches_come_in_random_order():
    num_samples = like_common_voice(20_000)
    plan = plan_epoch(num_samples, 0, 0, SAMPLES)
    longest = num_samples[plan.order[plan.starts[:-1]]].astype(float)
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.1


def test_validation_goes_by_length_and_is_always_the_same():
    num_samples = like_common_voice(1_000)
    plan = plan_in_order(num_samples, SAMPLES)
    assert (np.diff(num_samples[plan.order]) <= 0).all()
    would_be = (np.diff(plan.starts)[:-1] + 1) * num_samples[plan.order[plan.starts[:-2]]]
    assert plan.num_batches > 50
    assert (would_be > SAMPLES.max_samples).all(), "a batch is full"


def shares(plan, per_update, num_processes, first_update=0):
    """Per update, the processes' lists of micro-batches."""
    every = [updates_of(plan, per_update, process, num_processes, first_update) for process in range(num_processes)]
    return list(zip(*every, strict=True))


def numbered(update):
    """number -> clips of the micro-batches that count."""
    found = [(micro.number, micro.clips.tolist()) for process in update for micro in process if micro.counts]
    assert len({number for number, _ in found}) == len(found)
    return dict(found)


@pytest.mark.parametrize("num_clips", [1_003, 1_024, 3])
@pytest.mark.parametrize(("per_update", "num_processes"), [(1, 1), (2, 2), (4, 2), (4, 4), (12, 3), (12, 4), (256, 8)])
def test_an_update_is_the_same_on_any_number_of_processes(num_clips, per_update, num_processes):
    plan = plan_epoch(like_common_voice(num_clips), 0, 0, CLIPS)
    alone, together = shares(plan, per_update, 1), shares(plan, per_update, num_processes)
    assert [numbered(update) for update in together] == [numbered(update) for update in alone]
    batches = [clips for update in alone for _, clips in sorted(numbered(update).items())]
    assert batches == [clips.tolist() for clips in batches_of(plan)]
    assert len(together) == plan.num_updates(per_update) == -(-plan.num_batches // per_update)
    for update in together:
        rounds = {len(process) for process in update}
        assert rounds == {-(-len(numbered(update)) // num_processes)}, "equally many, and no more than needed"
        assert all(micro.counts for process in update for micro in process[:-1])


def test_the_last_update_is_filled_with_repetitions_that_do_not_count():
    plan = plan_in_order(np.full(6, 10), BatchBudget(max_clips=1))
    *_, last = shares(plan, 4, 4)
    assert [[(micro.number, micro.clips.tolist(), micro.counts) for micro in process] for process in last] == [
        [(0, [4], True)], [(1, [5], True)], [(2, [4], False)], [(3, [5], False)]]


@pytest.mark.parametrize("first_update", [0, 1, 17, 31, 32, 33])
def test_resuming_is_the_tail_of_the_epoch(first_update):
    plan = plan_epoch(like_common_voice(1_003), 0, 7, CLIPS)
    whole, tail = shares(plan, 4, 2), shares(plan, 4, 2, first_update)
    assert len(whole) == 32
    assert [numbered(update) for update in tail] == [numbered(update) for update in whole[first_update:]]


def test_processes_must_divide_the_update():
    plan = plan_in_order(np.full(6, 10), CLIPS)
    with pytest.raises(AssertionError):
        next(updates_of(plan, 4, 0, 3))


def test_a_million_clips_are_planned_in_seconds():
    num_samples = like_common_voice(1_200_000)  # more than are sorted at once
    start = time.perf_counter()
    plan = plan_epoch(num_samples, 0, 0, SAMPLES)
    assert time.perf_counter() - start < 3
    assert (np.bincount(plan.order, minlength=1_200_000) == 1).all()
    assert padded_sizes(plan, num_samples, SAMPLES).max() <= SAMPLES.max_samples
