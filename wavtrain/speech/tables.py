"""csv, tsv, jsonl, json and plain lines, read strictly as text: every value as it stands, every fault with its line.

A fault of one row (too few fields, a line that is not JSON) is yielded in its place, so that the rest can be used.
A fault that makes the rest doubtful (encoding, an unclosed quote, a last line cut off, no header) is an InputError.
"""

import csv
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wavtrain import InputError

ENDINGS = (".csv", ".tsv", ".jsonl", ".json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


# 007 and 1.0 stay what they are; of two equal keys none is dropped
_VERBATIM = {"parse_int": str, "parse_float": str, "parse_constant": str, "object_pairs_hook": _object}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table, by column name; or what is wrong with it."""

    line: int
    values: dict[str, Any]
    fault: str | None = None


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, with their line ends; only a line feed ends one."""
    number = 0
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise InputError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(f"{path}: is UTF-16; save it as UTF-8")
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if "\0" in line:
                    raise InputError(f"{path} line {number}: holds a NUL character: not a text file, or damaged")
                yield number, line
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02X}"
        raise InputError(f"{path} line {number}: is not UTF-8 ({found}); convert it (iconv -f ISO-8859-1 -t UTF-8, say) "
                         "or repair the line") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def read_delimited(path: str) -> Iterator[Record]:
    """csv with quotes as RFC 4180 has them; tsv without quotes, where a quote is a letter like any other."""
    is_csv = path.lower().endswith(".csv")
    style = {"delimiter": ",", "strict": True} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(1 << 24)
    reader = csv.reader((line for _, line in read_lines(path)), **style)
    header: list[str] = []
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                yield Record(line, dict(zip(header, fields, strict=True)))
            elif fields:
                yield Record(line, {}, f"has {len(fields)} fields where the header has {len(header)}")
            line = reader.line_num + 1
    except csv.Error as error:
        advice = ("a carriage return inside the line: are its line ends those of old Macs?" if "new-line" in str(error)
                  else f"{error}: is a quote in this row not closed, or not doubled?")
        raise InputError(f"{path} line {line}: {advice}") from error


def _check_header(path: str, header: list[str]) -> None:
    if not any(header):
        raise InputError(f"{path}: is empty; its first line must name the columns")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InputError(f"{path}: names the column {sorted(twice)[0]!r} twice")


def read_jsonl(path: str) -> Iterator[Record]:
    """One JSON object a line."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line, **_VERBATIM)
            fault = None if isinstance(values, dict) else "is not a JSON object"
        except (ValueError, RecursionError) as error:
            if not line.endswith("\n") and isinstance(error, json.JSONDecodeError):
                raise InputError(f"{path} line {number}: the last line is cut off: is the file complete?") from error
            values, fault = {}, f"is not JSON ({error})"
        yield _record(number, values if fault is None else {}, fault)


def read_json(path: str) -> Iterator[Record]:
    """One JSON value: records by id (SpeechBrain), or a list of them. Files of one object a line are often named so too."""
    if _first_line_is_an_object(path):
        yield from read_jsonl(path)
        return
    text = "".join(line for _, line in read_lines(path))
    try:
        table = json.loads(text, **_VERBATIM)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} line {getattr(error, 'lineno', 1)}: is not JSON ({error})") from error
    if not isinstance(table, (dict, list)):
        raise InputError(f"{path}: holds neither records by id nor a list of records")
    pairs = table.items() if isinstance(table, dict) else enumerate(table)
    for number, (key, values) in enumerate(pairs, start=1):
        fault = None if isinstance(values, dict) else f"entry {key!r} is not an object"
        named = {"id": key} if isinstance(key, str) else {}
        yield _record(number, {**named, **values} if fault is None else {}, fault)


def _first_line_is_an_object(path: str) -> bool:
    for _, line in read_lines(path):
        if not line.strip():
            continue
        try:
            first = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(first, dict) and not all(isinstance(value, dict) for value in first.values())
    raise InputError(f"{path}: is empty")


def _record(number: int, values: dict[str, Any], fault: str | None) -> Record:
    """A record of JSON; \\ud800 alone is JSON, but no text that could be stored."""
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Record(number, {}, "holds half of a surrogate pair, which is no character")
    return Record(number, values, fault)


def read_table(path: str) -> Iterator[Record]:
    """The records of a table, by its ending."""
    ending = path.lower().rsplit(".", 1)[-1]
    return {"jsonl": read_jsonl, "json": read_json}.get(ending, read_delimited)(path)
