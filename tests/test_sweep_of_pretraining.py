"""run_sweep.py on the real script with a tiny model: left in a trial, given again, its best arguments given to the script."""

import yaml
from conftest import write_folder, write_model
from sweep_runs import command, trial, write_sweep
from training_runs import codes, records, start, wait_until, words_of

import run_sweep
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain.sweeps import script_flags
from wavtrain.sweeps.objectives import objective_of, updates, validations
from wavtrain.sweeps.search_space import read_space
from wavtrain.sweeps.trials import Outcome


def left_in_its_second_trial(words):
    """As by a sweep that was killed, but for seconds of imports: the trials run from a server that has done them."""
    args = run_sweep.parse_arguments(words)
    space, objective = read_space(args.search_space), objective_of(args.script, args.metric, args.direction)
    base = script_flags.read_base(args.script, args.config, args.words, args.search_space, space, args.output_dir)
    study = run_sweep.open_study(args, base, space, objective)
    whole, left = (study.claim(args.num_trials, base.resolved) for _ in range(2))
    processes = [start(pretraining, words_of(base.flags_of(claim.folder, claim.params)))[0] for claim in (whole, left)]
    wait_until(lambda: len(records(left.folder, "validation")) >= 2, processes[1])
    processes[1].kill()
    left.held.release()
    assert codes(processes) == [0, -9]
    study.finish(whole, Outcome("complete", *objective.worth(validations(whole.folder)), updates(whole.folder)), 1.0)


def test_a_real_script_is_swept_left_and_swept_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script_flags, "_asked", script_flags._answer)  # here, where the script is imported already
    corpus, model = write_folder(tmp_path / "corpus", [1.0] * 6), write_model(tmp_path / "model")
    config = {"dataset_name": str(corpus), "validation_split_percentage": 40, "model_name_or_path": str(model),
              "output_dir": "elsewhere", "per_device_train_batch_size": 2, "learning_rate": 2e-3, "logging_steps": 1,
              "eval_steps": 1, "saving_steps": 1, "dataloader_num_workers": 0, "max_train_steps": 200, "report_to": "none"}
    write_sweep(tmp_path, "learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true}\nadam_beta2: {choices: [0.98, 0.999]}\n",
                yaml.safe_dump(config))
    words = command(tmp_path, 2, "--", "--max_train_steps", "6", script=pretraining.__file__)
    left_in_its_second_trial(words)
    found = run_sweep.main(words)
    said = capsys.readouterr().out
    assert "trial 0001 goes on, as a sweep before this left it: learning_rate" in said
    assert "complete (the base config)" in said
    assert found["trials"] == {"complete": 2}
    assert "step 1 validation" not in (trial(tmp_path, 1) / "log.txt").read_text(), "it went on from its checkpoint"
    for number in range(2):
        assert [record["step"] for record in records(trial(tmp_path, number), "validation")] == [1, 2, 3, 4, 5, 6]
    args = pretraining.parse_arguments(["--config", str(tmp_path / "sweep" / "best.yaml")])
    assert {"learning_rate": args.learning_rate, "adam_beta2": args.adam_beta2} == {"learning_rate": 2e-3, "adam_beta2": 0.999,
                                                                                   **found["best_params"]}
    assert (args.max_train_steps, args.output_dir, args.on_collapse) == (6, str(tmp_path / "sweep" / "best_run"), "warn")
    kept = [path.parent.name for path in (tmp_path / "sweep").rglob("model.safetensors") if "checkpoints" not in path.parts]
    assert kept == [f"{found['best_trial']:04d}"]
    assert len(list((tmp_path / "sweep").glob("*.png"))) == 3
