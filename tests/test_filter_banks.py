"""The filter banks of wav2vec2-BERT are those of transformers' extractor, whatever the length and the loudness."""

import numpy as np
import pytest
from conftest import sound
from transformers import SeamlessM4TFeatureExtractor

from wavtrain.recognition.filter_banks import FRAME_SAMPLES, HOP_SAMPLES, filter_banks

EXTRACTOR = SeamlessM4TFeatureExtractor()


@pytest.mark.parametrize("num_samples", [400 + 160, 400 + 3 * 160, 16_000, 16_159, 16_160, 33_333])
@pytest.mark.parametrize("loudness", [1.0, 0.01])
def test_those_of_transformers(num_samples, loudness):
    """Only whole pairs of frames: of a last single one its attention mask says that it is padding."""
    wave = (sound(3.0, num_samples)[:num_samples] / 32768 * loudness).astype(np.float32)
    theirs = EXTRACTOR(wave, sampling_rate=16_000, return_tensors="np")
    ours = filter_banks(wave, EXTRACTOR)
    assert ours.dtype == np.float32
    assert len(ours) == theirs["attention_mask"].sum() == ((num_samples - FRAME_SAMPLES) // HOP_SAMPLES + 1) // 2
    wanted = theirs["input_features"][0][: len(ours)]
    assert np.abs(ours - wanted).max() < 2e-3
    assert wanted.std() > 0.7


def test_the_wave_is_left_as_it_is():
    wave = sound(0.5).astype(np.float32) / 32768
    before = wave.copy()
    filter_banks(wave, EXTRACTOR)
    assert (wave == before).all()


def test_silence_is_finite():
    assert np.isfinite(filter_banks(np.zeros(4000, np.float32), EXTRACTOR)).all()
