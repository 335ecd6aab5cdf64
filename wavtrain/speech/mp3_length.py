"""MP3 files whose header does not say how long they are: libsndfile guesses, and leaves the rest of the speech out."""

import io

import numpy as np
import soundfile

try:
    import miniaudio  # reads MP3 to its last frame
except ImportError:  # no wheel for this machine
    miniaudio = None

LARGEST = 1 << 20  # bytes; decoded at once this may be 50 MB, and there are three copies of it
LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")


def says_its_length(content: bytes) -> bool:
    """Whether the first frame, behind an ID3 tag, is one that knows how many follow."""
    start = 0
    if content[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    return any(tag in content[start : start + 200] for tag in LENGTH_TAGS)


def as_wav(content: bytes) -> bytes | None:
    """All frames of an MP3 as WAV; None where it cannot be read."""
    if miniaudio is None:
        return None
    try:
        decoded = miniaudio.mp3_read_s16(content)
    except miniaudio.MiniaudioError:
        return None
    samples = np.frombuffer(decoded.samples, np.int16).reshape(-1, decoded.nchannels)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, decoded.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
