"""Recordings are heard a piece at a time: every window once, whole recordings from every process, faults handed over."""

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import sound

from wavtrain import InputError
from wavtrain.recognition.transcription import Recordings, WindowOptions, log_probs_of
from wavtrain.speech.clips import encode

STRIDE, KERNEL = 320, 400
SECONDS = (0.5, 9.3, 0.7, 2.0, 0.03, 25.0, 2.01)
OPTIONS = WindowOptions(per_device_eval_batch_size=3, window_in_seconds=2.0, window_overlap_in_seconds=0.5)


class Ear(torch.nn.Module):
    """Two tokens: the mean of each frame's samples, and of their squares."""

    def forward(self, inputs, lengths=None):
        frames = inputs.unfold(1, KERNEL, STRIDE)
        return {"log_probs": torch.stack([frames.mean(-1), frames.square().mean(-1)], -1)}


def frames_of(num_samples):
    return (num_samples - KERNEL) // STRIDE + 1


def recordings(options: WindowOptions = OPTIONS, spoil=lambda row, content: content) -> Recordings:
    waves = [sound(seconds, row) for row, seconds in enumerate(SECONDS)]
    clips = datasets.Dataset.from_dict({
        "utterance_id": [f"clip {row}" for row in range(len(waves))], "num_samples": list(map(len, waves)),
        "audio": [{"bytes": spoil(row, encode(wave)), "path": None} for row, wave in enumerate(waves)]})
    return Recordings(clips, options, lambda wave: wave, frames_of, STRIDE)


def wanted(row: int) -> np.ndarray:
    wave = torch.from_numpy(sound(SECONDS[row], row).astype(np.float32) / 32768)[None]
    return Ear()(wave)["log_probs"][0].numpy()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("windows_at_once", [1, 3, 50])
def test_every_recording_comes_out_whole(windows_at_once, num_workers):
    """Frame by frame as if it had been heard at once."""
    options = WindowOptions(windows_at_once, 2.0, 0.5)
    found = dict(log_probs_of(recordings(options), Ear(), Accelerator(cpu=True), num_workers))
    assert sorted(found) == list(range(len(SECONDS)))
    for row, log_probs in found.items():
        np.testing.assert_allclose(log_probs, wanted(row), atol=1e-6)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_processes_share_recordings_not_windows(num_processes):
    shares = [list(recordings().pieces((index, num_processes))) for index in range(num_processes)]
    rows = [{row for piece in pieces for row, _ in piece.windows} for pieces in shares]
    assert sorted(row for each in rows for row in each) == list(range(len(SECONDS)))
    frames = sum(window.end_frame - window.first_frame for pieces in shares for piece in pieces for _, window in piece.windows)
    assert frames == sum(len(wanted(row)) for row in range(len(SECONDS)))


def test_a_piece_is_small_however_long_the_recording():
    """At most so many windows, and no sample beyond them."""
    speech = recordings()
    for piece in speech.pieces((0, 1)):
        assert len(piece.windows) <= 3
        assert speech[piece].batch["inputs"].numel() <= 3 * 2.0 * 16_000


def test_the_longest_come_first():
    ends = [max(window.end for _, window in piece.windows) for piece in recordings(WindowOptions(2, 30.0, 6.0)).pieces((0, 1))]
    assert ends == sorted(ends, reverse=True)


def test_a_damaged_clip_is_named():
    cut = recordings(spoil=lambda row, content: content[: len(content) // 2] if row == 5 else content)
    for num_workers in (0, 1):
        with pytest.raises(InputError, match=r"the prepared clip clip 5 is damaged .* prepare the corpus again with"):
            list(log_probs_of(cut, Ear(), Accelerator(cpu=True), num_workers))


def test_values_that_are_no_numbers_are_refused():
    ear = Ear()
    ear.register_forward_hook(lambda module, given, output: {"log_probs": output["log_probs"] * float("nan")})
    with pytest.raises(InputError, match="not numbers: try --mixed_precision no"):
        next(log_probs_of(recordings(), ear, Accelerator(cpu=True), 0))


def test_windows_that_do_not_advance_are_refused():
    with pytest.raises(InputError, match="--window_overlap_in_seconds 6: is not below --window_in_seconds 6"):
        WindowOptions(window_in_seconds=6.0)
    with pytest.raises(InputError, match="would not advance by one frame"):
        list(recordings(WindowOptions(3, 2.0, 1.99)).pieces((0, 1)))
