"""Corpora by Hub id, from a server on this machine: parquet, a stream, a repository of audio files, what is not there."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, sound, write_folder
from test_waveforms import encoded

CARD = """---
configs:
- config_name: clean
  data_files:
  - split: train.100
    path: clean/train.100-*
  - split: validation
    path: clean/validation-*
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    (root / "user" / "speech" / "clean").mkdir(parents=True)
    (root / "user" / "speech" / "README.md").write_text(CARD)
    for number, part in enumerate(["train.100-00000-of-00002", "train.100-00001-of-00002", "validation-00000-of-00001"]):
        audio = [{"bytes": encoded(sound(1.0, 10 * number + k), kind="FLAC"), "path": f"{number}{k}.flac"} for k in range(3)]
        table = pa.table({"audio": audio, "text": ["null", "007", "true"], "id": [f"u{number}{k}" for k in range(3)]})
        pq.write_table(table, root / "user" / "speech" / "clean" / f"{part}.parquet")
    write_folder(root / "user" / "raw" / "train", [1.0, 2.0])
    (root / "user" / "raw" / "train" / "metadata.csv").write_text("file_name,text\n000.flac,one\n001.flac,two\n")
    command = [sys.executable, str(ROOT / "tests" / "stand_in_hub.py"), str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.terminate()
    server.wait()


def prepare(endpoint, folder, *argv):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "run_preprocessing.py", *argv, "--output_dir", str(folder / "p")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    report = folder / "p" / "preparation.json"
    return result, json.loads(report.read_text()) if report.exists() else None


@pytest.mark.parametrize("flags", [(), ("--streaming",)])
def test_parquet_with_configurations_and_splits(hub, tmp_path, flags):
    result, report = prepare(hub, tmp_path, "--dataset_name", "user/speech", "--dataset_config_names", "clean", "clean",
                             "--dataset_split_names", "train.100", "validation", *flags)
    assert result.returncode == 0, result.stderr
    assert sum(split["clips"] for split in report["splits"].values()) == 9
    assert len(report["sources"]) == (3 if flags else 2)
    again, _ = prepare(hub, tmp_path, "--dataset_name", "user/speech", "--dataset_config_names", "clean", "clean",
                       "--dataset_split_names", "train.100", "validation", *flags)
    assert "nothing to do" in again.stderr


def test_a_repository_of_audio_files(hub, tmp_path):
    result, report = prepare(hub, tmp_path, "--dataset_name", "user/raw")
    assert result.returncode == 0, result.stderr
    assert report["splits"]["train"] == {**report["splits"]["train"], "clips": 2, "hours": pytest.approx(3 / 3600, abs=1e-6)}
    assert report["sources"][0]["corpus"] == "raw"


@pytest.mark.parametrize(("argv", "message"), [
    (("user/none",), "user/none (no such path, so taken for a Hub id): Dataset 'user/none' doesn't exist on the Hub"),
    (("user/speech", "--dataset_config_names", "noisy"), "BuilderConfig 'noisy' not found. Available: ['clean']"),
    (("user/speech", "--dataset_config_names", "clean", "--dataset_split_names", "dev"), 'Unknown split "dev"'),
    (("user/raw", "--streaming"), "only parquet and arrow are streamed"),
])
def test_what_is_not_there_is_one_line(hub, tmp_path, argv, message):
    result, report = prepare(hub, tmp_path, "--dataset_name", *argv)
    assert (result.returncode, report) == (2, None)
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
