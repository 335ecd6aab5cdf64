"""What is decoded to what, and what is refused: formats, rates, channels, segments, damage, memory."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
from conftest import ROOT, sound

from wavtrain.speech import waveforms
from wavtrain.speech.clips import blocks_of
from wavtrain.speech.waveforms import Refusal, open_speech


def encoded(samples, rate=16_000, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decoded(audio, *segment):
    with open_speech(audio, *segment) as speech:
        return np.concatenate(list(blocks_of(speech)))


def refusal(audio, *segment):
    with pytest.raises(Refusal) as caught:
        decoded(audio, *segment)
    return caught.value


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "NIST", "W64", "RF64", "CAF", "AU"])
def test_16_bit_at_16_khz_passes_untouched(kind):
    samples = sound(1.5)
    assert np.array_equal(decoded(encoded(samples, kind=kind, subtype="PCM_16")), samples)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
                                               ("FLAC", "PCM_24")])
def test_wider_formats_keep_their_values(kind, subtype):
    samples = sound(1.0)
    assert np.allclose(decoded(encoded(samples / np.float32(32768), kind=kind, subtype=subtype)), samples / 32768, atol=1e-6)


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_lossy_formats_resemble_what_went_in(kind, subtype):
    samples = sound(2.0)
    result = decoded(encoded(samples, kind=kind, subtype=subtype))[: len(samples)].astype(np.float64)
    assert np.corrcoef(result, samples[: len(result)])[0, 1] > 0.9


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampled_equals_soxr_of_the_whole(rate, monkeypatch):
    samples = sound(2.0, rate=rate)
    whole = soxr.resample(samples.astype(np.float32) / 32768, rate, 16_000, quality="HQ")
    assert np.array_equal(decoded(encoded(samples, rate)), whole)
    monkeypatch.setattr(waveforms, "BLOCK_VALUES", 5_000)
    in_blocks = decoded(encoded(samples, rate))
    assert len(in_blocks) == len(whole)
    assert np.abs(in_blocks - whole).max() < 1e-6


def test_channels_are_averaged_and_the_loudest_taken_where_they_cancel():
    left, right = sound(1.0, 1), sound(1.0, 2)
    mixed = decoded(encoded(np.stack([left, right], axis=1)))
    assert np.allclose(mixed * 32768, (left.astype(float) + right) / 2, atol=1e-2)
    antiphase = decoded(encoded(np.stack([left, -left], axis=1)))
    assert np.allclose(antiphase * 32768, left)
    in_turn = np.zeros((32_000, 16), np.int16)
    in_turn[:16_000, 5], in_turn[16_000:, 9] = left, right
    assert np.allclose(decoded(encoded(in_turn)) * 32768, np.concatenate([left, right]) / 16, atol=1e-2)


def test_the_channel_is_chosen_once_for_a_recording(monkeypatch):
    monkeypatch.setattr(waveforms, "BLOCK_VALUES", 2_000)
    left = sound(1.0, 1)
    quiet_start = np.concatenate([np.zeros((5_000, 2), np.int16), np.stack([left, -left], axis=1)])
    assert np.allclose(decoded(encoded(quiet_start)) * 32768, np.concatenate([np.zeros(5_000), left]))


def test_segments_in_seconds_and_in_samples():
    samples = sound(3.0)
    audio = encoded(samples, kind="FLAC")
    assert np.array_equal(decoded(audio, 0.5, 1.25), samples[8_000:20_000])
    assert np.array_equal(decoded(audio, 100, 16_100, "samples"), samples[100:16_100])
    assert np.array_equal(decoded(audio, 2.0, None), samples[32_000:])
    assert np.array_equal(decoded(audio, 0, 3.04), samples)  # rounded up by whoever wrote the manifest
    assert np.array_equal(decoded(audio, 0, 2.96), samples)  # rounded down
    assert refusal(audio, 3.0, 4.0).reason == "outside_audio"
    assert refusal(audio, 1.0, 3.5).reason == "outside_audio"


def with_size(audio: bytes, size: int) -> bytes:
    """A WAV whose data chunk claims this many bytes."""
    return audio[:40] + size.to_bytes(4, "little") + audio[44:]


def test_truncated_files_are_refused_and_streamed_ones_are_not():
    samples = sound(1.0)
    wav, flac = encoded(samples), encoded(samples, kind="FLAC")
    assert refusal(wav[:-4_001]).reason == "truncated"
    assert refusal(flac[:-4_000]).reason == "corrupt"
    assert refusal(encoded(sound(3.0), kind="MP3")[:-6_000]).reason == "truncated"
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        assert np.array_equal(decoded(with_size(wav, unknown)), samples)


def test_flac_of_unknown_length_is_read_to_its_end():
    samples = sound(2.0)
    flac = bytearray(encoded(samples, kind="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    with open_speech(bytes(flac)) as speech:
        assert speech.seconds is None
        assert np.array_equal(np.concatenate(list(blocks_of(speech))), samples)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: b"", "unreadable"),
    (lambda: b"<html>404</html>" * 10, "unreadable"),
    (lambda: encoded(np.zeros(0, np.int16)), "empty"),
    (lambda: encoded(np.full(1_600, np.nan, np.float32), subtype="FLOAT"), "non_finite"),
    (lambda: encoded(np.r_[np.zeros(800), np.inf, np.zeros(800)].astype(np.float32), subtype="FLOAT"), "non_finite"),
    (lambda: encoded(np.full(1_600, 1e30, np.float32), subtype="FLOAT"), "out_of_range"),
    (lambda: encoded(sound(1.0), 1_000), "sampling_rate"),
    (lambda: encoded(sound(1.0), 1_000_003), "sampling_rate"),
])
def test_refusals(make, reason):
    assert refusal(make()).reason == reason


def test_paths_that_are_no_files(tmp_path):
    assert refusal(str(tmp_path / "absent.wav")).reason == "missing_file"
    assert refusal(str(tmp_path)).detail == "not a regular file"
    os.mkfifo(tmp_path / "pipe.wav")
    assert refusal(str(tmp_path / "pipe.wav")).detail == "not a regular file"


def test_the_content_counts_and_not_the_name(tmp_path):
    for name in ("flac.wav", "headerless.raw", "none", b"\xff\xfe.mp3"):
        path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(encoded(sound(0.5), kind="FLAC"))
        assert np.array_equal(decoded(os.fsdecode(path)), sound(0.5))


def test_memory_is_bounded_for_an_hour_of_stereo(tmp_path):
    path = tmp_path / "hour.flac"
    minute = sound(60.0, rate=44_100, channels=2)
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    program = (
        "import re, sys\nfrom wavtrain.speech.clips import blocks_of\nfrom wavtrain.speech.waveforms import open_speech\n"
        "with open_speech(sys.argv[1]) as speech: print(sum(len(block) for block in blocks_of(speech)))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    output = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    samples, kilobytes = map(int, output.split())
    assert abs(samples - 3_600 * 16_000) < 10
    assert kilobytes < 200_000


@pytest.mark.parametrize(("kind", "subtype"), [("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
                                               ("AU", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("part", [0.6, 0.999])
def test_files_that_were_cut_off_are_named(kind, subtype, part):
    whole = encoded(sound(6.0), kind=kind, subtype=subtype)
    assert len(decoded(whole)) == 96_000
    assert refusal(whole[: int(len(whole) * part)]).reason == "truncated"


def test_a_wav_that_was_cut_off_is_named_behind_comments_of_any_length():
    samples, comment = sound(3.0).tobytes(), b"ICMT" + (2_000).to_bytes(4, "little") + b"y" * 2_000
    comments = b"INFO" + comment * 40
    body = encoded(sound(3.0))[8:36] + b"LIST" + len(comments).to_bytes(4, "little") + comments
    body += b"data" + len(samples).to_bytes(4, "little") + samples
    wav = b"RIFF" + len(body).to_bytes(4, "little") + body
    assert np.array_equal(decoded(wav), sound(3.0))
    assert refusal(wav[:-40_000]).reason == "truncated"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_page_is_named_and_nothing_is_heard_twice(subtype):
    ogg = bytearray(encoded(sound(6.0), kind="OGG", subtype=subtype))
    ogg[len(ogg) // 2] ^= 0x10
    assert refusal(bytes(ogg)).reason == "corrupt"


@pytest.mark.parametrize("in_a_file", [False, True])
def test_mp3_whose_header_says_less_than_is_there(in_a_file, tmp_path):
    mp3 = encoded(sound(6.0), kind="MP3")
    second_frame = mp3.index(mp3[:2], 100)
    for audio in (mp3[second_frame:], mp3 + mp3):  # without the frame that knows the length; two in one
        (tmp_path / "x.mp3").write_bytes(audio)
        found = refusal(str(tmp_path / "x.mp3") if in_a_file else audio)
        assert found.reason == "corrupt"
        assert "goes on after" in found.detail
    assert len(decoded(mp3 + b"TAG" + bytes(125))) == 96_000


def test_ogg_of_several_streams_is_named():
    ogg = encoded(sound(6.0), kind="OGG", subtype="VORBIS")
    assert "several streams" in refusal(ogg + encoded(sound(3.0, 1), kind="OGG", subtype="VORBIS")).detail
