"""Flags, YAML defaults, and how a script ends."""

import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError, arguments
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions

NEEDED = ["--dataset_name", "corpus", "--output_dir", "out"]


def parse(tmp_path, yaml, *argv):
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    return run_preprocessing.parse_arguments(["--config", str(path), *argv])


def test_defaults_are_those_of_the_dataclasses():
    args = run_preprocessing.parse_arguments(NEEDED)
    assert arguments.options_of(ClipLimits, args) == ClipLimits()
    assert arguments.options_of(CorpusOptions, args) == CorpusOptions(("corpus",))


def test_a_config_gives_defaults_and_flags_override_it(tmp_path):
    yaml = "dataset_name: [a, b]\noutput_dir: out\nmin_duration_in_seconds: 5e-1\nstreaming: true\noverwrite_cache: false\n"
    args = parse(tmp_path, yaml)
    assert (args.dataset_name, args.min_duration_in_seconds) == (["a", "b"], 0.5)
    assert (args.streaming, args.overwrite_cache) == (True, False)
    assert parse(tmp_path, yaml, "--min_duration_in_seconds", "1", "--dataset_name", "c").dataset_name == ["c"]
    assert parse(tmp_path, "", *NEEDED).long_audio == "split"


@pytest.mark.parametrize(("yaml", "message"), [
    ("min_duration: 1", "no flag is called 'min_duration'; is 'min_duration_in_seconds' meant?"),
    ("streaming: 1", "streaming is 1; it takes true or false"),
    ("long_audio: yes", "long_audio is True; it takes one value"),
    ("dataset_config_names: [no, en]", "it takes a list or one value; words like no and null in quotes"),
    ("dataset_config_names: [null]", "it takes a list or one value"),
    ("long_audio: chop", "argument --long_audio: invalid choice: 'chop'"),
    ("min_duration_in_seconds: fast", "argument --min_duration_in_seconds: 'fast' is not a number of seconds"),
    ("min_duration_in_seconds: [1, 2]", "it takes one value"),
    ("output_dir: {a: 1}", "it takes one value"),
    ("output_dir: a\noutput_dir: b", "'output_dir' is given twice"),
    ("- output_dir", "must hold `flag: value` lines"),
    ("output_dir: [", "while parsing"),
    ("output_dir: " + "[" * 5000, "cannot be read"),
    ("min_duration_in_seconds: !!int x", "cannot be read"),
    ("output_dir: 2020-13-45", "cannot be read"),
    ("streaming: !!bool maybe", "cannot be read"),
    ('output_dir: "a\\0b"\n' + "#" * 2**20, "is longer than"),
    ("streaming: [&a [1, 2], &b [*a, *a], &c [*b, *b]]", "it takes true or false"),
])
def test_faults_of_a_config_name_the_file_and_the_key(tmp_path, yaml, message):
    with pytest.raises(InputError) as caught:
        parse(tmp_path, yaml, *NEEDED)
    assert message in str(caught.value)
    assert str(tmp_path / "config.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("argv", "message"), [
    ([], "the following arguments are required: --dataset_name, --output_dir"),
    ([*NEEDED, "--min_duration_in_second", "3"], "is --min_duration_in_seconds meant?"),
    ([*NEEDED, "--validation_split_percentage", "100"], "'100' is not a percentage"),
    ([*NEEDED, "--preprocessing_num_workers", "0"], "'0' is not a whole number from 1"),
    ([*NEEDED, "--max_duration_in_seconds", "nan"], "'nan' is not a number of seconds"),
    ([*NEEDED, "--shard_index", "0"], "--num_shards and --shard_index go together"),
    ([*NEEDED, "--num_shards", "2", "--shard_index", "2"], "must be below --num_shards 2"),
    ([*NEEDED, "--num_shards", "2", "--shard_index", "1", "--overwrite_cache"], "has no place in a job array"),
    ([*NEEDED, "--config", "absent.yaml"], "--config absent.yaml"),
    ([*NEEDED, "--max_duration_in_seconds", "1e9"], "'1e9' is not a number of seconds from 0 to 100,000"),
    ([*NEEDED, "--preprocessing_num_workers", str(2**31)], "to below 2**31"),
    ([*NEEDED, "--cache_dir", "a\0b"], "--cache_dir: holds a NUL character"),
    (["--dataset_name", "out/../a", "--output_dir", "./a"], "is what --dataset_name reads from"),
])
def test_faults_of_the_command_line(argv, message):
    with pytest.raises(InputError) as caught:
        run_preprocessing.parse_arguments(argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("max_train_steps", "1" + 30 * "0", "to below 2**31"), ("max_train_steps", "1e3", "not a whole number"),
    ("num_train_epochs", "9" * 5000, "to below 2**31"), ("learning_rate", "1e300", "a number above 0, up to 1,000,000,000"),
    ("learning_rate", "nan", "a number above 0"), ("weight_decay", "1e10", "a number from 0 to 1,000,000,000"),
    ("max_grad_norm", "inf", "a number"), ("seed", "9" * 30, "a whole number")])
def test_numbers_beyond_all_sense(flag, value, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        pretraining.parse_arguments(["--dataset_name", "x", "--output_dir", "y", "--init_from", "z", f"--{flag}", value])
    assert f"--{flag}" in str(caught.value)


@pytest.mark.parametrize(("script", "name"), [("run_preprocessing.py", "dataset_name"),
                                              ("run_ctc_decoding.py", "model_name_or_path")])
def test_usage_errors_are_one_line_and_code_2(script, name, tmp_path):
    command = [sys.executable, script, "--dataset_name", str(tmp_path), "--output_dir", f"{tmp_path}/out"]
    result = subprocess.run([*command, f"--{name}", f"{tmp_path}/a\x1b[31m\nb"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "\x1b" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("script", [path.stem for path in sorted(ROOT.glob("run_*.py"))])
def test_help_is_grouped_and_complete(script, columns, monkeypatch, capsys):
    """Every flag has words of its own, in a group with a name; the manual is as wide as the terminal, the usage one line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).parse_arguments(["--help"])
    assert ended.value.code == 0
    usage, _, page = capsys.readouterr().out.partition("\n\n")
    assert len(usage.splitlines()) <= 2
    _, *groups = re.split(r"\n\n(?=[a-z -]+:\n)", page)
    assert max(map(len, page.splitlines())) <= columns
    options, *named = groups
    assert set(re.findall(r"^  (?:-h, )?(--\w+)", options, re.MULTILINE)) == {"--help", "--config"}
    for entry in re.split(r"\n  (?=--)", "\n".join(named))[1:]:
        flag, said = re.match(r"(--\w+)(?: \[?[A-Z{].*?)?(?:  +|\n +)(.*)", entry, re.DOTALL).groups()
        words = re.sub(r"\([^()]*\)", "", said)
        assert re.search(r"[a-z]{2}", words), f"{flag}: its help is only a value"
        assert "None" not in said, f"{flag}: None tells a reader nothing"


def test_a_machine_that_does_not_tell_its_cores_apart():
    """macOS has no os.sched_getaffinity."""
    program = ("import os\nif hasattr(os, 'sched_getaffinity'): del os.sched_getaffinity\n"
               "from wavtrain.flags import NUM_CORES\nprint(NUM_CORES)")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) >= 1
