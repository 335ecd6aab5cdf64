"""What the documents say can be done: every command runs on small stand-ins or says what it needs, every flag and file exists.

A new command in README, docs, a script's docstring or a config is run here by itself. If it fails, give it the data it names in
documents.make_world, its place in documents.ORDER if others need what it makes, and in documents.LITTLE what makes it small.
If it cannot run here, say so where it stands: `# needs the Hub`, `# needs GPUs`, `# needs an hour`; then it must only parse.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import documents
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT
from test_architecture import SCRIPTS, flags
from torch.distributed.run import get_args_parser

COMMANDS = documents.commands()
TO_RUN = sorted({command.text: command for command in COMMANDS if not command.needs}.values(), key=documents.turn)
OF_SLURM = {"wrap", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "signal"}
OF_OTHERS = {"help", "cov", "hook-type", "target"} | OF_SLURM
PATHS = re.compile(r"\b(?:docs|tests|configs|wavtrain|benchmarks|demo_corpus)/[\w./-]+\.(?:md|py|yaml|json)\b")


def test_every_command_of_the_documents_runs(tmp_path, monkeypatch):
    """One story in one folder: each in its turn, then the Python; all failures are told at the end."""
    documents.make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    programs = [(f"{command.place}: {command.text}", lambda command=command: documents.run(command, tmp_path))
                for command in TO_RUN if command.script or command.module]
    programs += [(place, lambda code=code: exec(code, {})) for place, code in documents.python_blocks()]
    failed = []
    for name, program in programs:
        try:
            program()
        except (Exception, SystemExit) as error:
            failed.append(f"{name}\n    {type(error).__name__}: {str(error)[:300]}")
    assert not failed, "the head of this file says what to do\n" + "\n".join(failed)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_every_command_is_known(command):
    """Script, module, flags and launcher exist; what does not run here parses."""
    first = command.words[0]
    if first == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(command.words[1:]) <= targets
    elif first == "pip":
        assert command.needs
        assert all((ROOT / word).is_file() for word in command.words if word.endswith(".txt"))
    elif command.module:
        assert importlib.util.find_spec(command.module)
    elif command.script:
        documents.check_launcher(command)
        if command.script.startswith("benchmarks/"):
            assert command.needs
            source = "".join((ROOT / "benchmarks" / name).read_text() for name in
                             (Path(command.script).name, "side_by_side.py", "communication.py"))
            assert all(f'"{word}"' in source for word in command.argv if word.startswith("--"))
        elif command.needs:
            importlib.import_module(command.script.removesuffix(".py")).parse_arguments(documents.at_home(command.argv))
    else:
        assert command.needs, "neither a script of this repository nor marked with `# needs ...`"


def known_flags() -> set[str]:
    """Ours, and those of the programs that the documents call."""
    known = set(OF_OTHERS).union(*map(flags, SCRIPTS), {"config"})
    for parser in (launch_command_parser(), get_args_parser()):
        known |= {option.lstrip("-").replace("-", "_") for action in parser._actions for option in action.option_strings}
    ours = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "wavtrain" / "recognition").glob("*.py")]
    return known | set(re.findall(r'"--(\w+)"', "".join(path.read_text() for path in ours)))


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_every_flag_and_file_of_a_document_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", text))
    assert not named - known_flags()
    assert not [path for path in PATHS.findall(text) if not (ROOT / path).exists()]


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
