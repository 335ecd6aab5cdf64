"""run_sweep.py as a user starts, stops and restarts it, with tests/swept_script.py."""

import re
import signal

import pytest
import yaml
from sweep_runs import command, of_trials, rows, stand_in_launcher, started, trial, wait_for, write_sweep
from training_runs import records

import run_sweep
from wavtrain import InputError
from wavtrain.sweeps import sweep_report


@pytest.fixture(autouse=True)
def _launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", stand_in_launcher(tmp_path))


def test_stopped_or_killed_it_goes_on_where_it_was_also_as_two(tmp_path, capsys):
    write_sweep(tmp_path)
    for number, ending, code in ((0, signal.SIGTERM, 143), (1, signal.SIGKILL, -9)):
        ended = started(command(tmp_path, 3), WAITS=f"{number:04d}")
        wait_for(lambda number=number: len(records(trial(tmp_path, number))) == 2, ended)
        ended.send_signal(ending)
        assert ended.wait() == code
        wait_for(lambda: not of_trials(tmp_path))
    both = [started(command(tmp_path, 3)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    said = (tmp_path / "sweep.log").read_text()
    assert [said.count(f"trial 000{number} begins") for number in range(3)] == [1, 1, 1]
    assert [said.count(f"trial 000{number} goes on") for number in range(3)] == [1, 1, 0]
    assert said.count(" beats the base config") == 2
    assert said.count("\nso far: ") == said.count(": still running in another sweep")
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


def test_refusals_in_a_row_end_it_with_all_of_them_on_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_report, "FAILURES_IN_A_ROW", 2)
    write_sweep(tmp_path, "num_warmup_steps: {low: 5, high: 9}\n")
    with pytest.raises(InputError, match="2 trials in a row were refused, the last because: --num_warmup_steps "):
        run_sweep.main(command(tmp_path, 9))
    assert [row["state"] for row in rows(tmp_path)] == ["complete", "failed", "failed"]
    assert (tmp_path / "sweep" / "history.png").exists()
    assert "no trial beats the base config" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "fault"), [
    (["--", "--num_warmup_steps", "9"], "the base config itself cannot be ranked: --num_warmup_steps 9: is longer"),
    (["--accelerate_arguments", "a 'b"], "--accelerate_arguments a 'b: No closing quotation"),
    (["--metric", "accuracy", "--direction", "maximize"],
     "the base config itself cannot be ranked: --metric accuracy is not among those of validation: contrastive_accuracy"),
    (["--direction", "up"], "argument --direction: invalid choice: 'up'"),
])
def test_what_the_user_has_to_put_right_is_told(tmp_path, words, fault):
    write_sweep(tmp_path)
    with pytest.raises(InputError, match=f"^{re.escape(fault)}"):
        run_sweep.main(command(tmp_path, 3, *words))


def test_what_accelerate_refuses_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    write_sweep(tmp_path)
    with pytest.raises(InputError, match=r"^accelerate launch ended with code 2 before the script began: ") as caught:
        run_sweep.main(command(tmp_path, 3, "--accelerate_arguments", "--num_processes none"))
    assert "\n" not in str(caught.value)


def test_without_optuna_one_line_says_so(tmp_path):
    write_sweep(tmp_path)
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "optuna.py").write_text("raise ImportError('as if it were not installed')")
    process = started(command(tmp_path, 3), PYTHONPATH=str(tmp_path / "missing"))
    assert process.wait() == 2
    assert "pip install -r requirements-sweeps.txt" in (tmp_path / "sweep.log").read_text()
