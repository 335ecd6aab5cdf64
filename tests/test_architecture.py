"""The house as docs/design.md describes it: floors, budgets, no doubled lines, no dead flags, configs that parse."""

import ast
import importlib
import re
import shlex
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import Wav2Vec2Config

from wavtrain.recognition.transcripts import TextRules
from wavtrain.speech.clips import ClipLimits

FLOORS = {  # of all folders and wavtrain/ itself
    0: "arguments attention batching convolutions durable_files layerdrop masking measures optimizers progress schedules "
       "workers zero "
       "collapse examples hub_flags repository run_options "
       "audio_paths mp3_length resampling rows shard_checksums tables unfolding waveforms "
       "error_rates filter_banks transcripts vocabulary_files "
       "fairseq_layout fairseq_pickles "
       "findings published",
    1: "accumulation checkpoint_files contrastive engine flags places "
       "errands meter recorded_runs summaries trackers card_text named_speech "
       "objectives search_space "
       "clips dataset_corpora prepared_directory table_corpora "
       "evaluate_metrics ngrams padding vocabularies "
       "run_shape",
    2: "encoders loading run_directory folder_corpora preparation_plan shards "
       "card_recipe fetched_runs model_scores run_facts uploads "
       "curves known_trackers "
       "script_flags suggestions sweep_axes trial_process trial_rows "
       "adapters ctc decoding lexicons scores transcribed_clips",
    3: "reports speech_batches tracking manifests speech_cache dataset_card model_card publishing "
       "parallel_coordinates sweep_report trials "
       "beam_decoding pseudo_labels recognisers windows "
       "from_fairseq "
       "planned_run",
    4: "study sweep_pictures "
       "doors training_run preparation beam_workers ctc_batches onnx_export rescoring transcription "
       "objective_checks speech_survey timing",
    5: "training_speech tuning "
       "cost transcript_checks",
    6: "preflight",
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
PACKAGE = sorted(path for path in (ROOT / "wavtrain").rglob("*.py") if path.stem != "__init__")
FOLDERS = {folder: [path for path in PACKAGE if path.parent.name == folder]
           for folder in ("wavtrain", "checks", "conversion", "hub", "models", "recognition", "reporting", "speech", "sweeps")}
SCRIPTS = sorted(ROOT.glob("run_*.py"))
MAX_FUNCTION, MAX_MODULE, MAX_SCRIPT, MAX_NESTING, MAX_SHARED = 50, 200, 280, 4, 0.25
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wavtrain":
            names = {node.module.split(".")[-1], *(alias.name for alias in node.names)}
            found |= names & set(FLOOR_OF)
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("wavtrain.")}
    return found


def test_the_floor_table_names_every_module():
    assert sorted(path.stem for path in PACKAGE) == sorted(FLOOR_OF)
    assert not {"utils", "common", "helpers", "misc"} & set(FLOOR_OF)
    assert sum(map(len, FOLDERS.values())) == len(PACKAGE)
    assert max(map(len, FOLDERS.values())) <= 25, "time for another folder"


def test_speech_knows_nothing_of_training():
    of_everyone = {"arguments", "durable_files", "progress", "workers"}
    for path in FOLDERS["speech"]:
        assert imported(path) <= {path.stem for path in FOLDERS["speech"]} | of_everyone, path.stem


def test_pretraining_knows_nothing_of_recognition():
    for path in FOLDERS["wavtrain"] + FOLDERS["models"]:
        assert not imported(path) & {path.stem for path in FOLDERS["recognition"]}, path.stem


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_imports_go_down(path):
    wrong = [name for name in imported(path) if FLOOR_OF[name] >= FLOOR_OF[path.stem]]
    assert not wrong, f"{path.stem} (floor {FLOOR_OF[path.stem]}) imports {wrong}"


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS], ids=lambda path: path.stem)
def test_who_may_see_what(path):
    names = {alias.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)}
    if path in PACKAGE:
        assert "argparse" not in names or path.stem in ("arguments", "flags", "hub_flags")
        assert not re.search(r"\bargs\.", path.read_text()) or path.stem == "arguments"
    assert not any(name.startswith("run_") for name in names)


def depth(node: ast.AST, level: int = 0) -> int:
    inner = level + isinstance(node, BLOCKS)
    return max([inner, *(depth(child, inner if not _is_elif(node, child) else level) for child in ast.iter_child_nodes(node))])


