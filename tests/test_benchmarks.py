"""Every benchmark says what it compares; the largest one runs, small, and its figures are of what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

FOLDER = ROOT / "benchmarks"
sys.path.append(str(FOLDER))

import side_by_side  # noqa: E402


@pytest.mark.parametrize("path", sorted(FOLDER.glob("bench_*.py")), ids=lambda path: path.stem)
def test_each_has_its_command(path):
    shown = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{path.name}" in shown
    assert "--json" in shown or path.stem == "bench_learning"


@pytest.mark.parametrize(("kind", "mean"), [("librispeech", 12.2), ("commonvoice", 5.6)])
def test_durations_are_those_of_the_corpora(kind, mean):
    seconds = side_by_side.durations(kind, 20_000)
    assert abs(seconds.mean() - mean) < 0.2
    assert seconds.min() >= 1.0
    assert seconds.max() <= 20.0
    assert np.array_equal(seconds, side_by_side.durations(kind, 20_000))


def test_a_row_has_medians_ratios_and_the_verdict():
    speeds = {"suite": (2.0, 4.0, 6.0), "peer": (1.0, 4.0, 2.0)}
    results = {side: [{"speed": speed} for speed in each] for side, each in speeds.items()}
    (row,) = side_by_side.compared(results, [side_by_side.Measure("speed", "s", 1, 1.8)], "corpus")
    assert row == ["corpus", "s", "4.0 (2.0-6.0)", "2.0 (1.0-4.0)", "2.00 (1.00-3.00)", ">= 1.8: met"]
    (row,) = side_by_side.compared(results, [side_by_side.Measure("speed", "s", 1, 1.8, at_least=False)])
    assert row[-1] == "<= 1.8: missed"


def test_a_pretraining_step_is_compared(tmp_path):
    argv = ["--model_name_or_path", ROOT / "configs/models/wav2vec2-tiny", "--num_hidden_layers", "1", "--clips", "1",
            "--updates", "2", "--rounds", "1", "--durations", "commonvoice", "--json", tmp_path / "step.json"]
    done = subprocess.run([sys.executable, FOLDER / "bench_pretraining_step.py", *argv], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"HF_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "audio-s per second" in done.stdout
    results = json.loads(Path(tmp_path / "step.json").read_text())["results"]["commonvoice"]
    (suite,), (peer,) = results["suite"], results["peer"]
    for side in (suite, peer):
        assert 1.0 <= side["audio_seconds"] <= 2 * 20.0
        assert side["audio_seconds_per_second"] == pytest.approx(side["audio_seconds"] / side["seconds"])
        assert 100 < side["peak_megabytes"] < 10_000
    assert peer["padding"] == 0  # of one clip
    assert 0 <= suite["padding"] < 0.1
