"""What a script makes of command lines: asked of its own parse_arguments, in a process of its own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from wavtrain import InputError
from wavtrain.arguments import read_yaml
from wavtrain.durable_files import write_lines
from wavtrain.sweeps.search_space import FLAG, SET_BY_THE_SWEEP, Space, candidates


@dataclass(frozen=True)
class Base:
    """The script, what it is given without any trial, and all of its flags with the values that this gives them."""

    script: str
    given: dict[str, Any]
    resolved: dict[str, Any]

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
    values = list(candidates(space))
    with TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{number}.yaml") for number in range(len(values))]
        for path, (name, value) in zip(paths, values, strict=True):
            write_flags(path, {name: value})
        base_line = ["--config", config, *words, "--output_dir", output_dir]
        base, *tried = _asked(script, [base_line, *(["--config", path] for path in paths)])
    if "error" in base:
        raise InputError(f"{os.path.basename(script)} refuses its arguments: {base['error']}")
    for path, (name, _), answer in zip(paths, values, tried, strict=True):
        fault = answer.get("error", "").removeprefix(f"--config {path}: ")
        if fault != answer.get("error", ""):  # of this flag alone; others are of what it is given with
            raise InputError(f"{FLAG} {space_path}: {name}: {fault}")
    resolved = base["flags"]
    given = {name: resolved[name] for name in (*read_yaml(config), *named) if name not in SET_BY_THE_SWEEP}
    return Base(script, given, resolved)


def write_flags(path: str, flags: dict[str, Any], comment: str = "") -> None:
    """A file for --config."""
    text = yaml.safe_dump(flags, sort_keys=False, allow_unicode=True, width=float("inf"))
    write_lines(path, [*([f"# {comment}"] if comment else []), *text.rstrip("\n").split("\n")])


def environment() -> dict[str, str]:
    """That of a process which finds this package wherever it starts."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _asked(script: str, command_lines: list[list[str]]) -> list[dict[str, Any]]:
    """For each of them {"flags": all with their values} or {"error": why it is refused}."""
    process = subprocess.run([sys.executable, "-m", __name__, script], input=json.dumps(command_lines), capture_output=True,
                             text=True, env=environment())
    if process.returncode:
        said = process.stderr.strip().split("\n")[-1]
        raise InputError(f"{script}: cannot be asked for its flags by parse_arguments(argv): {said}")
    return json.loads(process.stdout)


def _answers(script: str, command_lines: list[list[str]]) -> list[dict[str, Any]]:
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    description = importlib.util.spec_from_file_location(Path(script).stem, script)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    answers = []
    for words in command_lines:
        try:
            answers.append({"flags": vars(module.parse_arguments(words))})
        except InputError as error:
            answers.append({"error": str(error)})
    return answers


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        found = _answers(sys.argv[1], json.load(sys.stdin))
    print(json.dumps(found, default=str))
