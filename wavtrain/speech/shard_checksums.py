"""Whether prepared files are as they were written, told in moments, however much speech they hold.

Of a shard that is its size, and the bytes of everything but the audio, which a run reads at its start anyway. Audio is FLAC:
its own checksums name a damaged clip when it is decoded.
"""

import json
import os
from collections.abc import Collection
from typing import Any

import datasets
import pyarrow as pa
import xxhash

from wavtrain import InputError

CHECKSUMS = "checksums.json"  # in the folder of a split
DESCRIPTIONS = ("dataset_info.json", "state.json")  # what load_from_disk wants to find beside the Arrow files
OF_DAMAGED = (ValueError, TypeError, AttributeError, LookupError, FileNotFoundError)  # what odd JSON leads to


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


def opened(folder: str, columns: Collection[str]) -> datasets.Dataset:
    """A split, mapped into memory: whole, of these columns, and of no files but its own."""
    refuse_damaged(folder)
    path = os.path.join(folder, "state.json")
    try:
        with open(path, encoding="utf-8") as file:
            foreign = [name for each in json.load(file)["_data_files"] if os.path.basename(name := each["filename"]) != name]
        if foreign:
            raise _refusal(path, f"names {foreign[0]}, which is not beside it")
        clips = datasets.load_from_disk(folder)
    except OF_DAMAGED as error:
        raise _refusal(path, f"is damaged, or {DESCRIPTIONS[0]} beside it ({' '.join(str(error).split())[:200]})") from error
    if not set(columns) <= set(clips.column_names):
        raise _refusal(folder, f"has only the columns {', '.join(clips.column_names)}")
    return clips


def refuse_damaged(folder: str) -> None:
    """Name the file of a split that is not what was written."""
    path = os.path.join(folder, CHECKSUMS)
    try:
        with open(path, encoding="utf-8") as file:
            known = [(os.path.basename(name), size, digest) for name, (size, digest) in json.load(file).items()]
    except (*OF_DAMAGED, OSError) as error:
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
