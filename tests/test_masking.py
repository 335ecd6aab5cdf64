"""Masks are distributed as transformers', negatives are drawn uniformly from where they may come."""

import numpy as np
import pytest
import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from wavtrain.masking import cross_utterance_negatives, masked_places, same_utterance_negatives, span_mask

DRAWS = 1200
UNLIKELY = 4.5  # standard deviations; thousands of comparisons with fixed seeds stay below


def drawn(lengths, probability, length, min_spans, same_number=False, draws=DRAWS, seed=0):
    """(draws, batch, frames)."""
    settings = (np.array(lengths), probability, length, min_spans, np.random.default_rng(seed), same_number)
    return np.stack([span_mask(*settings) for _ in range(draws)])


def drawn_by_transformers(lengths, probability, length, min_spans):
    np.random.seed(1)
    shape, attention = (len(lengths), max(lengths)), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return np.stack([_compute_mask_indices(shape, probability, length, attention, min_spans) for _ in range(DRAWS)])


@pytest.mark.parametrize("lengths", [(120, 120, 120), (150, 90, 40, 17)], ids=["even", "padded"])
@pytest.mark.parametrize("settings", [(0.65, 10, 2), (0.05, 10, 2), (0.3, 4, 0), (0.9, 16, 5)], ids=str)
def test_masks_are_distributed_as_those_of_transformers(lengths, settings):
    ours, theirs = drawn(lengths, *settings), drawn_by_transformers(lengths, *settings)
    both = (ours.mean(0) + theirs.mean(0)) / 2
    error = np.sqrt(2 * both * (1 - both) / DRAWS)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= UNLIKELY * error + 1e-12).all()  # of every frame of every row
    for row in range(len(lengths)):
        counts, their_counts = np.sort(ours[:, row].sum(-1)), np.sort(theirs[:, row].sum(-1))
        values = np.union1d(counts, their_counts)
        shares, their_shares = (np.searchsorted(each, values, "right") / DRAWS for each in (counts, their_counts))
        assert np.abs(shares - their_shares).max() < 1.95 * np.sqrt(2 / DRAWS)  # Kolmogorov and Smirnov's test at 0.001
        assert not ours[:, row, lengths[row]:].any()


def test_the_number_of_spans_is_rounded_at_random_once_for_the_batch():
    counts = drawn((10, 10, 20), 0.65, 1, 0).sum(-1)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2] == 13).all()
    assert set(counts[:, 0]) == {6, 7}
    assert abs((counts[:, 0] == 7).mean() - 0.5) < UNLIKELY * 0.5 / np.sqrt(DRAWS)


def test_spans_are_whole_and_at_least_as_many_as_asked():
    masks = drawn((50, 33), 0.0, 7, 2, draws=300)
    for row, width in enumerate((50, 33)):
        for mask in masks[:, row, :width]:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
            assert (edges[1::2] - edges[::2] >= 7).all()
            assert 8 <= mask.sum() <= 14  # two spans that start at different frames


def test_require_same_masks_keeps_as_many_as_the_row_with_the_fewest():
    lengths = (80, 60, 45, 9)
    whole, same = (drawn(lengths, 0.65, 10, 2, same_number, draws=1) for same_number in (False, True))
    assert (same <= whole).all()  # the first draw of equal generators
    masks = drawn(lengths, 0.65, 10, 2, same_number=True)
    counts = masks.sum(-1)
    assert (counts[:, 3] == 0).all()  # too short for a span, which is not the fewest
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 0] >= 10).all()


def test_require_same_masks_keeps_any_masked_frame_as_likely():
    """Otherwise the frames of a row would not have the mask's distribution any more."""
    kept = np.zeros(2)
    for seed in range(DRAWS):
        whole, same = (drawn((200, 30), 0.65, 10, 2, same_number, 1, seed)[0, 0] for same_number in (False, True))
        kept += [half.mean() for half in np.array_split(same[whole], 2)]
    assert 0.05 < kept[0] / DRAWS < 0.6
    assert abs(kept[0] / kept[1] - 1) < 0.05


def test_clips_too_short_for_a_span_have_no_mask():
    masks = drawn((9, 10, 30), 0.65, 10, 2, draws=50)
    assert not masks[:, 0].any()
    assert (masks[:, 1].sum(-1) == 10).all()
    assert (masks[:, 2].sum(-1) >= 11).all()
    nothing = drawn((9, 4), 0.65, 10, 2, same_number=True, draws=1)[0]
    places, counts = masked_places(nothing)
    assert places.shape == (2, 0)
    assert counts.tolist() == [0, 0]
    for negatives in (same_utterance_negatives, cross_utterance_negatives):
        assert negatives(torch.tensor(counts), 0, 5).shape == (2, 0, 5)


def test_a_single_masked_frame_has_nothing_to_be_told_from():
    assert not drawn((10, 10), 0.1, 1, 0, draws=50).any()


def test_masked_places():
    mask = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=bool)
    places, counts = masked_places(mask)
    assert places.tolist() == [[1, 2, 4], [0, 0, 0], [0, 4, 0]]
    assert counts.tolist() == [3, 0, 2]


def assert_uniform(values, allowed):
    """Nothing but what is allowed, and all of it equally often."""
    found, times = np.unique(values, return_counts=True)
    assert found.tolist() == sorted(allowed)
    share = 1 / len(allowed)
    assert (np.abs(times / len(values) - share) < UNLIKELY * np.sqrt(share * (1 - share) / len(values)) + 1e-12).all()


COUNTS = torch.tensor([5, 3, 0, 2, 1])


def test_negatives_of_the_same_utterance_are_uniform_over_its_other_masked_frames():
    torch.manual_seed(0)
    negatives = same_utterance_negatives(COUNTS, 5, 20_000).numpy()
    assert negatives.shape == (5, 5, 20_000)
    assert negatives.min() >= 0  # also of rows that are filled up
    assert negatives.max() < 5
    for row, count in enumerate(COUNTS.tolist()):
        for place in range(count if count > 1 else 0):
            assert_uniform(negatives[row, place], set(range(count)) - {place})


def test_negatives_across_utterances_are_uniform_over_all_other_masked_frames():
    torch.manual_seed(0)
    negatives = cross_utterance_negatives(COUNTS, 5, 20_000).numpy()
    everywhere = {row * 5 + place for row, count in enumerate(COUNTS.tolist()) for place in range(count)}
    assert negatives.shape == (5, 5, 20_000)
    assert negatives.min() >= 0
    assert negatives.max() < 25
    for own in everywhere:
        assert_uniform(negatives[own // 5, own % 5], everywhere - {own})


@pytest.mark.parametrize("negatives", [same_utterance_negatives, cross_utterance_negatives])
def test_negatives_follow_from_the_seed(negatives):
    def draw(seed):
        torch.manual_seed(seed)
        return negatives(COUNTS, 5, 30)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
