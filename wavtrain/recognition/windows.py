"""Long recordings in overlapping windows, whose frames are joined before anything is decoded: no word is lost or doubled.

Windows begin at multiples of the model's total stride, so that their frames are frames of the recording. Where two windows
overlap, the first half of the frames they share comes from the earlier one: a frame is never taken from the edge of a window.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from wavtrain import InputError


class Window(NamedTuple):
    """A piece of a recording, and which frames of the recording are taken from it."""

    start: int  # sample
    end: int
    offset: int  # which frame of the recording is the first of the window
    first_frame: int  # of the recording, not of the window
    end_frame: int


def window_plan(
    num_samples: int, window: int, overlap: int, stride_samples: int, frames_of: Callable[[np.ndarray], np.ndarray]
) -> list[Window]:
    """Windows of at most so many samples which share at least `overlap` of them, the last as long as the others."""
    step = (window - overlap) // stride_samples * stride_samples
    if step <= 0:
        raise InputError(f"--window_overlap_in_seconds: windows of {window} samples that share {overlap} would not advance by "
                         f"one frame ({stride_samples} samples): give a smaller overlap or larger windows")
    last = -(-max(num_samples - window, 0) // stride_samples) * stride_samples
    starts = [*range(0, last, step), last]
    ends = [*(start + window for start in starts[:-1]), num_samples]
    offsets = [start // stride_samples for start in starts]
    lengths = np.subtract(ends, starts)
    behind = np.add(offsets, np.maximum(frames_of(lengths), 0)).tolist()  # the frame after the window's last
    if any(before < offset for before, offset in zip(behind, offsets[1:], strict=False)):
        raise InputError(f"--window_overlap_in_seconds: windows of {window} samples that share {overlap} leave frames out "
                         "between them: give a larger overlap")
    middles = [(offset + before) // 2 for before, offset in zip(behind, offsets[1:], strict=False)]
    edges = pairwise([0, *middles, behind[-1]])
    return [Window(*each, *kept) for each, kept in zip(zip(starts, ends, offsets, strict=True), edges, strict=True)]


def joined(frames: Sequence[np.ndarray], plan: Sequence[Window]) -> np.ndarray:
    """What the model made of each window, (frames, tokens), as that of the whole recording."""
    return np.concatenate([each[window.first_frame - window.offset : window.end_frame - window.offset]
                           for each, window in zip(frames, plan, strict=True)])
