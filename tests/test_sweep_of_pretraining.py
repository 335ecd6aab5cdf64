"""run_sweep.py on the real script with a tiny model: killed, given again, its best arguments given to the script."""

import yaml
from conftest import write_folder, write_model
from sweep_runs import command, of_trials, started, trial, wait_for, write_sweep
from training_runs import records

import run_sweep
import run_wav2vec2_pretraining_no_trainer as pretraining


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
