"""Manifest files -> rows: csv, tsv, jsonl with named columns, SpeechBrain's csv and json, NeMo's jsonl, fairseq's tsv."""

import os
from collections.abc import Iterator
from itertools import chain, islice

from wavtrain import InputError
from wavtrain.rows import AudioRoot, Columns, Rejection, Row, row_of_file, row_of_record
from wavtrain.tables import Record, read_lines, read_table

RECORDS_TO_LOOK_AT = 1000  # JSON records need not all have the same keys


def rows_of_table(path: str, columns: Columns, audio_root: str | None = None) -> Iterator[Row | Rejection]:
    """The rows of one manifest file, in its order."""
    if path.lower().endswith(".tsv") and _is_fairseq(path):
        yield from _rows_of_fairseq(path, audio_root)
        return
    records = read_table(path)
    first = list(islice(records, RECORDS_TO_LOOK_AT))
    names = list(dict.fromkeys(name for record in first for name in record.values))
    if not names:
        raise InputError(f"{path}: has no rows that could be read{_first_fault(first)}")
    columns = columns.among(names, path)
    root = AudioRoot(audio_root or _folder_of_audio(path, first, columns))
    for record in chain(first, records):
        where = f"{path} line {record.line}"
        if record.fault:
            yield Rejection(where, "malformed_row", f"{where}: {record.fault}")
        else:
            yield row_of_record(record.values, columns, root, where)


def _first_fault(records: list[Record]) -> str:
    return f" (line {records[0].line} {records[0].fault})" if records else ""


def _folder_of_audio(path: str, records: list[Record], columns: Columns) -> str:
    """The table's own folder, or the clips/ in it where Common Voice keeps what its tables name."""
    folder = os.path.dirname(path) or "."
    clips = os.path.join(folder, "clips")
    name = next((record.values.get(columns.audio) for record in records if not record.fault), None)
    is_there = isinstance(name, str) and os.path.exists(os.path.join(clips, name))
    return clips if is_there and not os.path.exists(os.path.join(folder, name)) else folder


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
    root = AudioRoot(audio_root or (beside if os.path.isdir(beside) else written))
    if not os.path.isdir(root.folder):
        raise InputError(f"{path} line 1: the folder {root.folder} is not there; --audio_root says where it is now")
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
