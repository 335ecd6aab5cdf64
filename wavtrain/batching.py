"""The epoch as a plan: which clips make which micro-batch, a pure function of (lengths, seed, epoch, budget).

Nothing here remembers anything, so to resume is to ask for the same plan and to begin at a later update. Only integers and
IEEE arithmetic decide, no logarithm that another processor rounds otherwise: all processes must come to the same plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

BATCHES_IN_A_WINDOW = 64  # sorted together: more of them means less padding, fewer means more variety
RUNG = 0.02  # clips whose lengths differ by less are in random order, so that batch mates vary between epochs
CLIPS_AT_ONCE = 2**20  # bounds the memory of sorting


@dataclass(frozen=True)
class BatchBudget:
    """What a micro-batch may hold: so many clips, and so many samples with the padding (clips x the longest of them)."""

    max_clips: int | None = None
    max_samples: int | None = None
    longest: int | None = None  # longer clips are cropped to this when they are loaded

    def __post_init__(self) -> None:
        given = [bound for bound in (self.max_clips, self.max_samples, self.longest) if bound is not None]
        assert all(bound > 0 for bound in given), self
        assert self.max_clips or self.max_samples, "one of them is needed"

    def clips_in_a_batch(self, longest: np.ndarray) -> np.ndarray:
        """How many clips fit, if the longest of them has this many samples."""
        most = np.iinfo(np.int32).max if self.max_clips is None else self.max_clips
        if self.max_samples is None:
            return np.full(len(longest), most, dtype=np.int32)
        return np.minimum(self.max_samples // longest.astype(np.int64), most).astype(np.int32)


@dataclass(frozen=True)
class EpochPlan:
    """Batch b consists of the clips order[starts[b] : starts[b + 1]]."""

    order: np.ndarray  # (clips,) int32: every clip once
    starts: np.ndarray  # (batches + 1,) int32

    @property
    def num_batches(self) -> int:
        return len(self.starts) - 1

    def clips_of(self, batch: int) -> np.ndarray:
        """The numbers of its clips, longest first (but for what differs by less than RUNG)."""
        assert 0 <= batch < self.num_batches, batch
        return self.order[self.starts[batch] : self.starts[batch + 1]]

    def num_updates(self, micro_batches_per_update: int) -> int:
        """The last one may have fewer micro-batches."""
        return ceil(self.num_batches / micro_batches_per_update)


class MicroBatch(NamedTuple):
    """One process's share of a round of an update."""

    number: int  # within the update, whatever the number of processes: with the update it seeds crops, masks and dropout
    clips: np.ndarray
    counts: bool  # False: a repetition with weight zero, so that this process takes part in the collectives


def planned_lengths(num_samples: np.ndarray, budget: BatchBudget) -> np.ndarray:
    """Samples of each clip as it will be loaded: long clips are cropped to the budget."""
    largest = min(budget.longest or np.iinfo(np.int32).max, budget.max_samples or np.iinfo(np.int32).max)
    lengths = np.minimum(num_samples, largest).astype(np.int32)
    assert lengths.size == 0 or lengths.min() > 0, "a clip without samples"
    return lengths


