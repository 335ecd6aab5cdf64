"""What a script makes of command lines: asked of its own parse_arguments, in a process of its own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from wavtrain import InputError
from wavtrain.arguments import read_yaml
from wavtrain.durable_files import write_lines
from wavtrain.sweeps.search_space import FLAG, MOST_CORNERS, SET_BY_THE_SWEEP, Space, candidates, corners


@dataclass(frozen=True)
class Base:
    """The script, what it is given without any trial, and all of its flags with the values that this gives them."""

    script: str
    given: dict[str, Any]
    resolved: dict[str, Any]
    remarks: Sequence[str] = ()  # on combinations that the script refuses

    def flags_of(self, output_dir: str, params: dict[str, Any]) -> dict[str, Any]:
        """Of a run of its own with these arguments."""
        return {**self.given, **params, "output_dir": output_dir}


def read_base(script: str, config: str, words: Sequence[str], space_path: str, space: Space, output_dir: str) -> Base:
    """The base config and the words after --, once the script has taken them and each value that trials may have."""
    if not os.path.isfile(script):
        raise InputError(f"{script}: there is no such script")
    named = [match[1] for match in map(re.compile(r"--([a-zA-Z]\w*)").match, words) if match]
    for name in {*named} & {*SET_BY_THE_SWEEP}:
        raise InputError(f"--{name} after --: is set by the sweep itself: leave it out")
    values, combined = list(candidates(space)), list(corners(space))
    found = _asked(script, ["--config", config, *words, "--output_dir", output_dir],
                   [name for name in (*read_yaml(config), *named) if name not in SET_BY_THE_SWEEP],
                   [*({name: value} for name, value in values), *combined])
    if "error" in found:
        raise InputError(f"{os.path.basename(script)} refuses its arguments: {found['error']}")
    alone, refused = found["faults"][: len(values)], found["faults"][len(values) :]
    is_whole = len(combined) < MOST_CORNERS
    for (name, value), fault in zip(values, alone, strict=True):
        told = {refused[place] for place, corner in enumerate(combined) if corner[name] is value}
        if fault and all(told) and (is_whole or told == {fault}):  # of some combinations, whatever the others are
            raise InputError(f"{FLAG} {space_path}: {name}: {fault}")
    return Base(script, found["given"], found["flags"], _remarks(combined, refused))


def _remarks(combined: Sequence[dict[str, Any]], refused: Sequence[str]) -> list[str]:
    """Trials may fall upon such a combination: they end before they begin, but are counted."""
    faults = [(corner, fault) for corner, fault in zip(combined, refused, strict=True) if fault]
    if not faults:
        return []
    corner, fault = faults[0]
    shown = ", ".join(f"{name} {value}" for name, value in corner.items())
    return [f"note: {len(faults)} of {len(combined)} combinations of ends of the search space are refused, as {shown}: {fault}"]


def write_flags(path: str, flags: dict[str, Any], comment: str = "") -> None:
    """A file for --config."""
    text = yaml.safe_dump(flags, sort_keys=False, allow_unicode=True, width=float("inf"))
    write_lines(path, [*([f"# {comment}"] if comment else []), *text.rstrip("\n").split("\n")])


def environment() -> dict[str, str]:
    """That of a process which finds this package wherever it starts."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _asked(script: str, base_line: list[str], names: list[str], tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The base's `flags`, those that are `given`, `faults` of what is tried in it ("" for none); or the `error` of the base."""
    process = subprocess.run([sys.executable, "-m", __name__, script], input=json.dumps([base_line, names, tried]),
                             capture_output=True, text=True, env=environment())
    if process.returncode:
        said = process.stderr.strip().split("\n")[-1]
        raise InputError(f"{script}: cannot be asked for its flags by parse_arguments(argv): {said}")
    return json.loads(process.stdout)


def _answer(script: str, base_line: list[str], names: list[str], tried: list[dict[str, Any]]) -> dict[str, Any]:
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    description = importlib.util.spec_from_file_location(Path(script).stem, script)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    try:
        flags = json.loads(json.dumps(vars(module.parse_arguments(base_line)), default=str))
    except InputError as error:
        return {"error": str(error)}
    base = Base(script, {name: flags[name] for name in names}, flags)
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "tried.yaml")
        return {"flags": flags, "given": base.given,
                "faults": [_fault(module.parse_arguments, path, base.flags_of(folder, each)) for each in tried]}


def _fault(parse_arguments: Callable[[list[str]], object], path: str, flags: dict[str, Any]) -> str:
    write_flags(path, flags)
    try:
        parse_arguments(["--config", path])
    except InputError as error:
        return str(error).removeprefix(f"--config {path}: ")
    return ""


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        found = _answer(sys.argv[1], *json.load(sys.stdin))
    print(json.dumps(found))
