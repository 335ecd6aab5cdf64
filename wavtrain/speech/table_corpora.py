"""Manifest files -> rows: csv, tsv, jsonl with named columns, SpeechBrain's csv and json, NeMo's jsonl, fairseq's tsv."""

import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from wavtrain import InputError
from wavtrain.speech.audio_paths import AudioRoot, is_inside
from wavtrain.speech.rows import Columns, Rejection, Row, printable, row_of_file
from wavtrain.speech.tables import Record, read_lines, read_table

RECORDS_TO_LOOK_AT = 1000  # JSON records need not all have the same keys


def rows_of_table(
    path: str, columns: Columns, audio_root: str | None = None, names_from: str | None = None
) -> Iterator[Row | Rejection]:
    """The rows of one manifest file, in its order; their ids are relative to the folder of the audio, or to `names_from`."""
    if path.lower().endswith(".tsv") and _is_fairseq(path):
        yield from _rows_of_fairseq(path, audio_root)
        return
    records = read_table(path)
    first = list(islice(records, RECORDS_TO_LOOK_AT))
    names = list(dict.fromkeys(name for record in first for name in record.values))
    if not names:
        raise InputError(f"{path}: has no rows that could be read{_first_fault(first)}")
    columns = columns.among(names, path)
    folder = _folder_of_audio(path, first, columns)
    root = AudioRoot(audio_root, beside=folder) if audio_root else AudioRoot(folder, names_from=names_from)
    for record in chain(first, records):
        where = f"{path} line {record.line}"
        if record.fault:
            yield Rejection(where, "malformed_row", f"{where}: {record.fault}")
        else:
            yield row_of_record(record.values, columns, root, where)


def _first_fault(records: list[Record]) -> str:
    return next((f" (line {record.line} {record.fault})" for record in records if record.fault), "")


def _folder_of_audio(path: str, records: list[Record], columns: Columns) -> str:
    """The table's own folder, or the clips/ in it where Common Voice keeps what its tables name."""
    folder = os.path.dirname(path) or "."
    clips = os.path.join(folder, "clips")
    for record in records if os.path.isdir(clips) else ():
        name = record.values.get(columns.audio)
        for place in (folder, clips):
            if isinstance(name, str) and os.path.exists(os.path.join(place, name)):
                return place
    return folder


def _is_fairseq(path: str) -> bool:
    """fairseq's tsv begins with the root folder alone, every other tsv with the names of its columns."""
    first = next(read_lines(path), None)
    if first is None:
        raise InputError(f"{path}: is empty; its first line must name the columns, or be fairseq's root folder")
    return "\t" not in first[1]


def _rows_of_fairseq(path: str, audio_root: str | None) -> Iterator[Row | Rejection]:
    """Line 1 the root folder, then `path<TAB>samples`; words beside it in .wrd, or letters in .ltr, line for line."""
    lines = read_lines(path)
    written = next(lines)[1].strip()
    beside = os.path.join(os.path.dirname(path), written)
    own = beside if os.path.isdir(beside) else written
    is_allowed = audio_root is None or (os.path.isdir(own) and is_inside(own, audio_root))
    root = AudioRoot(own if is_allowed else audio_root)
    if not os.path.isdir(root.folder):
        sign = next((sign for sign in ",;|" if sign in written), None)
        if sign:
            raise InputError(f"{path} line 1: names no columns with tabs between; it seems to be separated by {sign!r}")
        raise InputError(f"{path} line 1: the folder {root.folder} is not there; --audio_root says where it is now")
    if not audio_root and not is_inside(root.folder, os.path.dirname(path) or "."):
        raise InputError(f"{path} line 1: the folder {root.folder} is not in that of the table: --audio_root {root.folder} "
                         "allows it")
    texts = _texts_beside(path)
    for number, line in lines:
        where = f"{path} line {number}"
        text = next(texts) if texts else None
        name, tab, samples = line.rstrip("\r\n").partition("\t")
        audio = root.resolve(name)
        if not name or not tab or not samples.strip().isdigit():
            yield Rejection(where, "malformed_row", f"{where}: is not a path, a tab and a number of samples")
        elif audio is None:
            yield Rejection(name, "outside_folder", f"{where}: {root.refusal}")
        else:
            yield row_of_file(audio, root.folder, text=text, where=where)


def _texts_beside(path: str) -> Iterator[str] | None:
    """Transcripts of a fairseq tsv in its order, None where there are none."""
    stem = os.path.splitext(path)[0]
    found = next((stem + ending for ending in (".wrd", ".ltr") if os.path.isfile(stem + ending)), None)
    if found is None:
        return None
    num_rows, num_texts = (sum(1 for _ in read_lines(name)) for name in (path, found))
    if num_texts != num_rows - 1:
        raise InputError(f"{found}: has {num_texts} lines for the {num_rows - 1} files of {os.path.basename(path)}")
    texts = (line.rstrip("\r\n") for _, line in read_lines(found))
    return texts if found.endswith(".wrd") else (_words_of_letters(text) for text in texts)


def _words_of_letters(letters: str) -> str:
    """`H E L L O | Y O U |` -> `HELLO YOU`."""
    return "".join(letters.split()).replace("|", " ").strip()


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
    name = _text(record.get(columns.id)) or printable(os.path.relpath(path, root.names_from or root.folder))
    if not _text(record.get(columns.id)) and (start or (stop is not None and unit == "samples")):
        name += f"-{start:.15g}" + ("" if stop is None else f"-{stop:.15g}")
    return row_of_file(path, root.folder, utterance_id=name, start=start, stop=stop, unit=unit, where=where, **known)


def _segment_of(record: dict[str, Any]) -> tuple[float, float | None, str] | None:
    """(start, stop, unit), None where they make no sense. `start` and `stop` count samples (SpeechBrain), all else seconds."""
    if record.get("stop") or ("wav" in record and record.get("start")):
        first, last, unit = record.get("start") or 0, record.get("stop") or None, "samples"
    elif record.get("end"):
        first, last, unit = record.get("start") or 0, record["end"], "seconds"
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
