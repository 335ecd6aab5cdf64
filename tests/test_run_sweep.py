"""run_sweep.py as a user starts, kills and restarts it: once with a tiny model, otherwise with tests/swept_script.py."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, write_folder, write_model
from training_runs import records

import run_sweep
import run_wav2vec2_pretraining_no_trainer as pretraining

SCRIPT = str(Path(__file__).parent / "swept_script.py")
SPACE = "learning_rate: {low: 1.0e-4, high: 2.0e-3, log: true}\nlr_scheduler_type: {choices: [linear, cosine]}\n"


def write_sweep(folder, space=SPACE, config="learning_rate: 1.0e-3\n"):
    (folder / "space.yaml").write_text(space)
    (folder / "base.yaml").write_text(config)


def command(folder, num_trials, *words, script=SCRIPT):
    return [script, "--config", str(folder / "base.yaml"), "--search_space", str(folder / "space.yaml"), "--output_dir",
            str(folder / "sweep"), "--num_trials", str(num_trials), "--metric", "contrastive_accuracy",
            *(words if "--" in words else (*words, "--"))]


def started(words, **environment):
    with open(os.path.join(words[words.index("--output_dir") + 1] + ".log"), "ab") as log:
        return subprocess.Popen([sys.executable, str(ROOT / "run_sweep.py"), *words], env={**os.environ, **environment},
                                stdout=log, stderr=log)


def wait_for(is_so, process=None):
    deadline = time.monotonic() + 120
    while not is_so():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trial(folder, number):
    return folder / "sweep" / "trials" / f"{number:04d}"


def of_trials(folder):
    """Processes of its trials: their command lines name their directories."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder / "sweep" / "trials") in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def rows(folder):
    with open(folder / "sweep" / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_stopped_in_the_middle_it_goes_on_where_it_was_also_as_two(tmp_path, capsys):
    write_sweep(tmp_path)
    stopped = started(command(tmp_path, 3), WAITS="0001")
    wait_for(lambda: len(records(trial(tmp_path, 1))) == 2, stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143
    assert not of_trials(tmp_path)
    both = [started(command(tmp_path, 3)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    said = (tmp_path / "sweep.log").read_text()
    assert [said.count(f"trial 000{number} begins") for number in range(3)] == [1, 1, 1]
    assert [said.count(f"trial 000{number} goes on") for number in range(3)] == [0, 1, 0]
    assert sorted((row["trial"], row["state"]) for row in rows(tmp_path)) == [(str(number), "complete") for number in range(3)]
    assert [[record["step"] for record in records(trial(tmp_path, number))] for number in range(3)] == [[1, 2, 3, 4]] * 3
    found = run_sweep.main(command(tmp_path, 3))  # there is nothing left to do
    assert found["trials"] == {"complete": 3}
    assert found["base_value"] == pytest.approx(4e-3)
    assert found["best_value"] == max(float(row["contrastive_accuracy"]) for row in rows(tmp_path))
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert best["learning_rate"] == pytest.approx(found["best_value"] / 4)
    assert ("no trial beats the base config" in capsys.readouterr().out) == (found["best_trial"] == 0)


def test_refused_and_collapsed_trials_are_failures_with_their_reasons(tmp_path, capsys):
    write_sweep(tmp_path, "learning_rate: {low: 6.0e-3, high: 1.0e-2}\nnum_warmup_steps: {choices: [0, 9]}\n")
    found = run_sweep.main(command(tmp_path, 4, "--accelerate_arguments", "--num_processes 1", "--sampler", "random"))
    assert (found["trials"], found["best_trial"]) == ({"complete": 1, "failed": 3}, 0)
    reasons = {"0": "--on_collapse stop: ended after update 1", "9": "--num_warmup_steps 9: is longer than the run"}
    failed = [row for row in rows(tmp_path) if row["state"] == "failed"]
    assert {row["num_warmup_steps"] for row in failed} == {"0", "9"}
    for row in failed:
        assert (row["rank"], row["contrastive_accuracy"], row["reason"]) == ("", "", reasons[row["num_warmup_steps"]])
    assert "no trial beats the base config: contrastive_accuracy 0.004\n" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "fault"), [
    (["--", "--num_warmup_steps", "9"], "the base config itself cannot be ranked: --num_warmup_steps 9: is longer"),
    (["--accelerate_arguments", "--num_processes none"], "accelerate launch ended with code 2 before the script began: "),
    (["--accelerate_arguments", "a 'b"], "--accelerate_arguments a 'b: No closing quotation"),
    (["--direction", "up"], "argument --direction: invalid choice: 'up'"),
])
def test_what_the_user_has_to_put_right_ends_it_in_one_line(tmp_path, words, fault):
    write_sweep(tmp_path)
    process = started(command(tmp_path, 3, *words))
    assert process.wait() == 2
    last = (tmp_path / "sweep.log").read_text().strip().split("\n")[-1]
    assert last.startswith(f"run_sweep.py: error: {fault}")


def test_without_optuna_one_line_says_so(tmp_path):
    write_sweep(tmp_path)
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "optuna.py").write_text("raise ImportError('as if it were not installed')")
    process = started(command(tmp_path, 3), PYTHONPATH=str(tmp_path / "missing"))
    assert process.wait() == 2
    assert "pip install -r requirements-sweeps.txt" in (tmp_path / "sweep.log").read_text()


def test_a_real_script_is_swept_killed_and_swept_on(tmp_path, capsys):
    corpus, model = write_folder(tmp_path / "corpus", [1.0] * 6), write_model(tmp_path / "model")
    config = {"dataset_name": str(corpus), "validation_split_percentage": 40, "model_name_or_path": str(model),
              "output_dir": "elsewhere", "per_device_train_batch_size": 2, "learning_rate": 2e-3, "logging_steps": 1,
              "eval_steps": 1, "saving_steps": 1, "dataloader_num_workers": 0, "max_train_steps": 200, "report_to": "none"}
    write_sweep(tmp_path, "learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true}\nadam_beta2: {choices: [0.98, 0.999]}\n",
                yaml.safe_dump(config))
    words = command(tmp_path, 2, "--", "--max_train_steps", "6", script=pretraining.__file__)
    killed = started(words)
    wait_for(lambda: len(records(trial(tmp_path, 0), "validation")) >= 2, killed)
    killed.kill()
    wait_for(lambda: not of_trials(tmp_path))
    found = run_sweep.main(words)
    assert found["trials"] == {"complete": 2}
    for number in range(2):
        assert [record["step"] for record in records(trial(tmp_path, number), "validation")] == [1, 2, 3, 4, 5, 6]
    args = pretraining.parse_arguments(["--config", str(tmp_path / "sweep" / "best.yaml")])
    assert {"learning_rate": args.learning_rate, "adam_beta2": args.adam_beta2} == {"learning_rate": 2e-3, "adam_beta2": 0.999,
                                                                                   **found["best_params"]}
    assert (args.max_train_steps, args.output_dir, args.on_collapse) == (6, str(tmp_path / "sweep" / "best_run"), "warn")
    kept = [path.parent.name for path in (tmp_path / "sweep").rglob("model.safetensors") if "checkpoints" not in path.parts]
    assert kept == [f"{found['best_trial']:04d}"]
    assert len(list((tmp_path / "sweep").glob("*.png"))) == 3
    assert "the base config" in capsys.readouterr().out
