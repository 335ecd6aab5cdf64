"""Joined windows are the whole recording, frame by frame."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain import InputError
from wavtrain.recognition.windows import joined, window_plan

CONVOLUTIONS = ((10, 5), (3, 2), (2, 2))  # kernel, stride: 20 samples a frame, which looks at 30
STRIDE, FIELD = 20, 30


def frames_of(num_samples):
    for kernel, stride in CONVOLUTIONS:
        num_samples = np.maximum((num_samples - kernel) // stride + 1, 0)
    return num_samples


def model(samples):
    """(frames, 2): which samples of the recording a frame has seen, the first and the last."""
    firsts = lasts = samples
    for kernel, stride in CONVOLUTIONS:
        places = np.arange((len(firsts) - kernel) // stride + 1 if len(firsts) >= kernel else 0) * stride
        firsts, lasts = firsts[places], lasts[places + kernel - 1]
    return np.stack([firsts, lasts], axis=1)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5000), st.integers(80, 700), st.data())
def test_the_join_is_the_whole(num_samples, window, data):
    overlap = data.draw(st.integers(FIELD, window - STRIDE))
    recording = np.arange(num_samples)
    plan = window_plan(num_samples, window, overlap, STRIDE, frames_of)
    whole = joined([model(recording[each.start : each.end]) for each in plan], plan)
    assert np.array_equal(whole, model(recording))
    assert len(whole) == frames_of(num_samples)
    assert all(each.end - each.start <= window and each.start % STRIDE == 0 for each in plan)
    assert all(each.end - each.start > window - STRIDE for each in plan) or len(plan) == 1


def test_no_frame_comes_from_the_edge_of_a_window():
    plan = window_plan(10_000, 1000, 400, STRIDE, frames_of)
    for each, following in pairwise(plan):
        assert each.start + 1000 - each.end_frame * STRIDE >= 180  # half of the overlap, to a frame
        assert following.first_frame * STRIDE - following.start >= 180


def test_what_cannot_be_planned():
    assert window_plan(900, 1000, 400, STRIDE, frames_of) == [(0, 900, 0, 0, 44)]
    with pytest.raises(InputError, match=r"--window_overlap_in_seconds: .* smaller overlap"):
        window_plan(5000, 1000, 990, STRIDE, frames_of)
    with pytest.raises(InputError, match=r"--window_overlap_in_seconds: .* larger overlap"):
        window_plan(5000, 1000, 0, STRIDE, frames_of)
