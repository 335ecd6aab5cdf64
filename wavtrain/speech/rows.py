"""What every corpus becomes: rows, one for each utterance, or the reason why there is none; names of columns."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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


def printable(text: str) -> str:
    """A file name that is not valid UTF-8, made so."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def corpus_name(folder: str) -> str:
    """What a corpus is called: its folder, or the last part of its Hub id."""
    return printable(os.path.basename(os.path.abspath(folder)))
