"""Log-mel filter banks as the feature extractor of wav2vec2-BERT makes them, all frames at once."""

import numpy as np
from transformers import SeamlessM4TFeatureExtractor

FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
PREEMPHASIS, FLOOR = 0.97, 1.192092955078125e-07


def filter_banks(wave: np.ndarray, extractor: SeamlessM4TFeatureExtractor) -> np.ndarray:
    """(frames, bins x stride): Kaldi's, each bin to mean 0 and variance 1 over the clip, neighbours side by side.

    Equal to the extractor's own, without its last frame where a neighbour is missing: its attention mask leaves that one out.
    """
    frames = np.lib.stride_tricks.sliding_window_view(wave * np.float32(2**15), FRAME_SAMPLES)[::HOP_SAMPLES]
    frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float64)
    frames[:, 1:] -= PREEMPHASIS * frames[:, :-1]
    frames[:, 0] *= 1 - PREEMPHASIS
    spectrum = np.fft.rfft(frames * extractor.window, FFT_SAMPLES, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    banks = np.log(np.maximum(power @ extractor.mel_filters, FLOOR)).astype(np.float32)
    banks = (banks - banks.mean(axis=0)) / np.sqrt(banks.var(axis=0, ddof=1) + 1e-7)
    whole = len(banks) // extractor.stride
    return banks[: whole * extractor.stride].reshape(whole, -1)
