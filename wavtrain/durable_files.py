"""Files that are complete or absent (written beside, flushed, then renamed), and a lock that dies with its process."""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from wavtrain import InputError

PATIENCE, BETWEEN_TRIES = 1.0, 0.02  # seconds: who only looks whether a lock is free holds it for a moment
PATIENCE_WITH_HOSTS = 100.0  # a file server keeps the locks of a host that died for up to 90
IN_USE = (errno.EWOULDBLOCK, errno.EACCES)  # the latter on some network file systems
UNNAMED = "another process"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
NEARLY_FULL = 16 << 20  # bytes left on a disk on which writing has just failed

logger = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of locks


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


def read_json_lines(path: str, holding: bytes = b"") -> list[Any]:
    """The values in a file of JSON lines, of those that hold these bytes.

    A last line cut off by a kill is left out, a damaged one before it is refused.
    """
    try:
        with open(path, "rb") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if holding in line and line.strip()]
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


def write_or_say_full(write: Callable[[str], None], folder: str) -> None:
    """torch and safetensors have errors of their own for a full disk."""
    try:
        write(folder)
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        is_full = full in str(error) or (os.path.isdir(folder) and shutil.disk_usage(folder).free <= NEARLY_FULL)
        if isinstance(error, OSError) or not is_full:
            raise
        raise OSError(errno.ENOSPC, full, folder) from error


class Lock:
    """Held until release(), or until this process ends in whatever way: what it forks does not keep it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """A second call does nothing."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
        self._descriptor = -1


def lock(path: str, waits_for_hosts: bool = False) -> Lock | None:
    """A held lock, or None where another process keeps it; one on another host may be gone with it, and waited for."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_ours = _taken(descriptor, path, PATIENCE)
        if not is_ours and waits_for_hosts and not holder(path).endswith((f" on {os.uname().nodename}", UNNAMED)):
            logger.warning("%s: held by %s; if that host is gone its file server lets go within %.0f s, which are waited for",
                           path, holder(path), PATIENCE_WITH_HOSTS)
            is_ours = _taken(descriptor, path, PATIENCE_WITH_HOSTS)
        if is_ours:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    if is_ours:
        with suppress(FileNotFoundError):  # who had it may have removed the file since it was opened
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return Lock(descriptor)
    os.close(descriptor)
    return lock(path, waits_for_hosts) if is_ours else None


def is_locked(path: str) -> bool:
    """Whether a process keeps it; nothing is made."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _taken(descriptor, path, 0.0)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, path: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning("%s: this file system has no locks, so nothing keeps two runs in one directory apart", path)
                return True
            if error.errno not in IN_USE:
                raise InputError(f"{path}: cannot be locked ({error.strerror}): is its file system in order? Give a folder on "
                                 "another one") from error
        if time.monotonic() > deadline:
            return False
        time.sleep(BETWEEN_TRIES)


def holder(path: str) -> str:
    """Who took the lock last, in words."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:  # it may have just gone
        return file.read() or UNNAMED
    return UNNAMED


def _let_go() -> None:
    """In a forked process: its copies of the descriptors would outlive the one that has the locks."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
