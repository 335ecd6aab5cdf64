"""Whether prepared files are as they were written, told in moments, however much speech they hold.

Of a shard that is its size, and the bytes of everything but the audio, which a run reads at its start anyway. Audio is FLAC:
its own checksums name a damaged clip when it is decoded.
"""

import json
import os
from typing import Any

import pyarrow as pa
import xxhash

from wavtrain import InputError

CHECKSUMS = "checksums.json"  # in the folder of a split


def checksum(path: str) -> list[Any]:
    """The size of a file, and a digest: of an Arrow file's columns (of audio where each clip begins), otherwise of it all."""
    digest = xxhash.xxh3_128()
    with pa.memory_map(path) as file:
        if path.endswith(".json"):
            digest.update(file.read())
        else:
            for batch in pa.ipc.open_stream(file):
                for buffer in (buffer for column in batch.columns for buffer in _small_buffers(column)):
                    digest.update(buffer)
    return [os.path.getsize(path), digest.hexdigest()]


def _small_buffers(column: pa.Array) -> list[pa.Buffer]:
    is_audio = pa.types.is_struct(column.type)
    buffers = column.field("bytes").buffers()[:2] if is_audio else column.buffers()
    return [buffer for buffer in buffers if buffer is not None]


def refuse_damaged_parts(folder: str) -> None:
    """The same of a prepared directory, or of one of its splits, that is a corpus to another preparation."""
    for part in (folder, *(each.path for each in os.scandir(folder) if each.is_dir())):
        if os.path.isfile(os.path.join(part, CHECKSUMS)):
            refuse_damaged(part)


def refuse_damaged(folder: str) -> None:
    """Name the file of a split that is not what was written."""
    path = os.path.join(folder, CHECKSUMS)
    try:
        with open(path, encoding="utf-8") as file:
            known = [(name, size, digest) for name, (size, digest) in json.load(file).items()]
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise _refusal(path, "is missing (did another version of this program write it?) or damaged") from error
    for name, size, digest in known:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise _refusal(path, "is missing")
        if os.path.getsize(path) != size:
            raise _refusal(path, f"has {os.path.getsize(path)} bytes, {size} were written")
        try:
            found = checksum(path)[1]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _refusal(path, "is damaged and cannot be read") from error
        if found != digest:
            raise _refusal(path, "holds other bytes than were written")


def _refusal(path: str, fault: str) -> InputError:
    return InputError(f"--dataset_name: the prepared file {path} {fault}: prepare the corpus again with --overwrite_cache")
