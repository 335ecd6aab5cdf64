"""Curves: the numbers that stand in metrics.jsonl, over the lines they are to be compared with."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.image import imread

from wavtrain import InputError
from wavtrain.reports import curves_figure, main, smoothed, training_curves

pytestmark = pytest.mark.filterwarnings("error")
PRETRAINING = {"loss": 4.0, "contrastive_accuracy": 0.25, "code_perplexity": 80.0, "gradient_norm": 0.5, "learning_rate": 1e-4,
               "gumbel_temperature": 2.0}


def write_run(folder, records: list[dict], config: dict | None = None):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pretraining(tmp_path):
    train = [{"phase": "train", "step": step, **PRETRAINING, "loss": 4.0 - step / 100} for step in range(1, 101)]
    train[9]["loss"] = train[9]["gradient_norm"] = None  # was not finite
    validation = [{"phase": "validation", "step": step, "loss": 3.5, "contrastive_accuracy": 0.3} for step in (50, 100)]
    config = {"num_negatives": 99, "num_codevector_groups": 2, "num_codevectors_per_group": 320}
    return write_run(tmp_path / "base", train + validation, config)


def panels(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def test_the_panels_of_a_pretraining_run(pretraining):
    figure = curves_figure([str(pretraining)])
    found = panels(figure)
    assert list(found) == ["Loss", "Contrastive accuracy", "Code perplexity", "Gradient norm", "Learning rate",
                           "Gumbel temperature"]
    raw, smooth, validation = found["Loss"].lines
    expected = 4.0 - np.arange(1, 101) / 100
    expected[9] = np.nan
    np.testing.assert_allclose(raw.get_ydata(), expected)
    np.testing.assert_allclose(smooth.get_ydata(), smoothed(expected))
    assert validation.get_xydata().tolist() == [[50, 3.5], [100, 3.5]]
    assert raw.get_linewidth() < smooth.get_linewidth()
    accuracy, perplexity = found["Contrastive accuracy"], found["Code perplexity"]
    assert accuracy.lines[-1].get_ydata() == [1.0, 1.0]  # percent: one of 100
    assert [text.get_text() for text in accuracy.texts] == ["chance 1 %"]
    assert perplexity.lines[-1].get_ydata() == [640, 640]
    band = perplexity.patches[0].get_extents().transformed(perplexity.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((192, 640))
    assert found["Gradient norm"].get_yscale() == "log"
    assert all(axes.get_xlabel() == "step (optimizer updates)" and axes.get_ylabel() for axes in figure.axes)
    assert figure.get_suptitle() == "base"
    assert "train, smoothed: running mean over 2 % of the run" in [text.get_text() for text in figure.legends[0].texts]


def test_smoothing():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    assert smoothed(values).tolist() == [1.5, 1.5, 3.0, 5.0, 5.0]  # over three records, fewer at the ends
    assert np.isnan(smoothed(np.full(3, np.nan))).all()
    assert len(smoothed(np.array([]))) == 0
    assert smoothed(np.arange(500.0))[250] == 250
    assert smoothed(np.arange(500.0))[0] == 2.5  # five records to the right


def test_arguments_stand_in_for_a_config_that_is_not_there_yet(tmp_path):
    folder = write_run(tmp_path / "run", [{"phase": "train", "step": 1, **PRETRAINING}])
    (folder / "arguments.yaml").write_text("num_negatives: 49\nseed: null\n")
    found = panels(curves_figure([str(folder)]))
    assert [text.get_text() for text in found["Contrastive accuracy"].texts] == ["chance 2 %"]
    assert not found["Code perplexity"].texts


def test_ctc_runs_have_their_own_panels(tmp_path):
    records = [{"phase": "train", "step": 1, "loss": 300.0, "gradient_norm": 0.0, "learning_rate": 0.0},
               {"phase": "validation", "step": 1, "loss": 290.0, "wer": 0.5, "cer": None}]
    found = panels(curves_figure([str(write_run(tmp_path / "ctc", records))]))
    assert list(found) == ["Loss", "Word error rate", "Character error rate", "Gradient norm", "Learning rate"]
    assert found["Word error rate"].lines[-1].get_xydata().tolist() == [[1, 50.0]]
    training_curves([str(tmp_path / "ctc")], str(tmp_path / "ctc.png"))


def test_runs_over_one_another(pretraining, tmp_path):
    other = write_run(tmp_path / "other", [{"phase": "train", "step": 1, **PRETRAINING}])
    twin = tmp_path / "deeper" / "base"
    twin.parent.mkdir()
    write_run(twin, [{"phase": "train", "step": 1, **PRETRAINING}])
    figure = curves_figure([str(pretraining), str(other), str(twin)])
    loss = panels(figure)["Loss"]
    assert [line.get_color() for line in loss.lines] == [f"C{number}" for number in range(3) for _ in range(3)]
    assert [text.get_text() for text in figure.legends[0].texts][:3] == [f"run {pretraining}", "run other", f"run {twin}"]
    assert figure.get_suptitle() == "3 runs"


def test_a_picture_is_written_whole(pretraining, tmp_path):
    assert main([str(pretraining)]) == str(pretraining / "training_curves.png")
    assert sorted(os.listdir(pretraining)) == ["config.json", "metrics.jsonl", "training_curves.png"]
    picture = imread(pretraining / "training_curves.png")
    assert picture.shape[0] > 700
    assert picture.shape[1] > 1500
    assert picture[..., :3].std() > 0.05
    assert main([str(pretraining), str(tmp_path / "here.png")]) == str(tmp_path / "here.png")


@pytest.mark.parametrize("content", ["", '{"phase": "train", "st'])
def test_a_run_without_records_yet(tmp_path, content):
    folder = write_run(tmp_path / "$new_$run", [])
    (folder / "metrics.jsonl").write_text(content)
    assert "no records yet" in curves_figure([str(folder)]).get_suptitle()
    training_curves([str(folder)], str(tmp_path / "new.png"))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl is missing"):
        training_curves([str(tmp_path)], str(tmp_path / "out.png"))
    for words in ([], ["--help"], ["only.png"]):
        with pytest.raises(InputError, match=r"python -m wavtrain\.reports RUN"):
            main(words)
    result = subprocess.run([sys.executable, "-m", "wavtrain.reports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert os.listdir(tmp_path) == []
