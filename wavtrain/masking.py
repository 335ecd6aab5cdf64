"""How many frames there are, which of a batch are masked, and which are each other's negatives: no loop over clips."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

FEWEST = 2  # masked frames of an utterance; a single one has nothing to be told from


Lengths = TypeVar("Lengths", int, np.ndarray, Tensor)


def frames_after(num_samples: Lengths, convolutions: Iterable[tuple[int, int]]) -> Lengths:
    """How many frames layers of (kernel, stride) make of so many samples."""
    for kernel, stride in convolutions:
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def first_of(counts: Tensor, width: int) -> Tensor:
    """(batch, width): whether a column is among the first `counts` of its row."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def span_mask(
    num_frames: np.ndarray,
    probability: float,
    length: int,
    min_spans: int,
    generator: np.random.Generator,
    same_number: bool = False,
) -> np.ndarray:
    """Masked frames (batch, frames), distributed as transformers' `_compute_mask_indices`: `probability * frames / length`
    spans, rounded at random once for the batch, that start anywhere and may overlap.

    A clip shorter than `length` frames stays unmasked. `same_number`: the clips keep, at random, as many masked frames as the
    one with the fewest (fairseq's require_same_masks).
    """
    longest = int(num_frames.max())
    num_starts = np.maximum(num_frames - (length - 1), 0)
    num_spans = np.maximum((probability * num_frames / length + generator.random()).astype(np.int64), min_spans)
    num_spans = np.minimum(np.where(num_spans * length > longest, longest // length, num_spans), num_starts)
    is_start = _random_places(num_starts, num_spans, longest, generator)
    ends = np.zeros((len(num_frames), longest + length), dtype=np.int64)
    ends[:, :longest] += is_start
    ends[:, length:] -= is_start
    mask = np.cumsum(ends, axis=1)[:, :longest] > 0
    mask[mask.sum(axis=1) < FEWEST] = False
    return _trimmed(mask, generator) if same_number else mask


def _random_places(num_places: np.ndarray, num_chosen: np.ndarray, width: int, generator: np.random.Generator) -> np.ndarray:
    """(batch, width): in each row `num_chosen` of the first `num_places` columns, without repetition."""
    keys = generator.random((len(num_places), width), dtype=np.float32)
    keys[np.arange(width) >= num_places[:, None]] = 2.0  # after all others
    order = np.argsort(keys, axis=1)
    chosen = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(chosen, order, np.arange(width) < num_chosen[:, None], axis=1)
    return chosen


def _trimmed(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    counts = mask.sum(axis=1)
    fewest = counts[counts > 0].min(initial=mask.shape[1])
    keys = np.where(mask, generator.random(mask.shape, dtype=np.float32), 2.0)
    trimmed = np.zeros_like(mask)
    np.put_along_axis(trimmed, np.argsort(keys, axis=1), np.arange(mask.shape[1]) < np.minimum(counts, fewest)[:, None], axis=1)
    return trimmed


def masked_places(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the masked frames are, (batch, most of a clip), rows filled up with 0, and how many each row has."""
    counts = mask.sum(axis=1)
    most = int(counts.max(initial=0))
    places = np.argsort(~mask, axis=1, kind="stable")[:, :most]
    return np.where(np.arange(most) < counts[:, None], places, 0), counts


def same_utterance_negatives(counts: Tensor, most: int, num_negatives: int) -> Tensor:
    """(batch, most, num_negatives): for each masked frame others of its utterance, by their place among its masked frames."""
    drawn = torch.rand(len(counts), most, num_negatives, device=counts.device, dtype=torch.float64)
    others = (counts - 1).clamp(min=1)[:, None, None]
    drawn = (drawn * others).long()
    own = torch.arange(most, device=counts.device)[None, :, None]
    return (drawn + (drawn >= own)).clamp(max=max(most - 1, 0))  # the clamp is for rows that are filled up


def cross_utterance_negatives(counts: Tensor, most: int, num_negatives: int) -> Tensor:
    """The same from all masked frames of the batch, by their place in (batch, most) laid flat."""
    ends = counts.cumsum(0)
    starts = ends - counts
    own = starts[:, None, None] + torch.arange(most, device=counts.device)[None, :, None]
    drawn = torch.rand(len(counts), most, num_negatives, device=counts.device, dtype=torch.float64)
    drawn = (drawn * (ends[-1] - 1).clamp(min=1)).long()
    drawn = drawn + (drawn >= own)
    row = torch.searchsorted(ends, drawn, right=True).clamp(max=len(counts) - 1)
    return (row * most + drawn - starts[row]).clamp(max=max(len(counts) * most - 1, 0))
