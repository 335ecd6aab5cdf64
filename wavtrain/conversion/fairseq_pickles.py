"""Checkpoints of fairseq, read without running anything that they name.

Beside tensors they hold settings, as objects of argparse, omegaconf and fairseq itself. torch reads the tensors and nothing
else; each class or function that the pickle names is replaced by one that only keeps what it is given.
"""

import os
import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, in which torch writes
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from wavtrain import InputError

BEGINNINGS = (b"PK", b"\x80")  # of zip archives and of pickles, which older ones are
PICKLES_OF_OLD_FILES = 4  # before torch 1.6: a number, a version, the machine, the checkpoint
OF_DAMAGE = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RecursionError, RuntimeError,
             TypeError, ValueError, UnpicklingError, struct.error, zipfile.BadZipFile)
UNSET = ("???", "${")  # how omegaconf writes what is missing or elsewhere


class Checkpoint(NamedTuple):
    """Tensors by their names, what the model was made with, what its encoder was made with, and its output's symbols."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    encoder_settings: dict[str, Any]
    symbols: tuple[str, ...]


class _Inert:
    """In place of whatever a pickle names."""

    def __new__(cls, *given: Any) -> "_Inert":
        made = super().__new__(cls)
        made.given, made.state = given, {}
        return made

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _empty(*given: Any) -> dict[Any, Any]:
    """In place of defaultdict, into which torch lets nothing be put."""
    return {}


def read_checkpoint(path: str) -> Checkpoint:
    """The tensors, which may still lie on disk, and the settings as plain values."""
    try:
        with open(path, "rb") as file:
            if not file.read(2).startswith(BEGINNINGS):
                raise InputError(f"{path}: is no checkpoint, as torch.save has not written it: name the .pt of a fairseq run")
        with torch.serialization.safe_globals(_stand_ins(path)):
            read = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        tensors = read.get("model") if isinstance(read, dict) else None
        if not isinstance(tensors, dict) or not tensors or not all(isinstance(each, Tensor) for each in tensors.values()):
            raise InputError(f"{path}: is no checkpoint of fairseq: there are no tensors under `model`")
        own = _flat(read.get("cfg") or read.get("args"))
        of_encoder = _flat(own.get("w2v_args")) or own
        return Checkpoint(tensors, _scalars(own), _scalars(of_encoder), _symbols(read.get("task_state")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except OF_DAMAGE as error:
        raise InputError(f"{path}: is damaged, or would run programs of this machine; it was not read "
                         f"({type(error).__name__})") from error


def _stand_ins(path: str) -> list[tuple[Callable[..., Any], str]]:
    """For each global of the pickles in a file; torch asks for them only where it knows none of its own."""
    names = set()
    for stream in _pickles(path):
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL":
                written = tuple(argument.split(" ", 1))
                meant = NAME_MAPPING.get(written, (IMPORT_MAPPING.get(written[0], written[0]), written[1]))
                names |= {".".join(written), ".".join(meant)}  # torch knows not all that Python knows of Python 2
    return [(_empty if name == "collections.defaultdict" else _Inert, name) for name in names]


def _pickles(path: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from map(archive.open, (name for name in archive.namelist() if os.path.basename(name) == "data.pkl"))
    else:
        with open(path, "rb") as file:
            yield from [file] * PICKLES_OF_OLD_FILES  # one after the other


def _flat(value: Any) -> dict[str, Any]:
    """Settings of task and model at once, as older versions have them."""
    fields = _fields(value)
    task, model = (_fields(fields.get(name)) for name in ("task", "model"))
    return {**task, **{name: value for name, value in model.items() if _is_set(value)}} if model else fields


def _fields(value: Any) -> dict[str, Any]:
    """Of a dict, a Namespace or omegaconf's DictConfig, one level deep."""
    value = _held(value)
    if isinstance(value, _Inert):
        value = value.state.get("_content", value.state)
    return value if isinstance(value, dict) else {}


def _scalars(fields: dict[str, Any]) -> dict[str, Any]:
    values = {name: _held(value) for name, value in fields.items() if _is_set(value)}
    values = {name: next(iter(value.given), None) if isinstance(value, _Inert) else value  # what an Enum stands for
              for name, value in values.items()}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


def _is_set(value: Any) -> bool:
    value = _held(value)
    return value is not None and not (isinstance(value, str) and value.startswith(UNSET))


def _held(value: Any) -> Any:
    """What a node of omegaconf holds; other values as they are."""
    return value.state["_val"] if isinstance(value, _Inert) and "_val" in value.state else value


def _symbols(task_state: Any) -> tuple[str, ...]:
    """Of the dictionary that newer versions keep with a recogniser."""
    symbols = _fields(_fields(task_state).get("target_dictionary")).get("symbols")
    return tuple(map(str, symbols)) if isinstance(symbols, list) else ()
