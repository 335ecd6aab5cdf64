"""One row to the clips that are stored: the duration filter, long audio, storage, and what is refused on the way."""

import io

import numpy as np
import pytest
import soundfile
from conftest import sound
from test_waveforms import encoded

from wavtrain import InputError
from wavtrain.speech.clips import Clip, ClipLimits, clips_of, to_int16
from wavtrain.speech.rows import Rejection, Row


def clips(audio, limits=ClipLimits(), **row):  # noqa: B008 (frozen)
    return list(clips_of(Row("source", audio, "name", **row), audio, limits))


def samples_of(clip):
    samples, rate = soundfile.read(io.BytesIO(clip.audio), dtype="int16")
    assert rate == 16_000
    return samples


def test_16_khz_mono_flac_is_stored_as_it_is():
    for subtype in ("PCM_16", "PCM_24"):
        audio = encoded(sound(2.0), kind="FLAC", subtype=subtype)
        (clip,) = clips(audio)
        assert clip.audio == audio
        assert (clip.utterance_id, clip.num_samples, clip.is_whole) == ("name", 32_000, True)


def test_everything_else_is_stored_as_16_bit_flac():
    samples = sound(2.0)
    (clip,) = clips(encoded(samples))
    assert np.array_equal(samples_of(clip), samples)
    assert len(clip.audio) < 0.8 * len(encoded(samples))
    (segment,) = clips(encoded(samples, kind="FLAC"), start=0.5, stop=1.5)
    assert np.array_equal(samples_of(segment), samples[8_000:24_000])
    (resampled,) = clips(encoded(sound(2.0, rate=8_000), 8_000))
    assert abs(resampled.num_samples - 32_000) < 30


def test_a_flac_with_a_picture_in_it_is_written_anew():
    plain = encoded(sound(1.0), kind="FLAC")
    size = 200_000  # a PADDING block after STREAMINFO stands for the picture
    padded = plain[:42] + bytes([1]) + size.to_bytes(3, "big") + bytes(size) + plain[42:]
    padded = padded[:4] + bytes([padded[4] & 0x7F]) + padded[5:]
    (clip,) = clips(padded)
    assert np.array_equal(samples_of(clip), sound(1.0))
    assert len(clip.audio) < len(plain) * 1.1


def test_equal_samples_have_equal_fingerprints_in_any_container():
    samples = sound(1.0)
    (wav,), (flac,), (other,) = clips(encoded(samples)), clips(encoded(samples, kind="FLAC")), clips(encoded(sound(1.0, 1)))
    assert wav.fingerprint == flac.fingerprint != other.fingerprint


def test_too_loud_floats_are_turned_down_and_not_clipped():
    samples = sound(1.0).astype(np.float32) / 32768 * 40
    (clip,) = clips(encoded(samples, subtype="FLOAT"))
    stored = samples_of(clip).astype(np.float64)
    assert stored.max() in (32767, 32766) or stored.min() == -32768
    assert np.corrcoef(stored, samples)[0, 1] > 0.999999
    assert np.array_equal(to_int16(np.array([0.5, -1.0, 1.0], np.float32)), [16384, -32768, 32767])


@pytest.mark.parametrize(("seconds", "reason"), [(0.0999, "too_short"), (0.1, None), (0.3, None)])
def test_the_duration_filter_from_below(seconds, reason):
    (result,) = clips(encoded(sound(seconds)))
    assert getattr(result, "reason", None) == reason


def test_no_clip_is_shorter_than_the_receptive_field():
    (kept,), (rejection,) = (clips(encoded(sound(n / 16_000)), ClipLimits(0.0)) for n in (400, 399))
    assert (kept.num_samples, rejection.reason) == (400, "too_short")


@pytest.mark.parametrize("seconds", [2.0, 4.0, 4.5, 7.99, 8.0, 8.01])
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_split_loses_no_sample_and_makes_equal_pieces(seconds, rate):
    audio = encoded(sound(seconds, rate=rate), rate)
    pieces = clips(audio, ClipLimits(0.1, 4.0))
    (whole,) = clips(audio, ClipLimits(0.1, 40.0))
    assert np.array_equal(np.concatenate([samples_of(piece) for piece in pieces]), samples_of(whole))
    assert len(pieces) == int(np.ceil(seconds / 4.0))
    lengths = [piece.num_samples for piece in pieces]
    assert max(lengths) <= 64_000 + 30
    assert max(lengths) - min(lengths) < 60
    names = ["name"] if len(pieces) == 1 else [f"name-part{number:04d}" for number in range(len(pieces))]
    assert [piece.utterance_id for piece in pieces] == names
    assert {piece.is_whole for piece in pieces} == {len(pieces) == 1}


def test_crop_keeps_the_head_and_drop_nothing():
    samples = sound(5.0)
    (head,) = clips(encoded(samples), ClipLimits(0.1, 4.0, "crop"))
    assert np.array_equal(samples_of(head), samples[:64_000])
    assert (head.utterance_id, head.is_whole) == ("name", False)
    (rejection,) = clips(encoded(samples), ClipLimits(0.1, 4.0, "drop"))
    assert (rejection.reason, rejection.seconds) == ("too_long", 5.0)


def test_silence_is_named_and_the_speech_around_it_kept():
    samples = np.concatenate([sound(4.0, 1), np.zeros(64_000, np.int16), sound(4.0, 2)])
    first, silence, last = clips(encoded(samples), ClipLimits(0.1, 4.0))
    assert isinstance(first, Clip)
    assert isinstance(last, Clip)
    assert (silence.reason, silence.seconds) == ("silent", 4.0)
    assert "name-part0001" in silence.detail


def test_what_was_read_before_damage_is_kept_of_a_split_recording():
    samples = sound(20.0)
    flac = bytearray(encoded(samples, kind="FLAC"))
    flac[len(flac) * 3 // 4 :] = bytes(len(flac) - len(flac) * 3 // 4)
    result = clips(bytes(flac), ClipLimits(0.1, 4.0), where="table line 7")
    assert isinstance(result[-1], Rejection)
    assert result[-1].reason == "corrupt"
    assert result[-1].detail.startswith("table line 7: ")


def test_impossible_limits():
    with pytest.raises(InputError, match="--min_duration_in_seconds 5 is longer than --max_duration_in_seconds 2"):
        ClipLimits(5.0, 2.0)
    with pytest.raises(InputError, match=r"--max_duration_in_seconds 0\.01"):
        ClipLimits(0.0, 0.01)


def test_mp3_that_does_not_say_how_long_it_is():
    samples = sound(6.0)
    mp3 = encoded(samples, kind="MP3")  # variable bit rate
    untagged = mp3[mp3.index(mp3[:2], 100) :]
    for audio in (untagged, b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + untagged):
        (clip,) = clips(audio)
        assert abs(clip.num_samples - len(samples)) < 3_000
        heard = samples_of(clip).astype(np.float64)
        best = max(np.corrcoef(heard[shift : shift + 90_000], samples[:90_000])[0, 1] for shift in range(0, 3_000, 1))
        assert best > 0.9


def test_flac_of_unknown_length_is_stored_with_its_length():
    flac = bytearray(encoded(sound(2.0), kind="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (clip,) = clips(bytes(flac))
    assert np.array_equal(samples_of(clip), sound(2.0))