def plan_epoch(num_samples: np.ndarray, seed: int, epoch: int, budget: BatchBudget) -> EpochPlan:
    """Every clip once, in batches of like lengths (drawn from a random window of the epoch), the batches in random order."""
    if len(num_samples) == 0:
        return _no_clips()
    generator = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    lengths = planned_lengths(num_samples, budget)
    window = _window(lengths, budget)
    ladder = _ladder(int(lengths.min()), int(lengths.max()), generator.random())
    rungs = (len(ladder) - 1 - np.searchsorted(ladder[::-1], lengths)).astype(np.uint16)
    tops = np.ones_like(ladder)
    np.maximum.at(tops, rungs, lengths)  # the longest clip there is: where all clips are equally long, batches become full
    fitting = budget.clips_in_a_batch(tops)
    order = np.arange(len(lengths), dtype=np.int32)
    del lengths
    generator.shuffle(order)
    starts = []
    step = max(1, CLIPS_AT_ONCE // window) * window
    for first in range(0, len(order), step):
        some = order[first : first + step]
        whole = len(some) - len(some) % window
        for windows, offset in ((some[:whole].reshape(-1, window), first), (some[None, whole:], first + whole)):
            if windows.size:
                windows[:] = np.take_along_axis(windows, np.argsort(rungs[windows], axis=1, kind="stable"), axis=1)
                starts.append(_starts(fitting[rungs[windows]]) + offset)
    starts = np.concatenate(starts).astype(np.int32)
    starts.sort()
    return _shuffled(order, starts, generator)


def plan_in_order(num_samples: np.ndarray, budget: BatchBudget) -> EpochPlan:
    """For validation: the longest first, so that memory that does not suffice shows at once; nothing random."""
    if len(num_samples) == 0:
        return _no_clips()
    lengths = planned_lengths(num_samples, budget)
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    starts = _starts(budget.clips_in_a_batch(lengths[order])[None])
    return EpochPlan(order, np.append(starts, len(order)).astype(np.int32))


def updates_of(
    plan: EpochPlan, micro_batches_per_update: int, process_index: int, num_processes: int, first_update: int = 0
) -> Iterator[list[MicroBatch]]:
    """This process's micro-batches of one update after the other; in each, every process has equally many.

    Update u consists of the batches [u * N, (u + 1) * N), the last one of what is left; number m goes to process
    m % num_processes.
    """
    assert micro_batches_per_update % num_processes == 0, (micro_batches_per_update, num_processes)
    for update in range(first_update, plan.num_updates(micro_batches_per_update)):
        first = update * micro_batches_per_update
        num_here = min(micro_batches_per_update, plan.num_batches - first)
        numbers = range(process_index, ceil(num_here / num_processes) * num_processes, num_processes)
        yield [MicroBatch(number, plan.clips_of(first + number % num_here), number < num_here) for number in numbers]


def _no_clips() -> EpochPlan:
    return EpochPlan(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int32))


def _window(lengths: np.ndarray, budget: BatchBudget) -> int:
    """Clips to sort together: equal windows, of whole batches where the number of clips is fixed, so nothing is left over."""
    total = int(lengths.sum(dtype=np.int64))
    in_a_batch = max(1, budget.max_samples * len(lengths) // total) if budget.max_samples else budget.max_clips
    in_a_batch = min(in_a_batch, budget.max_clips or in_a_batch)
    unit = budget.max_clips or 1
    num_windows = max(1, round(len(lengths) / (BATCHES_IN_A_WINDOW * in_a_batch)))
    return ceil(ceil(len(lengths) / unit) / num_windows) * unit


def _ladder(shortest: int, longest: int, phase: float) -> np.ndarray:
    """Lengths from the longest down in steps of RUNG; a clip counts as the next one above. The phase is new every epoch."""
    ladder = [longest]
    step = RUNG * phase
    while int(ladder[-1] * (1 - step)) >= shortest:
        ladder.append(min(int(ladder[-1] * (1 - step)), ladder[-1] - 1))
        step = RUNG
    return np.array(ladder, dtype=np.int32)


def _starts(fitting: np.ndarray) -> np.ndarray:
    """(windows, clips) how many clips fit if this one is the first and longest -> where the batches start, unsorted.

    Greedy: as many as fit, again and again. All windows advance at once, so it takes as many rounds as a window has batches.
    """
    num_windows, length = fitting.shape
    rows = np.arange(num_windows)
    columns = np.zeros(num_windows, dtype=np.int64)
    found = []
    while len(rows):
        found.append(rows * length + columns)
        columns = columns + fitting[rows, columns]
        inside = columns < length
        rows, columns = rows[inside], columns[inside]
    return np.concatenate(found)


def _shuffled(order: np.ndarray, starts: np.ndarray, generator: np.random.Generator) -> EpochPlan:
    """The same batches in random order."""
    sizes = np.diff(starts, append=np.int32(len(order)))
    batches = generator.permutation(len(starts))
    sizes, starts = sizes[batches], starts[batches]
    new_starts = np.zeros(len(starts) + 1, dtype=np.int32)
    np.cumsum(sizes, out=new_starts[1:])
    source = np.repeat(starts - new_starts[:-1], sizes)
    source += np.arange(len(order), dtype=np.int32)
    return EpochPlan(order[source], new_starts)
