"""Bytes or a path -> checked samples, block by block in bounded memory. What is refused is decided here (docs/data.md)."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import soundfile

try:
    import miniaudio  # decodes FLAC 1.4 times as fast as libsndfile, to the same samples
except ImportError:  # no wheel for this machine
    miniaudio = None

SAMPLING_RATE = 16_000
LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000
BLOCK_VALUES = 1 << 21  # decoded at once, all channels together: 8 MB of float32
LOUDEST = 2.0**31  # floats that hold 32-bit integers reach this; nothing that is audio goes beyond
SIZE_UNKNOWN = 0x7F000000  # what programs that write WAV or AIFF into a pipe put where the size belongs, or more
INT16_SUBTYPES = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"}  # int16 holds every value of these
# libsndfile's log where the file ends early; a log cut short by long comments still has RIFF's own size in its second line
PROMISED = re.compile(r"^ ?(?:data|SSND|  Data Size  |  Riff size|riff) : (\d+) \(should be (\d+)\)", re.MULTILINE)
PROMISED_BY_RIFF = re.compile(r"^RIFF : (\d+) \(should be (\d+)\)(?!.*^data : )", re.MULTILINE | re.DOTALL)
TOLERATED_SECONDS = 0.1  # MP3 headers and rounded manifests miss the true length by less than this


class Refusal(Exception):  # noqa: N818 (it is no error of the program)
    """Why a clip cannot be used: a reason to count by, and a detail to read."""

    def __init__(self, reason: str, detail: str, seconds: float = 0.0):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.seconds = reason, detail, seconds


class _File(soundfile.SoundFile):
    """A FLAC written as a stream does not know its length, and soundfile must not seek to its end after a read."""

    @property
    def knows_its_length(self) -> bool:
        return self.frames < 1 << 62

    def seekable(self) -> bool:
        return self.knows_its_length and super().seekable()


@dataclass
class Speech:
    """One open recording, or the segment of it between two frames."""

    audio: str | bytes
    handle: int | BinaryIO
    file: _File
    start: int
    stop: int | None  # None: as far as it goes, the header does not say

    @property
    def seconds(self) -> float | None:
        """Duration by the header and the segment; None where the header does not know."""
        return None if self.stop is None else (self.stop - self.start) / self.file.samplerate

    def blocks(self, dtype: str) -> Iterator[np.ndarray]:
        """Checked blocks, (frames,) or (frames, channels): "int16" for files that hold no more, "float32" for any."""
        content = self._whole_flac()
        if content is not None:
            yield content if dtype == "int16" else np.multiply(content, np.float32(1 / 32768), dtype=np.float32)
            return
        for block in self._decoded(dtype):
            if dtype == "float32":
                _check_values(block)
            yield block

    @cached_property
    def content(self) -> bytes:
        """The encoded file."""
        if isinstance(self.audio, bytes):
            return self.audio
        with open(self.audio, "rb") as file:
            return file.read()

    def _whole_flac(self) -> np.ndarray | None:
        """A plain FLAC decoded by the faster decoder, None where there is none, or anything odd that the other must name."""
        file = self.file
        is_plain = file.format == "FLAC" and file.subtype == "PCM_16" and file.channels == 1 and file.frames <= BLOCK_VALUES
        if miniaudio is None or not is_plain or (self.start, self.stop) != (0, file.frames):
            return None
        try:
            samples = np.frombuffer(miniaudio.flac_read_s16(self.content).samples, np.int16)
        except miniaudio.MiniaudioError:
            return None
        return samples if len(samples) == file.frames else None  # frames whose checksum is wrong are missing

    def _decoded(self, dtype: str) -> Iterator[np.ndarray]:
        wanted = self.stop - self.start if self.stop is not None else np.inf
        block_frames = BLOCK_VALUES // self.file.channels
        done = 0
        try:
            if self.start:
                self.file.seek(self.start)
            while done < wanted:
                asked = int(min(block_frames, wanted - done))
                block = self.file.read(asked, dtype=dtype)
                done += len(block)
                yield from [block] if len(block) else ()
                if len(block) < asked:  # not to be asked again: after a damaged page Vorbis would give its last second twice
                    break
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise Refusal("corrupt", f"decoding failed {self._at(done)}: {error}") from error
        missing = (wanted - done) / self.file.samplerate if self.stop is not None else 0.0
        if done == 0:
            raise Refusal("empty", "holds no samples")
        if missing > (TOLERATED_SECONDS if self.file.format == "MP3" else 0):
            reason = "corrupt" if self.file.format == "OGG" else "truncated"  # Ogg: its last page is there, one on the way not
            raise Refusal(reason, f"ends {self._at(done)}, {missing:.2f} s before its header says")
        if self.file.format == "MP3" and self.stop == self.file.frames and self._goes_on():
            raise Refusal("corrupt", f"goes on {self._at(done)}, where its header says that it ends: several MP3 in one, "
                          "or a large one of variable bit rate without a Xing header; convert it (ffmpeg -i x.mp3 x.flac)")

    def _goes_on(self) -> bool:
        """Whether MP3 frames follow what was decoded, and more of them than an encoder adds at the end."""
        with open(os.dup(self.handle), "rb") if isinstance(self.handle, int) else io.BytesIO(self.audio) as file:
            place = file.tell() if isinstance(self.handle, int) else file.seek(self.handle.tell())
            is_frame = (file.read(2) or b"\0") >= b"\xff\xe0"
            rest = (file.seek(0, os.SEEK_END) - place) / max(place, 1)
        return is_frame and rest * self.file.frames / self.file.samplerate > 3 * TOLERATED_SECONDS

    def _at(self, done: int) -> str:
        return f"after {(self.start + done) / self.file.samplerate:.2f} s"


def _check_values(block: np.ndarray) -> None:
    loudest = max(float(block.max()), -float(block.min()))
    if not np.isfinite(loudest):
        raise Refusal("non_finite", "holds NaN or infinite samples")
    if loudest > LOUDEST:
        raise Refusal("out_of_range", f"holds samples as large as {loudest:.1e}")


@contextmanager
def open_speech(audio: str | bytes, start: float = 0, stop: float | None = None, unit: str = "seconds") -> Iterator[Speech]:
    """Open a path or encoded bytes, or the segment [start, stop) of it in "seconds" or "samples" of its own rate."""
    with _opened(audio) as handle:
        try:
            file = _File(handle, closefd=not isinstance(handle, int))
        except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
            message = str(error).split(": ", 1)[-1]
            raise Refusal("unreadable", f"not audio that libsndfile reads ({message})") from error
        with file:
            _check_header(file)
            yield Speech(audio, handle, file, *_segment(file, start, stop, file.samplerate if unit == "seconds" else 1))


@contextmanager
def _opened(audio: str | bytes) -> Iterator[int | BinaryIO]:
    """A descriptor rather than a name: libsndfile then goes by the content, whatever the file is called."""
    if isinstance(audio, bytes):
        yield io.BytesIO(audio)
        return
    try:
        if not stat.S_ISREG(os.stat(audio).st_mode):  # opening a pipe or a terminal would wait for ever
            raise Refusal("unreadable", "not a regular file")
        descriptor = os.open(audio, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise Refusal("missing_file", "no such file") from error
    except OSError as error:
        raise Refusal("unreadable", error.strerror or str(error)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_header(file: _File) -> None:
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise Refusal("sampling_rate", f"{file.samplerate} Hz; speech has {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    promised = PROMISED.search(file.extra_info) or PROMISED_BY_RIFF.search(file.extra_info)
    if promised and int(promised[2]) < int(promised[1]) < SIZE_UNKNOWN:
        raise Refusal("truncated", f"its header promises {promised[1]} bytes and {promised[2]} are there")
    if re.search(r"^Ogg ?: Junk after the last page", file.extra_info, re.MULTILINE):
        raise Refusal("truncated", "what follows its last whole page is not read: it was cut off, or holds several streams")
    if file.frames == 0:
        raise Refusal("empty", "holds no samples")


def _segment(file: _File, start: float, stop: float | None, frames_per_unit: int) -> tuple[int, int | None]:
    end = file.frames if file.knows_its_length else None
    first = round(start * frames_per_unit)
    last = end if stop is None else round(stop * frames_per_unit)
    slack = TOLERATED_SECONDS * file.samplerate
    if end is not None and (first >= end or last > end + slack):
        asked = f"{start:g} to {'the end' if stop is None else f'{stop:g}'}"
        raise Refusal("outside_audio", f"the segment from {asked} is not inside the {end / file.samplerate:.2f} s of audio")
    if first == 0 and last is not None and end is not None and last > end - slack:
        last = end  # a manifest that gives the rounded length of the whole file
    return first, last if end is None or last is None else min(last, end)
