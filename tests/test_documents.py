"""What the documents say can be done: every command runs on small stand-ins or says what it needs, every flag and file exists.

A new command in README, docs, a script's docstring or a config is run here by itself. If it fails, give it the data it names in
documents.make_world, its place in documents.ORDER if others need what it makes, and in documents.LITTLE what makes it small.
If it cannot run here, say so where it stands: `# needs the Hub`, `# needs GPUs`, `# needs an hour`; then it must only parse.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import corpora
import documents
import pytest
import soundfile
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT, sound
from test_architecture import SCRIPTS, flags
from test_run_pretraining import OF_TRANSFORMERS
from torch.distributed.run import get_args_parser

import run_preprocessing

pytestmark = pytest.mark.usefixtures("quick_runs")
COMMANDS = documents.commands()
TO_RUN = sorted({command.text: command for command in COMMANDS if not command.needs}.values(), key=documents.turn)
OF_SLURM = {"wrap", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "signal"}
OF_OTHERS = {"help", "hook-type", "repo-type", "local-dir"} | OF_SLURM
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
        assert command.needs
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(command.words[1:]) <= targets
    elif first == "pip":
        assert command.needs
        assert all((ROOT / word).is_file() for word in command.words if word.endswith(".txt"))
    elif command.module:
        source = Path(importlib.util.find_spec(command.module).origin).read_text(encoding="utf-8")
        assert re.search(r'\nif __name__ == "__main__":\n    run_as_script\(lambda: .*main\(sys.argv\[1:\]\)\)?\)\n$', source)
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
    ours = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "wavtrain").rglob("*.py")]
    return known | set(re.findall(r'"--(\w+)"', "".join(path.read_text() for path in ours)))


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_every_flag_and_file_of_a_document_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", text))
    assert not named - known_flags()
    assert not [path for path in PATHS.findall(text) if not (ROOT / path).exists()]
    there = {path.name for path in [*SCRIPTS, *documents.BENCHMARKS, *(ROOT / "wavtrain").rglob("*.py")]}
    assert not set(re.findall(r"\b(?:run|bench)_\w+\.py\b", text)) - there - {"run_speech_recognition_ctc.py"}
    assert all(importlib.util.find_spec(module) for module in re.findall(r"python -m (wavtrain[\w.]*\w)", text))


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The rows of a page's tables by the text before them."""
    found, title = {}, ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            found.setdefault(title, []).append(re.split(r"\s*\|\s*", line)[1:-1])
        elif line.startswith(("#", "Your own")):
            title = line.strip("# ")
    return {title: rows[1:] for title, rows in found.items()}


COMING = tables(ROOT / "docs" / "from_hf_and_fairseq.md")


def test_all_flags_of_transformers_example_are_explained():
    rows = COMING["run_wav2vec2_pretraining_no_trainer.py of transformers"]
    theirs = [name for row in rows for name in row[0].split(", ")]
    assert sorted(theirs) == sorted(OF_TRANSFORMERS)
    for row in rows:  # under the same names
        assert row[1] == ", ".join(f"`--{name}`" for name in row[0].split(", "))


@pytest.mark.parametrize(("title", "scripts"), [
    ("run_wav2vec2_pretraining_no_trainer.py of transformers", "run_wav2vec2_pretraining_no_trainer"),
    ("run_speech_recognition_ctc.py of transformers", "run_ctc_finetuning"),
    ("Your own, key by key; samples divided by 16,000 are seconds:", "run_wav2vec2_pretraining_no_trainer run_ctc_finetuning")])
def test_what_flags_have_become_exists(title, scripts):
    known = set().union(*(flags(ROOT / f"{script}.py") for script in scripts.split())) | {"num_processes"}
    named = {flag for row in COMING[title] for flag in re.findall(r"--(\w+)", " ".join(row[1:2]))}
    assert len(named) > 15
    assert not named - known


