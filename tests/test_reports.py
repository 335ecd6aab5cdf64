"""Curves: the numbers that stand in metrics.jsonl, over the lines they are to be compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.image import imread

from wavtrain import InputError
from wavtrain.reporting import curves
from wavtrain.reporting.recorded_runs import MOST_POINTS, names_of, read_run, smoothed, thinned
from wavtrain.reports import draw_curves, main, table, training_curves

pytestmark = pytest.mark.filterwarnings("error")
PRETRAINING = {"loss": 4.0, "contrastive_accuracy": 0.25, "code_perplexity": 80.0, "gradient_norm": 0.5, "learning_rate": 1e-4,
               "gumbel_temperature": 2.0, "padding_fraction": 0.0, "audio_hours": 1.5, "audio_seconds_per_second": 900.0}


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


def figure_of(*folders):
    return curves.curves_figure([read_run(str(folder), name) for folder, name in zip(folders, names_of(folders), strict=True)])


def panels(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def test_the_panels_of_a_pretraining_run(pretraining):
    figure = figure_of(pretraining)
    found = panels(figure)
    assert list(found) == ["Loss", "Contrastive accuracy", "Code perplexity", "Gradient norm", "Learning rate", "Speed"]
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
    assert heights(perplexity) == pytest.approx((192, 640))
    assert found["Gradient norm"].get_yscale() == "log"
    assert heights(found["Gradient norm"]) == pytest.approx((0.5, 2))
    assert all(axes.get_xlabel() == "step (optimizer updates)" and axes.get_ylabel() for axes in figure.axes)
    told = ["base", "100 updates", "1.50 hours heard", "Gumbel temperature always 2", "Padding always 0 %"]
    assert figure.get_suptitle().split("   |   ") == told
    assert "train: mean over 5 % of the run, at least 3 records" in [text.get_text() for text in figure.legends[0].texts]


def heights(axes) -> tuple[float, float]:
    """Of the band that is drawn."""
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    return band.y0, band.y1


def test_smoothing():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    assert smoothed(values).tolist() == [1.5, 1.5, 3.0, 5.0, 5.0]  # over three records, fewer at the ends
    assert np.isnan(smoothed(np.full(3, np.nan))).all()
    assert len(smoothed(np.array([]))) == 0
    assert smoothed(np.arange(500.0))[250] == 250
    assert smoothed(np.arange(500.0))[0] == 6.0  # twelve records to the right


def test_a_long_line_keeps_its_spikes():
    values = np.sin(np.arange(1_000_007.0) / 1e5)
    values[[123_456, 999_999, 1_000_006]] = 50, -50, 7
    values[2_000:4_000] = np.nan
    steps, thin = thinned(np.arange(1_000_007), values)
    assert len(thin) < 2 * MOST_POINTS
    assert (np.diff(steps) >= 0).all()
    assert {50.0, -50.0, 7.0} <= set(thin.tolist())
    np.testing.assert_array_equal(thin, values[steps])
    assert len(thinned(np.arange(100), values[:100])[0]) == 100


def test_outliers_stretch_no_axis_and_are_told(tmp_path):
    train = [{"phase": "train", "step": step, **PRETRAINING, "loss": 4.0 - step / 1000} for step in range(1, 1001)]
    train[500]["loss"] = train[700]["gradient_norm"] = 1e6
    found = panels(figure_of(write_run(tmp_path / "run", train)))
    assert 2.9 < found["Loss"].get_ylim()[0] < 3.1
    assert 3.9 < found["Loss"].get_ylim()[1] < 4.3
    assert [text.get_text() for text in found["Loss"].texts] == ["not shown: 1 above, as 1e+06"]
    raw, smooth = found["Loss"].lines
    assert max(raw.get_ydata()) == 1e6  # the line leaves the picture
    assert max(smooth.get_ydata()) < 4
    assert found["Gradient norm"].get_ylim()[1] > 1e6  # a logarithmic axis has room for it


def test_arguments_stand_in_for_a_config_that_is_not_there_yet(tmp_path):
    folder = write_run(tmp_path / "run", [{"phase": "train", "step": 1, **PRETRAINING}])
    (folder / "arguments.yaml").write_text("num_negatives: 29\ncross_sample_negatives: 20\nseed: null\n")
    found = panels(figure_of(folder))
    assert [text.get_text() for text in found["Contrastive accuracy"].texts] == ["chance 2 %"]
    assert not found["Code perplexity"].texts


@pytest.fixture
def ctc(tmp_path):
    records = [{"phase": "train", "step": 1, "loss": 300.0, "gradient_norm": 0.0, "learning_rate": 0.0},
               *({"phase": "validation", "step": step, "loss": loss, "wer": wer, "cer": None}
                 for step, loss, wer in ((1, 290.0, 0.5), (2, 9.0, 0.25), (3, 12.0, 0.375)))]
    return write_run(tmp_path / "ctc", records)


def test_ctc_runs_have_their_own_panels(ctc, tmp_path):
    found = panels(figure_of(ctc))
    assert list(found) == ["CTC loss", "Word error rate", "Gradient norm", "Learning rate"]
    assert found["CTC loss"].get_yscale() == "log"  # it falls by more than a factor of 20
    assert found["Word error rate"].lines[-1].get_xydata().tolist() == [[1, 50.0], [2, 25.0], [3, 37.5]]
    assert not found["Gradient norm"].patches
    training_curves([str(ctc)], str(tmp_path / "ctc.png"))


def test_runs_of_both_kinds_share_no_loss(ctc, pretraining):
    found = panels(figure_of(pretraining, ctc))
    assert len({id(found[title]) for title in ("Loss", "CTC loss")}) == 2
    assert [len(found[title].lines) for title in ("Loss", "CTC loss")] == [3, 3]
    assert [text.get_text() for text in found["Gradient norm"].texts] == ["healthy in pretraining: 0.5 to 2"]


def test_runs_over_one_another(pretraining, tmp_path):
    other = write_run(tmp_path / "other", [{"phase": "train", "step": 1, **PRETRAINING}])
    twin = tmp_path / "deeper" / "base"
    twin.parent.mkdir()
    write_run(twin, [{"phase": "train", "step": 1, **PRETRAINING}])
    figure = figure_of(pretraining, other, twin)
    assert [line.get_color() for line in panels(figure)["Loss"].lines] == [
        curves.COLORS[number] for number, lines in enumerate((3, 2, 2)) for _ in range(lines)]
    assert [text.get_text() for text in figure.legends[0].texts][:3] == [str(pretraining), "other", str(twin)]
    assert figure.get_suptitle().startswith("3 runs")


def test_twelve_runs_are_told_apart(tmp_path):
    train = [{"phase": "train", "step": step, **PRETRAINING} for step in range(1, 9)]
    folders = [write_run(tmp_path / f"run{number}", train) for number in range(12)]
    figure = figure_of(*folders)
    drawn = panels(figure)["Loss"].lines
    assert len(drawn) == 12  # smoothed only
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 12
    assert len(figure.legends[0].texts) == 14


def test_a_table_of_the_last_numbers(ctc, pretraining):
    runs = [read_run(str(pretraining), "base"), read_run(str(ctc), "ctc")]
    rows = [line.split() for line in table(runs).splitlines()]
    assert rows[0][:5] == ["run", "step", "hours", "loss", "accuracy"]
    assert rows[1][:5] == ["base", "train", "100", "1.50", "3.01"]  # the mean of the last three
    assert rows[2][:4] == ["validation", "100", "3.5", "30.00"]
    assert rows[3][:4] == ["ctc", "train", "1", "300"]
    assert rows[4] == ["validation", "3", "12", "37.50"]
    assert rows[5] == ["best", "2", "9", "25.00"]


def test_a_picture_is_written_whole(pretraining, tmp_path, capsys):
    assert main([str(pretraining)]) == str(pretraining / "training_curves.png")
    assert sorted(os.listdir(pretraining)) == ["config.json", "metrics.jsonl", "training_curves.png"]
    assert capsys.readouterr().out.splitlines()[1].startswith("base  train")
    picture = imread(pretraining / "training_curves.png")
    assert picture.shape[0] > 700
    assert picture.shape[1] > 1500
    assert picture[..., :3].std() > 0.05
    assert os.path.getsize(pretraining / "training_curves.png") < 150_000
    assert main([str(pretraining), str(tmp_path / "here.png")]) == str(tmp_path / "here.png")


def test_a_comparison_leaves_the_picture_of_each_run_alone(pretraining, ctc):
    alone = [main([str(folder)]) for folder in (pretraining, ctc)]
    before = [Path(path).read_bytes() for path in alone]
    assert main([str(pretraining), str(ctc)]) == str(pretraining / "compared_curves.png")
    assert [Path(path).read_bytes() for path in alone] == before


@pytest.mark.parametrize("content", ["", '{"phase": "train", "st', '{"phase": "train", "step": 1, "loss": null}\n'])
def test_a_run_without_numbers_yet(tmp_path, content):
    folder = write_run(tmp_path / "$new_$run", [])
    (folder / "metrics.jsonl").write_text(content)
    assert "no records yet" in figure_of(folder).get_suptitle()
    assert main([str(folder)])


@pytest.mark.parametrize("norm", [0.7, 17.0], ids=["in the healthy band", "far from it"])
def test_one_record_is_in_the_middle_of_its_axes(tmp_path, norm):
    axes = panels(figure_of(write_run(tmp_path / "run", [{"phase": "train", "step": 1, **PRETRAINING, "gradient_norm": norm}])))
    assert axes["Gradient norm"].get_ylim() == pytest.approx((norm / 10, norm * 10))


def test_a_run_is_read_while_it_is_written(pretraining):
    with open(pretraining / "metrics.jsonl", "a") as file:
        file.write('{"phase": "train", "step": 101, "loss": 3.')
    assert len(read_run(str(pretraining), "base").phases["train"]) == 100


@pytest.mark.parametrize(("line", "said"), [('{"st', "line 1 is no record"), ('[1]', "line 1 is no record"),
                                            ('{"step": "one"}', "line 1 is no record"),
                                            ('{"step": 1, "loss": "low"}', "no number")])
def test_damage_is_named_and_harms_no_run(tmp_path, line, said, caplog):
    folder = write_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").write_text(line + '\n{"phase": "train", "step": 2, "loss": 1.0}\n')
    with pytest.raises(InputError, match=rf"metrics\.jsonl: .*{said}"):
        main([str(folder)])
    draw_curves(str(folder))
    assert [record.getMessage()[:22] for record in caplog.records] == ["no training_curves.png"]
    assert os.listdir(folder) == ["metrics.jsonl"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl is missing"):
        training_curves([str(tmp_path)], str(tmp_path / "out.png"))
    for words in ([], ["--help"], ["only.png"]):
        with pytest.raises(InputError, match=r"python -m wavtrain\.reports RUN"):
            main(words)
    result = subprocess.run([sys.executable, "-m", "wavtrain.reports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert os.listdir(tmp_path) == []
