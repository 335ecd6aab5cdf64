"""One row -> the clips to store: all of it decoded and checked, the duration filter, crop or split of long audio, encoding."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import soundfile
import xxhash

from wavtrain import InputError
from wavtrain.speech.mp3_length import LARGEST, as_wav, says_its_length
from wavtrain.speech.resampling import mixed_down, resampled
from wavtrain.speech.rows import Rejection, Row
from wavtrain.speech.waveforms import INT16_SUBTYPES, SAMPLING_RATE, Refusal, Speech, open_speech

RECEPTIVE_FIELD = 400  # samples; the models make no frame of less


@dataclass(frozen=True)
class ClipLimits:
    """The duration filter, and what becomes of long audio: dropped, cropped to its head, or split into equal pieces."""

    min_duration_in_seconds: float = 0.1
    max_duration_in_seconds: float = 40.0
    long_audio: str = "split"

    def __post_init__(self) -> None:
        if self.max_duration_in_seconds < RECEPTIVE_FIELD / SAMPLING_RATE:
            raise InputError(f"--max_duration_in_seconds {self.max_duration_in_seconds:g}: no model makes a frame of so little")
        if self.min_duration_in_seconds > self.max_duration_in_seconds:
            raise InputError(f"--min_duration_in_seconds {self.min_duration_in_seconds:g} is longer than "
                             f"--max_duration_in_seconds {self.max_duration_in_seconds:g}")


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance as it is stored."""

    utterance_id: str
    audio: bytes
    num_samples: int
    fingerprint: int  # of the samples, to find the same audio twice
    is_whole: bool  # a part of an utterance cannot keep the text of all of it


def clips_of(row: Row, audio: str | bytes, limits: ClipLimits) -> Iterator[Clip | Rejection]:
    """The clips of a row; from the place on where it cannot be used, a rejection."""
    try:
        with open_speech(audio, row.start, row.stop, row.unit) as speech:
            if speech.file.format == "MP3" and row.num_bytes <= LARGEST and not says_its_length(speech.content):
                wav = as_wav(speech.content)
                if wav is not None:
                    yield from clips_of(row, wav, limits)
                    return
            yield from _cut(speech, row, limits)
    except Refusal as refusal:
        detail = f"{row.where}: {refusal.detail}" if row.where else refusal.detail
        yield Rejection(row.source, refusal.reason, detail, refusal.seconds)


def _cut(speech: Speech, row: Row, limits: ClipLimits) -> Iterator[Clip | Rejection]:
    shortest = max(limits.min_duration_in_seconds, RECEPTIVE_FIELD / SAMPLING_RATE)
    longest = round(limits.max_duration_in_seconds * SAMPLING_RATE)
    seconds = speech.seconds
    if seconds is not None:
        _check_short(seconds, shortest)
    is_long = seconds is None or ceil(seconds * SAMPLING_RATE) > longest
    if is_long and seconds is not None and limits.long_audio == "drop":
        raise _too_long(seconds, limits)
    num_pieces = ceil(seconds * SAMPLING_RATE / longest) if seconds is not None and limits.long_audio == "split" else 1
    length = ceil(seconds * SAMPLING_RATE / num_pieces) if num_pieces > 1 else longest
    # a clip within the limits is taken whole, with the few samples that resampling may add
    pieces = _pieces(speech, length if is_long else None)
    for number, samples in enumerate(pieces):
        is_whole = not is_long or (number == 0 and len(samples) < length)
        if not is_whole and limits.long_audio == "drop":
            raise _too_long(len(samples) / SAMPLING_RATE, limits)
        name = row.utterance_id if limits.long_audio != "split" or is_whole else f"{row.utterance_id}-part{number:04d}"
        yield from _stored(samples, name, row, is_whole, shortest, speech if is_whole and _is_stored_as_it_is(speech) else None)
        if limits.long_audio == "crop":
            return


def _check_short(seconds: float, shortest: float) -> None:
    if seconds < shortest:
        raise Refusal("too_short", f"{seconds:.3f} s; --min_duration_in_seconds is {shortest:g}", seconds)


def _too_long(seconds: float, limits: ClipLimits) -> Refusal:
    limit = f"--max_duration_in_seconds is {limits.max_duration_in_seconds:g}"
    return Refusal("too_long", f"{seconds:.1f} s; {limit}; --long_audio split keeps it", seconds)


def blocks_of(speech: Speech) -> Iterator[np.ndarray]:
    """Mono blocks at 16 kHz: int16 where nothing had to be changed, otherwise float32."""
    file = speech.file
    if file.subtype in INT16_SUBTYPES and file.channels == 1 and file.samplerate == SAMPLING_RATE:
        return speech.blocks("int16")
    mono = mixed_down(speech.blocks("float32"))
    return mono if file.samplerate == SAMPLING_RATE else resampled(mono, file.samplerate, SAMPLING_RATE)


def _is_stored_as_it_is(speech: Speech) -> bool:
    """Whether the whole of a file that is 16 kHz mono FLAC already."""
    file = speech.file
    is_whole = speech.start == 0 and speech.stop == file.frames  # one that does not know its length is hard to read again
    return is_whole and file.format == "FLAC" and file.samplerate == SAMPLING_RATE and file.channels == 1


def _pieces(speech: Speech, length: int | None) -> Iterator[np.ndarray]:
    """Consecutive 16-bit pieces of `length` samples, the last one shorter; everything at once where it is None."""
    waiting: list[np.ndarray] = []
    num_waiting = 0
    for block in blocks_of(speech):
        waiting.append(block)
        num_waiting += len(block)
        while length is not None and num_waiting >= length:
            joined = np.concatenate(waiting)
            yield to_int16(joined[:length])
            waiting, num_waiting = [joined[length:]], num_waiting - length
    if num_waiting:
        yield to_int16(waiting[0] if len(waiting) == 1 else np.concatenate(waiting))


def _stored(
    samples: np.ndarray, name: str, row: Row, is_whole: bool, shortest: float, original: Speech | None
) -> Iterator[Clip | Rejection]:
    """The clip, or why this piece is not one. `original`: the 16 kHz mono FLAC that it comes from, kept as it is."""
    seconds = len(samples) / SAMPLING_RATE
    reason = None
    if seconds < shortest:
        reason, detail = "too_short", f"{seconds:.3f} s; --min_duration_in_seconds is {shortest:g}"
    elif samples.min() == samples.max():
        reason, detail = "silent", f"all {len(samples)} samples have the value {samples[0]}"
    if reason:
        place = ": ".join(part for part in (row.where, "" if is_whole else name) if part)
        yield Rejection(row.source, reason, f"{place}: {detail}" if place else detail, seconds)
        return
    encoded = original.content if original is not None else None
    if encoded is None or len(encoded) > 2 * len(samples) + 65536:  # a FLAC with a picture in it, say
        encoded = encode(samples)
    yield Clip(name, encoded, len(samples), xxhash.xxh3_64_intdigest(samples), is_whole)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """16-bit samples; a clip louder than full scale is turned down to it rather than clipped."""
    if samples.dtype == np.int16:
        return samples
    peak = max(float(samples.max()), -float(samples.min()), 1.0)
    return np.clip(np.rint(samples * np.float32(32768.0 / peak)), -32768, 32767).astype(np.int16)


def encode(samples: np.ndarray) -> bytes:
    """16-bit mono FLAC at 16 kHz: lossless, and about a quarter of float32."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
