"""Files that are complete or absent (written beside, flushed, then renamed), and a lock that dies with its process."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import filelock

from wavtrain import InputError

PATIENCE = 1.0  # seconds: who only looks whether a lock is free holds it for a moment


@contextmanager
def written_beside(path: str) -> Iterator[str]:
    """A name to write to; it becomes `path` when the block ends well, and is removed when it does not."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.{os.uname().nodename}-{os.getpid()}.part"
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_folder(os.path.dirname(path) or ".")
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def flush_folder(folder: str) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: str) -> None:
    """Make all that lies in a folder last through a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        flush_folder(parent)


def write_json(path: str, value: Any, indent: int | None = None) -> None:
    """Strict JSON, as a whole."""
    write_lines(path, [json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)])


def write_lines(path: str, lines: Iterator[str] | list[str]) -> None:
    """Lines of UTF-8, as a whole; file names that are not UTF-8 come out as \\udcXX, which is valid inside JSON too."""
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{line}\n" for line in lines)


def read_json(path: str) -> Any:
    """The value in a file, None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def read_json_lines(path: str) -> list[Any]:
    """The values in a file of JSON lines; a last line cut off by a kill is left out, a damaged one before it is refused."""
    try:
        with open(path, "rb") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except FileNotFoundError:
        return []
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number != lines[-1][0]:
                raise InputError(f"{path}: line {number} is not JSON: repair or remove it") from error
    return values


def lock(path: str) -> filelock.BaseFileLock | None:
    """A held lock, or None where another process keeps it. It ends with release() or with this process."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    held = filelock.FileLock(path)
    try:
        held.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        return None
    return held
