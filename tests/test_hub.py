"""A run that is pushed lies in the repository afterwards; one that cannot be pushed says so before it trains, or goes on."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, write_folder, write_model
from transformers import AutoModelForPreTraining

SCRIPT = "run_wav2vec2_pretraining_no_trainer.py"


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    command = [sys.executable, str(ROOT / "tests" / "stand_in_hub.py"), str(tmp_path / "hub")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.terminate()
    server.wait()


def pushed_run(endpoint: str, folder, token: str) -> subprocess.CompletedProcess:
    corpus, model = write_folder(folder / "corpus", [1.0, 1.5, 2.0, 1.2]), write_model(folder / "model")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--dataset_name", corpus, "--model_name_or_path", model, "--max_train_steps", "2",
               "--saving_steps", "1", "--report_to", "none", "--preprocessing_num_workers", "1", "--output_dir", folder / "run",
               "--push_to_hub", "--hub_model_id", "someone/model", "--hub_token", token]
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_pushed_run_lies_in_the_repository(hub, tmp_path):
    result = pushed_run(hub, tmp_path, "hf_good")
    assert result.returncode == 0, result.stderr
    repository = tmp_path / "hub" / "models" / "someone" / "model"
    assert (repository / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert {"config.json", "preprocessor_config.json", "metrics.jsonl", "arguments.yaml", "training_curves.png"} <= {
        path.name for path in repository.iterdir()}
    assert not (repository / "checkpoints").exists()
    assert "hf_good" not in result.stdout + result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_good" in path.read_bytes()]
    AutoModelForPreTraining.from_pretrained(repository)


def test_a_refused_token_is_told_before_the_training(hub, tmp_path):
    result = pushed_run(hub, tmp_path, "hf_bad")
    assert result.returncode == 2
    assert "--push_to_hub someone/model" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