def test_every_config_of_fairseq_has_its_place():
    ours = {name for _, names in COMING["fairseq"] for name in names.split(", ")}
    all_of_ours = {path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem.startswith(("wav2vec2", "xlsr", "ctc"))}
    assert ours == all_of_ours - {"ctc_connected_digits", "ctc_w2v_bert_common_voice"}


def test_what_troubleshooting_quotes_is_said():
    """By the scripts, in these words; and every remedy names something to use, or says that there is nothing to do."""
    sources = [*ROOT.glob("run_*.py"), *(ROOT / "wavtrain").rglob("*.py")]
    said = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text(encoding="utf-8") for path in sources))
    rows = [row for table in tables(ROOT / "docs" / "troubleshooting.md").values() for row in table]
    assert len(rows) > 60
    assert not [quote for row in rows for quote in re.findall(r'"([^"]+)"', row[0]) if quote not in said]
    assert not [row for row in rows if not row[-1]]


def write_form(name: str, kind: str):
    return lambda world: corpora.FORMS[kind].write(world / name)


def write_segments(world: Path) -> None:
    corpora.write_clips(world, "all.flac")
    corpora.write_table(world / "segments.csv", [["audio", "start", "end"], *[["all.flac", "0", "0.03"]] * 3])


def write_table_of_clips(world: Path) -> None:
    names = [f"{name}.flac" for name in corpora.TEXTS]
    table = [["path", "text"], *[[name, "ONE"] for name in names]]
    corpora.write_table(corpora.write_clips(world / "clips") / "train.csv", table)


def write_beside(form: str, written: str, named: str):
    """A form as its manifest under the name that the page has, and the audio in /data."""
    def write(world: Path) -> None:
        manifest = corpora.FORMS[form].write(world / "data" / written)
        (world / named).parent.mkdir(exist_ok=True)
        manifest.rename(world / named)
    return write


DATA = {  # writes what the example of a form names, mostly three utterances
    "folder of audio": write_form("my_recordings", "bare folder"),
    "audio files": lambda world: [soundfile.write(world / name, sound(1), 16_000) for name in ("one.wav", "two.mp3")],
    "audiofolder": lambda world: [write_form(f"demo_corpus/{part}", "metadata.csv")(world) for part in ("train", "validation")],
    "LibriSpeech's tree": write_form("LibriSpeech/train-clean-100", "LibriSpeech"),
    "parquet, arrow, save_to_disk": write_form("folder_of_parquet", "parquet"),
    "stream": write_form("folder_of_parquet", "parquet"),
    "csv, tsv, jsonl": write_table_of_clips,
    "Common Voice": write_form("cv-corpus/tr", "Common Voice"),
    "fairseq tsv": write_beside("fairseq", "LibriSpeech", "manifests/train.tsv"),
    "SpeechBrain csv, json": write_beside("SpeechBrain json", "", "train.json"),
    "NeMo jsonl": write_form("", "NeMo"),
    "any table of segments": write_segments,
}


@pytest.mark.parametrize("row", tables(ROOT / "docs" / "data.md")["Forms"], ids=lambda row: row[0])
def test_every_form_of_corpus_can_be_had_as_its_example_says(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, example, what = row
    argv = example.strip("`").replace("/data", str(tmp_path / "data")).split()
    limits = ["--min_duration_in_seconds", "0.025", "--preprocessing_num_workers", "1"]
    if "needs the Hub" in what:
        run_preprocessing.parse_arguments([*argv, "--output_dir", "prepared/mine"])
        return
    if name == "prepared directory":
        write_form("my_recordings", "bare folder")(tmp_path)
        run_preprocessing.main(["--dataset_name", "my_recordings", *limits, "--output_dir", argv[1]])
    else:
        DATA[name](tmp_path)
    report = run_preprocessing.main([*argv, *limits, "--output_dir", "prepared/mine"])
    assert report["rejected"] == {}
    assert sum(split["clips"] for split in report["splits"].values()) == {"audio files": 2, "audiofolder": 6}.get(name, 3)
