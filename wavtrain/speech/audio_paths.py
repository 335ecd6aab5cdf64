"""Paths that tables name: where they begin, and that they stay inside the corpus, whatever links do."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from wavtrain import InputError

HUB_SNAPSHOT = re.compile(r"^(.*/datasets--[^/]+)/snapshots/[^/]+(/.*)?$")


@dataclass(frozen=True)
class AudioRoot:
    """The folder that paths of a table are relative to and have to stay in."""

    folder: str
    beside: str | None = None  # the table's own folder, where they may begin too
    names_from: str | None = None  # the folder that ids are relative to, where that is another

    @property
    def refusal(self) -> str:
        return f"leads outside {self.folder}; --audio_root DIR allows a wider folder"

    def resolve(self, path: str) -> str | None:
        """The path to open, or None where it leads outside."""
        path = re.sub(r"^(\$\{?data_root\}?|\$\{?root\}?|\{data_root\})/?", "", path)
        fulls = [os.path.join(folder, path) for folder in (self.folder, self.beside) if folder is not None]
        inside = [full for full in fulls if os.path.basename(full) != ".." and is_inside(full, self.folder)]
        return next(filter(os.path.exists, inside[:-1]), inside[-1]) if inside else None


def is_inside(path: str, folder: str) -> bool:
    """Whether a path leads into a folder, wherever links on the way lead. A snapshot in the Hub's cache is links into its
    repository, which is what counts then."""
    real = os.path.realpath(path) if os.path.islink(path) else real_place(path)
    home = HUB_SNAPSHOT.sub(r"\1", real_folder(folder))
    return (real + os.sep).startswith(home.rstrip(os.sep) + os.sep)


def refuse_outside(paths: Iterable[str], folder: str, audio_root: str | None) -> None:
    """Tables that are links, and files that a description in the corpus names: they stay in it too, and are on this disk."""
    for path in paths:
        if not is_inside(path, folder) and not (audio_root and is_inside(path, audio_root)):
            raise InputError(f"{path}: {AudioRoot(folder).refusal}")


def real_place(path: str) -> str:
    """The path with the links among its folders followed: one for each file, however it is reached."""
    return os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))


def real_folder(folder: str) -> str:
    return _real_path(os.path.join(os.getcwd(), folder))  # the working directory may change, what is cached not


@lru_cache(maxsize=65536)
def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL in it: nothing can be opened there
        return path
