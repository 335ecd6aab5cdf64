"""The commands of README, docs, docstrings and configs, as a reader would copy them, and a folder in which they can run.

A line `# needs ...` (the Hub, GPUs, minutes, ...) marks the command it ends, or the rest of its block if it stands alone.
"""

import ast
import importlib
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import soundfile
import training_runs
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from conftest import ROOT, sound, write_model
from torch.distributed.run import get_args_parser

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / ".github").rglob("*.md"))]
SCRIPTS = sorted(ROOT.glob("run_*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PROGRAMS = "python accelerate torchrun pip make for srun sbatch ffmpeg git pre-commit hf wandb tensorboard mlflow".split()
TEXTS = "zero one|two three|four five six|seven|eight nine|one two".split("|")


@dataclass(frozen=True)
class Command:
    """One command of a document."""

    place: str  # README.md:12
    text: str
    needs: str  # what the reader must have, empty if a laptop will do

    @property
    def words(self) -> list[str]:
        """Without the loop around it and the quotes of a shell within the shell; a variable is 1."""
        words = shlex.split(re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", self.text.removesuffix("; done").split("; do ")[-1]))
        inner = [words[at + 1] for at, word in enumerate(words) if word == "--wrap" or (word == "-c" and "bash" in words)]
        words = shlex.split(inner[0]) if inner else words
        return [word for at, word in enumerate(words) if at or "=" not in word]

    @property
    def script(self) -> str | None:
        """Of this repository."""
        return next((word for word in self.words if re.fullmatch(r"(benchmarks/)?\w+\.py", word)), None)

    @property
    def module(self) -> str | None:
        """Of this repository, called with python -m."""
        return self.words[2] if self.words[1:2] == ["-m"] and self.words[2].startswith("wavtrain") else None

    @property
    def argv(self) -> list[str]:
        """What comes after the script or the module."""
        return self.words[self.words.index(self.script or self.module) + 1 :]


def commands() -> list[Command]:
    """Of all documents, in the order of reading."""
    found = [command for page in PAGES for command in _of_blocks(page.relative_to(ROOT), page.read_text(encoding="utf-8"))]
    for script in SCRIPTS:
        found += _of_blocks(Path(script.name), importlib.import_module(script.stem).__doc__)
    for bench in BENCHMARKS:
        docstring = ast.get_docstring(ast.parse(bench.read_text(encoding="utf-8")), clean=False) or ""
        found += _of_blocks(bench.relative_to(ROOT), docstring, "minutes of a quiet machine")
    for config in CONFIGS:
        found += _of_config(config.relative_to(ROOT), config.read_text(encoding="utf-8"))
    return found


def _of_blocks(place: Path, text: str, needs_of_all: str = "") -> list[Command]:
    found, fenced, marked = [], False, needs_of_all
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith("    "):
            marked = needs_of_all
            continue
        line = line.strip().removeprefix("$ ")
        while line.endswith("\\"):
            line = f"{line[:-1].strip()} {next(lines)[1].strip()}"
        if line.startswith("#"):
            marked = line.partition("# needs ")[2] or marked
        elif _first_word(line) in PROGRAMS:
            text, _, comment = line.partition(" # ")
            needs = comment.strip().removeprefix("needs ") if comment.strip().startswith("needs ") else marked
            found.append(Command(f"{place}:{number}", text.strip(), needs))
    return found


def _of_config(place: Path, text: str) -> list[Command]:
    """What it needs stands in its head and is for all commands there."""
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    needs = next((line.removeprefix("needs ") for line in head if line.startswith("needs ")), "")
    found = _of_blocks(place, "\n".join(f"    {line}" for line in head), needs)
    return [command for command in found if ".py" in command.text]


def _first_word(line: str) -> str:
    return next((word for word in line.split() if not re.match(r"[A-Z_]+=", word)), "")


def python_blocks() -> list[tuple[str, str]]:
    """(place, code) of the Python in README and docs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE):
            lines = re.sub(r"^    ", "", block[0].strip("\n"), flags=re.MULTILINE)
            if code := re.search(r"(?:^|\n\n)((?:import|from) \w.*)", lines, re.DOTALL):
                found.append((f"{page.relative_to(ROOT)}:{text[:block.start()].count(chr(10)) + 1}", code[1]))
    return found


def check_launcher(command: Command) -> None:
    """What stands between the launcher and the script is known to the launcher."""
    words = command.words
    upto = words[: words.index(command.script) + 1] if command.script else words
    if words[:2] == ["accelerate", "launch"]:
        launch_command_parser().parse_args(upto[2:])
    elif words[:3] == ["python", "-m", "torch.distributed.run"]:
        get_args_parser().parse_args(upto[3:])
    else:
        assert words[0] in ("python", "make", "pip"), f"who is {words[0]}?"


LITTLE = {  # what makes a command of the documents small; the last of two equal flags counts
    "run_preprocessing": "--preprocessing_num_workers 1",
    "run_wav2vec2_pretraining_no_trainer": "--max_train_steps 2 --num_warmup_steps 0 --gradient_accumulation_steps 1 "
    "--max_batch_duration_in_seconds 4 --dataloader_num_workers 0 --preprocessing_num_workers 1 --logging_steps 1 "
    "--saving_steps 2 --eval_steps 2 --report_to none",
    "run_ctc_finetuning": "--max_train_steps 2 --num_warmup_steps 0 --gradient_accumulation_steps 1 "
    "--max_batch_duration_in_seconds 4 --dataloader_num_workers 0 --preprocessing_num_workers 1 --logging_steps 1 "
    "--saving_steps 2 --eval_steps 2 --report_to none",
    "run_ctc_decoding": "--dataloader_num_workers 0 --preprocessing_num_workers 1 --decoding_num_workers 0",
}
ORDER = ["run_preprocessing.py", "run_wav2vec2_pretraining_no_trainer.py", "wavtrain.reports", "run_ctc_finetuning.py",
         "wavtrain.recognition.ngrams", "run_ctc_decoding.py", "wavtrain.recognition.scores"]  # then the others


def at_home(argv: list[str]) -> list[str]:
    """Configs are found wherever the tests are called from."""
    return [str(ROOT / word) if word.startswith("configs/") else word for word in argv]


def turn(command: Command) -> int:
    """Commands that make what others need come first."""
    name = command.script or command.module
    return ORDER.index(name) if name in ORDER else len(ORDER)


def run(command: Command, world: Path) -> None:
    """As its reader would, in the current folder, which is `world`; two processes are two."""
    if command.module:
        importlib.import_module(command.module).main(command.argv)
        return
    name = command.script.removesuffix(".py")
    argv = [word.replace("/data/", f"{world}/data/") for word in command.argv] + LITTLE.get(name, "").split()
    if "--report_to" in argv and "--resume_from_checkpoint" not in argv:
        argv.append("--overwrite_output_dir")
    script = importlib.import_module(name)
    if "torch.distributed.run" in command.words:
        folders = {f"FOLDER_OF_RANK_{rank}": str(world) for rank in (0, 1)}
        assert training_runs.codes(training_runs.start(script, argv, 2, **folders)) == [0, 0]
    else:
        AcceleratorState._reset_state(reset_partial_state=True)  # each is a process of its own
        script.main(argv)


def make_world(world: Path) -> None:
    """Small stand-ins under the names that the documents use."""
    shutil.copytree(ROOT / "configs", world / "configs", ignore=shutil.ignore_patterns("models"))
    tiny = write_model(world / "tiny")
    for model in (ROOT / "configs" / "models").iterdir():
        if model.name.startswith("wav2vec2") and "bert" not in model.name:
            shutil.copytree(tiny, world / "configs" / "models" / model.name)
    shutil.copytree(ROOT / "configs" / "models" / "wav2vec2-bert-tiny", world / "configs" / "models" / "wav2vec2-bert-tiny")
    for corpus in ("demo_corpus", "my_recordings", "my_other_recordings"):
        for split, number in (("train", 12), ("validation", 4), ("test", 4)):
            _write_split(world / corpus / split, number)
    _write_split(world / "DIGITS", 40)
    recordings = _write_split(world / "recordings", 3, has_table=False)
    (recordings / "empty.wav").touch()
    (recordings / "damaged.flac").write_bytes((recordings / "0.flac").read_bytes()[:3000])
    for name in ("interview.mp3", "my_recording.wav"):
        soundfile.write(world / name, sound(2), 16_000)
    _write_split(world / "data" / "LibriSpeech", 3, has_table=False)
    (world / "manifests").mkdir()
    lines = "".join(f"{clip}.flac\t16000\n" for clip in range(3))
    (world / "manifests" / "train.tsv").write_text(f"/somewhere/else\n{lines}")
    (world / "sentences.txt").write_text("".join(f"{text}\n" for text in TEXTS))


def _write_split(folder: Path, number: int, has_table: bool = True) -> Path:
    folder.mkdir(parents=True)
    for clip in range(number):
        soundfile.write(folder / f"{clip}.flac", sound(1, clip), 16_000)
    rows = [f"{clip}.flac,{TEXTS[clip % len(TEXTS)]},anna,en" for clip in range(number)]
    if has_table:
        (folder / "metadata.csv").write_text("\n".join(["file_name,text,speaker,language", *rows]) + "\n")
    return folder
