"""What every corpus becomes: rows, one per utterance, or the reason why there is none; and how a record turns into one."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from wavtrain import InputError

# What tables and datasets of this world call these things, most specific first; flags name anything else.
KNOWN_NAMES = {
    "audio": ("audio", "file_name", "audio_file_name", "audio_filepath", "wav", "audio_path", "path", "file", "filename"),
    "text": ("text", "sentence", "transcription", "transcript", "wrd", "words", "normalized_text", "raw_transcription"),
    "speaker": ("speaker", "speaker_id", "spk_id", "client_id"),
    "language": ("language", "lang", "locale"),
    "id": ("utterance_id", "utt_id", "id", "ID"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance: where its audio is and what is known about it."""

    source: str  # what a person would look for: a path, or dataset[index]
    audio: str | bytes | int  # a path, the encoded file itself, or its index in the source's dataset
    utterance_id: str
    num_bytes: int = 0
    modified: int = 0  # nanoseconds, 0 where there is no file
    start: float = 0
    stop: float | None = None
    unit: str = "seconds"  # or "samples", of start and stop
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    where: str = ""  # the table and line it was read from


@dataclass(frozen=True, slots=True)
class Rejection:
    """One clip that does not reach training, and why."""

    source: str
    reason: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Source:
    """One place rows come from; `rows()` may be walked again and yields the same."""

    corpus: str
    description: str
    rows: Callable[[], Iterator[Row | Rejection]]
    split: str = "train"  # or "validation": all of it is held out
    signature: str | None = None  # of sources that know their own content without a walk
    num_rows: int | None = None  # likewise
    read_audio: Callable[[int], bytes] | None = None  # for rows whose audio is an index


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold audio, text, speaker, language and id; None: the first known name found."""

    audio: str | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    id: str | None = None

    def among(self, names: list[str], place: str) -> "Columns":
        """The same with every name settled by what is there."""
        found = {}
        for role, known in KNOWN_NAMES.items():
            wanted = getattr(self, role)
            if wanted is not None and wanted not in names:
                raise InputError(f"{place}: --{role}_column_name {wanted}: there are only {', '.join(names)}")
            found[role] = wanted or next((name for name in known if name in names), None)
        if found["audio"] is None:
            hint = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
            advice = f"it seems to be separated by {hint!r}" if hint else "--audio_column_name names it"
            raise InputError(f"{place}: no column with audio among {', '.join(map(repr, names))}: {advice}")
        return replace(self, **found)


@dataclass(frozen=True)
class AudioRoot:
    """The folder that paths of a table are relative to and have to stay in."""

    folder: str

    @property
    def refusal(self) -> str:
        return f"leads outside {self.folder}; --audio_root DIR allows a wider folder"

    def resolve(self, path: str) -> str | None:
        """The path to open, or None where it leads outside."""
        path = re.sub(r"^(\$\{?data_root\}?|\$\{?root\}?|\{data_root\})/?", "", path)
        full = os.path.join(self.folder, path)
        parent = _real_folder(os.path.dirname(full))
        real = os.path.realpath(full) if os.path.islink(full) else os.path.join(parent, os.path.basename(full))
        root = _real_folder(self.folder)
        return full if os.path.basename(full) != ".." and (real + os.sep).startswith(root.rstrip(os.sep) + os.sep) else None


@lru_cache(maxsize=65536)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def row_of_file(path: str, root: str, **known: Any) -> Row | Rejection:
    """The row of a file on disk; its name below `root` is its id unless it has one."""
    where = f"{known['where']}: " if known.get("where") else ""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Rejection(path, "missing_file", f"{where}no such file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Rejection(path, "unreadable", f"{where}{getattr(error, 'strerror', None) or error}")
    known["utterance_id"] = known.get("utterance_id") or printable(os.path.relpath(path, root))
    return Row(path, path, num_bytes=status.st_size, modified=status.st_mtime_ns, **known)


def row_of_record(record: dict[str, Any], columns: Columns, root: AudioRoot, where: str) -> Row | Rejection:
    """The row of a table's record, whichever of the known forms it has."""
    audio = record.get(columns.audio)
    segment = _segment_of(record)
    if isinstance(audio, dict):  # SpeechBrain: {"file": ..., "start": samples, "stop": samples}
        segment = _segment_of({"wav": None, **audio})
        audio = audio.get("file") or audio.get("path")
    if not audio or not isinstance(audio, str):
        return Rejection(where, "malformed_row", f"{where}: its {columns.audio!r} names no file")
    path = root.resolve(audio)
    if path is None:
        return Rejection(audio, "outside_folder", f"{where}: {root.refusal}")
    if segment is None:
        return Rejection(path, "malformed_row", f"{where}: its segment is not made of numbers that grow from 0")
    known = {role: _text(record.get(getattr(columns, role))) for role in ("text", "speaker", "language")}
    start, stop, unit = segment
    name = _text(record.get(columns.id))
    if name is None and (start or (stop is not None and unit == "samples")):
        name = printable(f"{os.path.relpath(path, root.folder)}-{start:g}")
    return row_of_file(path, root.folder, utterance_id=name, start=start, stop=stop, unit=unit, where=where, **known)


def _segment_of(record: dict[str, Any]) -> tuple[float, float | None, str] | None:
    """(start, stop, unit) of a record, None where they make no sense. SpeechBrain counts samples, NeMo seconds."""
    if "wav" in record and (record.get("start") or record.get("stop")):
        first, last, unit = record.get("start") or 0, record.get("stop") or None, "samples"
    elif record.get("offset") or ("audio_filepath" in record and record.get("duration")):
        first, length, unit = record.get("offset") or 0, record.get("duration") or None, "seconds"
        last = None if length is None else _number(first) + _number(length)
    else:
        return 0.0, None, "seconds"
    start, stop = _number(first), None if last is None else _number(last)
    sensible = 0 <= start < float("inf") and (stop is None or start < stop < float("inf"))
    return (start, stop, unit) if sensible else None


def _text(value: Any) -> str | None:
    """A value as it stands in the table; JSON's true is the word, its null and its lists are no text."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def printable(text: str) -> str:
    """A file name that is not valid UTF-8, made so."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