def _is_elif(node: ast.AST, child: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS], ids=lambda path: path.stem)
def test_budgets(path):
    limit = MAX_SCRIPT if path in SCRIPTS else MAX_MODULE
    assert len(path.read_text().splitlines()) <= limit
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION, node.name
            assert depth(node) <= MAX_NESTING, f"{node.name} nests {depth(node)} deep"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_public_functions_have_types(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = [arg for arg in (*node.args.args, *node.args.kwonlyargs) if arg.arg not in ("self", "cls")]
            assert node.returns is not None, node.name
            assert all(arg.annotation is not None for arg in given), node.name


def lines_that_count(path: Path) -> list[str]:
    """Statements, without imports, docstrings, comments and what consists of brackets."""
    text = path.read_text()
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(text))
                  if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))} - {None}
    for docstring in docstrings:
        text = text.replace(docstring, "")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if len(line) > 5 and not line.startswith(("#", "import ", "from ", '"""'))]


@pytest.mark.parametrize(("one", "other"), list(combinations(SCRIPTS, 2)), ids=lambda path: path.stem)
def test_scripts_share_little(one, other):
    first, second = lines_that_count(one), set(lines_that_count(other))
    shared = [line for line in first if line in second]
    assert len(shared) <= max(MAX_SHARED * max(len(first), 100), 1), shared


SMALLEST = {  # command lines that parse
    "run_ctc_decoding": "--model_name_or_path model --dataset_name corpus --output_dir scores",
    "run_ctc_finetuning": "--dataset_name corpus --preprocessing_only",
    "run_preprocessing": "--dataset_name corpus --output_dir prepared",
    "run_sweep": "script.py --config base.yaml --search_space space.yaml --num_trials 8 --output_dir sweep",
    "run_wav2vec2_pretraining_no_trainer": "--dataset_name corpus --preprocessing_only",
}


def flags(script: Path) -> set[str]:
    return set(vars(importlib.import_module(script.stem).parse_arguments(SMALLEST[script.stem].split()))) - {"config"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_is_read(script):
    """Read in the script as args.FLAG, or as a field of a dataclass that the script fills and the package uses."""
    read = set(re.findall(r"\bargs\.(\w+)", script.read_text()))
    package = "\n".join(path.read_text() for path in PACKAGE if path.stem != "arguments")
    by_name = re.findall(r"^(?:CONFIG_FLAGS|TEXT_FLAGS|WHOLE) = [({](.*?)[)}](?:  #[^\n]*)?$", script.read_text(), re.M | re.S)
    read |= set(re.findall(r"\w+", " ".join(by_name))) & set(vars(Wav2Vec2Config()) | vars(TextRules()) | vars(ClipLimits()))
    filled = re.findall(r"options_of\((\w+),", script.read_text())
    for name in filled:
        fields = re.search(rf"class {name}:(.*?)(?=\n(?:@|class |def )|\Z)", package, re.DOTALL)[1]
        declared = set(re.findall(r"^    (\w+): ", fields, re.MULTILINE))
        owners = "options|limits|corpus|self|objective|schedule|rules"
        used = {field for field in declared if re.search(rf"({owners})\.{field}\b|\"{field}\"", package)}
        roles = {field for field in declared if field.endswith("_column_name")} if "_column_name\")" in package else set()
        read |= used | roles
    assert flags(script) <= read, f"never read: {sorted(flags(script) - read)}"


NO_CONFIGS = (ROOT / "configs" / "accelerate", ROOT / "configs" / "sweeps")  # test_engines, test_sweeps
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent not in NO_CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_by_its_own_command(path):
    command = re.search(r"^# ((?:python|accelerate launch) .*)$", path.read_text(), re.MULTILINE)[1]
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("run_"))
    argv = words[words.index(script) + 1 :]
    assert argv[:2] == ["--config", str(path.relative_to(ROOT))]
    args = importlib.import_module(script.removesuffix(".py")).parse_arguments(["--config", str(path), *argv[2:]])
    assert args.config == str(path)


def test_readme_shows_the_whole_tree():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [*PACKAGE, *SCRIPTS, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "docs").glob("*.md"))]:
        assert path.name in readme, f"README's tree lacks {path.relative_to(ROOT)}"
