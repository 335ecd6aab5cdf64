"""Blocks of samples -> one channel, another rate: as a stream, with the same numbers as all at once."""

from collections.abc import Iterator

import numpy as np
import soxr


def mixed_down(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """(frames, channels) -> (frames,): channels averaged; where they cancel each other, the loudest one alone."""
    chosen = None  # the first block with sound in it decides for the whole recording
    for block in blocks:
        if block.ndim == 2:
            if chosen is None and block.any():
                chosen = _choice(block)
            block = _mean(block) if chosen in (None, "mean") else np.ascontiguousarray(block[:, chosen])
        yield block


def _mean(block: np.ndarray) -> np.ndarray:
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):  # columns one by one: numpy's mean over a short last axis is slow
        total += block[:, channel]
    return total / block.shape[1]


def _choice(block: np.ndarray) -> int | str:
    """'mean', or the loudest channel where the mean has lost 10 dB against channels that know nothing of each other."""
    num_channels = block.shape[1]
    powers = [float(np.dot(block[:, channel], block[:, channel])) for channel in range(num_channels)]
    mean = _mean(block)
    cancels = float(np.dot(mean, mean)) * num_channels**2 < 0.1 * sum(powers)
    return int(np.argmax(powers)) if cancels else "mean"


def resampled(blocks: Iterator[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
    """Block by block; a recording of a single block goes through in one call, which gives the same numbers faster."""
    first = next(blocks)
    second = next(blocks, None)
    if second is None:
        yield soxr.resample(first, rate, target, quality="HQ")
        return
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    yield stream.resample_chunk(first)
    while second is not None:
        yield stream.resample_chunk(second)
        second = next(blocks, None)
    yield stream.resample_chunk(first[:0], last=True)
