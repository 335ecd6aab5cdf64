"""Sweeps: what a search space may say, what a study counts, what ends a trial early, and what is said at the end."""

import csv
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import run_ctc_finetuning
import run_sweep
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.sweeps import script_flags
from wavtrain.sweeps.objectives import objective_of, validations
from wavtrain.sweeps.parallel_coordinates import parallel_coordinates
from wavtrain.sweeps.script_flags import Base, read_base, write_flags
from wavtrain.sweeps.search_space import Choices, Range, candidates, corners, read_space, remarks
from wavtrain.sweeps.study import Study
from wavtrain.sweeps.suggestions import Judges
from wavtrain.sweeps.sweep_axes import BEYOND
from wavtrain.sweeps.sweep_pictures import draw, history, importance
from wavtrain.sweeps.sweep_report import best_of, drop_models, more_of_the_same, table, verdict, write_best, write_table
from wavtrain.sweeps.trial_process import EXIT_CODE
from wavtrain.sweeps.trials import Outcome

SPACES = sorted(set((ROOT / "configs" / "sweeps").glob("*.yaml")) - set((ROOT / "configs" / "sweeps").glob("wandb_*")))
ACCURACY = objective_of("run_wav2vec2_pretraining_no_trainer.py", None, None)
WER = objective_of("run_ctc_finetuning.py", None, None)
SPACE = {"learning_rate": Range(1e-4, 1e-2, log=True), "num_warmup_steps": Range(0, 6, step=2),
         "lr_scheduler_type": Choices(("linear", "cosine"))}
VALUES = {"learning_rate": 1e-3, "num_warmup_steps": 2, "lr_scheduler_type": "linear"}
SCRIPT = str(Path(__file__).parent / "swept_script.py")


def space_of(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(str(path))


def study_in(folder, space=SPACE, objective=ACCURACY, facts=None, storage=None, **judges):
    return Study(str(folder), storage, "sweep", space, objective, facts or {"config": {"seed": 1}}, Judges(**judges))


def study_of_one(folder, **settings):
    """For one sweep that is not interrupted: in memory, which is faster."""
    return study_in(folder, storage="sqlite:///:memory:", **settings)


def run_all(study, num_trials, curves):
    """Trials whose validations are these, one a step; a word in place of a curve is how the trial failed."""
    while (claim := study.claim(num_trials, VALUES)) is not None:
        curve = curves(claim)
        outcome = Outcome(curve, updates=1, reason="why") if isinstance(curve, str) else None
        for step, value in enumerate([] if outcome else curve, 1):
            outcome = Outcome("complete", value, updates=step)
            if study.is_hopeless(claim, step, value):
                outcome = Outcome("pruned", updates=step)
                break
        study.finish(claim, outcome, 60.0)
    return study.rows()


def test_a_space_is_read(tmp_path):
    space = space_of(tmp_path, "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
                               "num_warmup_steps: {low: 0, high: 6, step: 2}\nlr_scheduler_type: {choices: [linear, cosine]}\n"
                               "weight_decay: {low: 0, high: 1, step: 0.25}\n")
    assert space == {**SPACE, "weight_decay": Range(0.0, 1, 0.25)}
    assert space["num_warmup_steps"].is_whole
    assert not space["weight_decay"].is_whole
    assert dict(candidates(SPACE)) == {"learning_rate": 1e-2, "num_warmup_steps": 6, "lr_scheduler_type": "cosine"}


@pytest.mark.parametrize(("text", "fault"), [
    ("", "is empty"),
    ("learning_rate: {low: 1, high: 2}\nlearning_rate: {low: 1, high: 3}", "'learning_rate' is given twice"),
    ("learning_rate: 0.1", "must be {low: ..., high: ...} or {choices: [...]}"),
    ("learning_rate: {low: 1, high: 2, choices: [1, 2]}", "must be {low"),
    ("learning_rate: {low: 1, hi: 2, high: 2}", "knows no hi"),
    ("learning_rate: {choices: [1, 2], log: true}", "knows no log"),
    ("learning_rate: {low: 1e-4, high: 0.1}", "low must be a number and is '1e-4'; YAML reads 1e-4 as a word"),
    ("learning_rate: {low: .nan, high: 0.1}", "low must be a number"),
    ("learning_rate: {low: true, high: 2}", "low must be a number"),
    ("learning_rate: {high: 2}", "low must be a number and is None"),
    ("learning_rate: {low: 3, high: 2}", "low 3 must be below high 2"),
    ("learning_rate: {low: 0, high: 2, log: true}", "log needs a low above 0"),
    ("learning_rate: {low: 1, high: 2, log: 1}", "log must be true or false"),
    ("learning_rate: {low: 1, high: 2, log: true, step: 1}", "log and step do not go together"),
    ("learning_rate: {low: 0, high: 5, step: 2}", "step 2 must divide the way from 0 to 5"),
    ("learning_rate: {low: 0, high: 5, step: 0}", "step 0 must divide"),
    ("seed: {choices: [1]}", "two or more values"),
    ("seed: {choices: 1}", "two or more values"),
    ("seed: {choices: [1, 2, 1.0]}", "1.0 is there twice"),
    ("seed: {choices: [1, [2]]}", "[2] is no choice"),
    ("output_dir: {choices: [a, b]}", "output_dir is set by the sweep itself"),
])
def test_a_space_is_refused_in_one_line(tmp_path, text, fault):
    with pytest.raises(InputError) as caught:
        space_of(tmp_path, text)
    assert fault in str(caught.value)
    assert str(caught.value).startswith("--search_space ")
    assert "\n" not in str(caught.value)


def test_what_a_trial_can_have():
    assert SPACE["num_warmup_steps"].match(4.0) == 4
    assert isinstance(SPACE["num_warmup_steps"].match(4.0), int)
    assert [SPACE["num_warmup_steps"].match(value) for value in (3, 8, None, True)] == [None] * 4
    assert SPACE["learning_rate"].match(1e-3) == 1e-3
    assert Choices((12, 24)).match(12.0) == 12
    assert Choices((True, False)).match(False) is False
    assert Choices((0, 1)).match(True) is None


def test_what_makes_the_task_easier_is_told():
    assert len(remarks({"mask_time_prob": SPACE["learning_rate"]}, "contrastive_accuracy")) == 1
    assert not remarks({"mask_time_prob": SPACE["learning_rate"]}, "wer")
    assert "text_case changes what validation measures" in remarks({"text_case": Choices(("keep", "lower"))}, "wer")[0]


def base_of(tmp_path, space="learning_rate: {low: 1.0e-4, high: 1.0e-3}", config="max_train_steps: 8", words=(), script=SCRIPT):
    (tmp_path / "base.yaml").write_text(config)
    path = str(tmp_path / "space.yaml")
    return read_base(script, str(tmp_path / "base.yaml"), words, path, space_of(tmp_path, space), str(tmp_path / "out"))


def test_the_base_is_the_config_and_the_words_after_it(tmp_path):
    base = base_of(tmp_path, config="max_train_steps: 8\noutput_dir: elsewhere\nlearning_rate: 2.0e-3",
                   words=["--learning_rate=3e-3", "--exempt_norms_and_biases", "--dataset_name", "a", "b"])
    assert base.given == {"max_train_steps": 8, "learning_rate": 3e-3, "exempt_norms_and_biases": True,
                          "dataset_name": ["a", "b"]}
    assert base.resolved["lr_scheduler_type"] == "linear"
    assert base.flags_of("here", {"learning_rate": 1.0}) == {**base.given, "learning_rate": 1.0, "output_dir": "here"}


@pytest.mark.parametrize(("given", "fault"), [
    ({"space": "learning_rat: {low: 1, high: 2}"}, "learning_rat: no flag is called 'learning_rat'; is 'learning_rate' meant?"),
    ({"space": "learning_rate: {low: 0, high: 2}"}, "space.yaml: learning_rate: argument --learning_rate: '0' is not"),
    ({"space": "num_warmup_steps: {low: 0.0, high: 2.0}"}, "'0.0' is not a whole number"),
    ({"space": "lr_scheduler_type: {choices: [linear, cosin]}"}, "invalid choice: 'cosin'"),
    ({"space": "exempt_norms_and_biases: {choices: [1, 2]}"}, "it takes true or false"),
    ({"config": "learning_rat: 1"}, "swept_script.py refuses its arguments: --config"),
    ({"words": ["--seed", "1"]}, "unrecognized arguments: --seed"),
    ({"words": ["--output_dir", "x"]}, "--output_dir after --: is set by the sweep itself"),
    ({"script": "none.py"}, "there is no such script"),
    ({"space": "lr_scheduler_type: {choices: [linear, cosine]}\nlearning_rate: {low: 1, high: 2}",
      "config": "exempt_norms_and_biases: true"}, "space.yaml: lr_scheduler_type: --exempt_norms_and_biases does not go with"),
    ({"script": str(ROOT / "wavtrain" / "masking.py")}, "cannot be asked for its flags"),
])
def test_the_script_itself_says_which_flags_there_are(tmp_path, given, fault):
    with pytest.raises(InputError) as caught:
        base_of(tmp_path, **given)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_combinations_that_the_script_refuses_are_told(tmp_path):
    space = ("lr_scheduler_type: {choices: [linear, cosine]}\nexempt_norms_and_biases: {choices: [true, false]}\n"
             "learning_rate: {low: 1.0e-4, high: 1.0e-3}")
    base = base_of(tmp_path, space)
    assert base.remarks == ["note: 2 of 8 combinations of ends of the search space are refused, as lr_scheduler_type cosine, "
                            "exempt_norms_and_biases True, learning_rate 0.0001: --exempt_norms_and_biases does not go with "
                            "cosine"]
    assert not base_of(tmp_path).remarks


def test_of_many_combinations_some_are_tried():
    assert list(corners({"seed": Range(1, 2), "lr_scheduler_type": SPACE["lr_scheduler_type"]})) == [
        {"seed": 1, "lr_scheduler_type": "linear"}, {"seed": 2, "lr_scheduler_type": "linear"},
        {"seed": 1, "lr_scheduler_type": "cosine"}, {"seed": 2, "lr_scheduler_type": "cosine"}]
    many = [tuple(corner.values()) for corner in corners({str(number): Choices((0, 1, 2)) for number in range(20)})]
    assert len({*many}) == len(many) == 128
    assert [{*values} for values in zip(*many, strict=True)] == [{0, 1, 2}] * 20


def test_of_many_combinations_a_value_is_refused_only_if_it_never_fits(tmp_path, monkeypatch):
    """The seed has to be the warm-up, of which a sample may hold no case; a schedule of no name has none."""
    def asked(script, words, names, tried):
        faults = ["no such schedule" if values.get("lr_scheduler_type") == "cosin" else
                  f"seed {values.get('seed', 0)} with warm-up {values.get('num_warmup_steps', 0)}"
                  if values.get("seed", 0) != values.get("num_warmup_steps", 0) else "" for values in tried]
        return {"faults": faults, "given": {}, "flags": {}}

    monkeypatch.setattr(script_flags, "_asked", asked)
    tens = "".join(f"{name}: {{choices: {list(range(10))}}}\n" for name in ("seed", "num_warmup_steps", "logging_steps"))
    assert "of 128 combinations" in base_of(tmp_path, tens).remarks[0]
    with pytest.raises(InputError, match="lr_scheduler_type: no such schedule"):
        base_of(tmp_path, f"{tens}lr_scheduler_type: {{choices: [linear, cosin]}}")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_fit_their_command(path, tmp_path):
    words = shlex.split(path.read_text().split("\n")[0].removeprefix("# python run_sweep.py"))
    args = run_sweep.parse_arguments(words)
    assert args.search_space == str(path.relative_to(ROOT))
    script = {"run_ctc_finetuning.py": run_ctc_finetuning}.get(args.script, pretraining)
    resolved = vars(script.parse_arguments(["--config", str(ROOT / args.config), *args.words, "--output_dir", "x"]))
    space = read_space(str(path))
    assert not remarks(space, objective_of(args.script, args.metric, args.direction).metric)
    config = yaml.safe_load((ROOT / args.config).read_text())
    for name, value in candidates(space):
        write_flags(str(tmp_path / "one.yaml"), {**config, name: value, "output_dir": "x"})
        assert vars(script.parse_arguments(["--config", str(tmp_path / "one.yaml")]))[name] == value
    if path.stem == "demo_pretraining":
        assert None not in [each.match(resolved[name]) for name, each in space.items()], "the base can be learned from"


def test_the_example_for_wandb_calls_the_script():
    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "wandb_pretraining.yaml").read_text())
    assert sweep["metric"] == {"name": f"validation/{ACCURACY.metric}", "goal": ACCURACY.direction}
    for end, place in (("min", 0), ("max", -1)):
        given = {name: each["values"][place] if "values" in each else each[end] for name, each in sweep["parameters"].items()}
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items() if value is not False]
        after = sweep["command"][sweep["command"].index("${program}") + 1 :]
        words = [word for each in after for word in (flags if each == "${args_no_boolean_flags}" else [each])]
        args = pretraining.parse_arguments([*words, "--output_dir", "runs/wandb_sweep/id"])
        assert {name: getattr(args, name) for name in given} == given


def test_the_study_has_as_many_trials_as_asked_for(tmp_path):
    rows = run_all(study_in(tmp_path), 3, lambda claim: [claim.trial.params["learning_rate"]])
    assert sorted(row.number for row in rows) == [0, 1, 2]
    assert [row.params for row in rows if row.is_base] == [VALUES]
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)
    again = study_in(tmp_path)
    assert again.claim(3, VALUES) is None
    assert again.rows() == rows
    assert len(run_all(again, 4, lambda claim: [0.1])) == 4


def test_a_trial_that_a_dead_sweep_left_goes_on_and_counts_once(tmp_path):
    first, second = study_in(tmp_path), study_in(tmp_path)
    left, other = first.claim(3, VALUES), second.claim(3, VALUES)
    assert (left.trial.number, other.trial.number) == (0, 1), "each has its own"
    assert not left.is_resumed
    first.is_hopeless(left, 1, 0.5)
    other.held.release()  # as when its process dies
    taken = first.claim(3, VALUES)
    assert (taken.trial.number, taken.is_resumed, taken.params) == (1, True, other.params)
    first.finish(taken, Outcome("complete", 0.3), 1.0)
    left.held.release()
    rows = run_all(study_in(tmp_path), 3, lambda claim: [0.5, 0.6])
    assert [(row.number, row.state) for row in rows] == [(0, "complete"), (2, "complete"), (1, "complete")]
    assert rows[0].curve == {1: 0.5, 2: 0.6}


def test_a_trial_that_ends_while_another_sweep_looks_at_it_is_not_run_again(tmp_path):
    first, second = study_in(tmp_path), study_in(tmp_path)
    claim = first.claim(1, VALUES)
    ending = threading.Timer(0.3, first.finish, (claim, Outcome("complete", 0.5), 1.0))
    ending.start()
    assert second.claim(1, VALUES) is None
    ending.join()
    assert [row.state for row in second.rows()] == ["complete"]


def test_one_seed_is_one_sweep_however_often_it_is_interrupted(tmp_path):
    whole = run_all(study_in(tmp_path / "whole"), 5, lambda claim: [claim.trial.params["learning_rate"]])
    for number in (2, 4, 5):
        parts = run_all(study_in(tmp_path / "parts"), number, lambda claim: [claim.trial.params["learning_rate"]])
    assert parts == whole


def test_trials_from_elsewhere_do_not_exceed_the_number(tmp_path):
    """Two machines with folders of their own share a database."""
    url = f"sqlite:///{tmp_path}/shared.db"
    here, there = (Study(str(tmp_path / name), url, "sweep", SPACE, ACCURACY, {}, Judges()) for name in ("here", "there"))
    claims = [here.claim(2, VALUES), there.claim(2, VALUES)]
    assert [claim.trial.number for claim in claims] == [0, 1]
    assert here.claim(2, VALUES) is None
    claims[1].held.release()
    assert here.claim(2, VALUES) is None, "it is not here"
    assert there.claim(2, VALUES).trial.number == 1


def test_a_study_is_of_one_config_and_one_space(tmp_path):
    study_in(tmp_path)
    with pytest.raises(InputError, match="begun with another config"):
        study_in(tmp_path, facts={"config": {"seed": 2}})
    with pytest.raises(InputError, match="begun with another space"):
        study_in(tmp_path, space={**SPACE, "num_warmup_steps": Range(0, 8, step=2)})
    with pytest.raises(InputError, match="--storage: cannot be opened"):
        Study(str(tmp_path), "nothing://nowhere", "sweep", SPACE, ACCURACY, {}, Judges())
    with pytest.raises(InputError, match=r"--storage: cannot be opened.*No module named 'pg8000'"):
        Study(str(tmp_path), "postgresql+pg8000://nowhere/sweeps", "sweep", SPACE, ACCURACY, {}, Judges())


def test_bad_trials_are_ended_early(tmp_path):
    rises = lambda claim: [step * (1 if claim.trial.number < 4 else 0.1) for step in range(1, 7)]  # noqa: E731
    rows = run_all(study_of_one(tmp_path, num_startup_trials=3, num_unpruned_steps=3, total_steps=6), 6, rises)
    assert [(row.number, row.state, row.updates) for row in rows[4:]] == [(4, "pruned", 3), (5, "pruned", 3)]
    assert rows[4].value == pytest.approx(0.3)
    assert [row.state for row in rows[:4]] == ["complete"] * 4
    late = run_all(study_of_one(tmp_path / "late", num_startup_trials=3, num_unpruned_steps=6, total_steps=6), 6, rises)
    assert {row.state for row in late} == {"complete"}, "at its last update a trial is over anyway"
    lengths = {**SPACE, "max_train_steps": Choices((3, 4))}
    own = study_of_one(tmp_path / "own", space=lengths, num_startup_trials=1, num_unpruned_steps=3)
    base, claims = {**VALUES, "max_train_steps": 4}, []
    while len(claims) < 8:
        claims.append(own.claim(8, base))
        is_last = claims[-1].params.get("max_train_steps") == 3
        is_ended = own.is_hopeless(claims[-1], 3, -float(len(claims)))
        assert is_ended == (len(claims) > 1 and not is_last), "each has its own length"
        own.finish(claims[-1], Outcome("complete", 0.5), 1.0)
    assert {claim.params["max_train_steps"] for claim in claims[1:]} == {3, 4}
    never = run_all(study_of_one(tmp_path / "never", num_startup_trials=3, pruner="none"), 6, rises)
    assert {row.state for row in never} == {"complete"}


def test_hyperband_ends_trials_but_not_the_base(tmp_path):
    falls = lambda claim: [0.0 if claim.is_base else 1 / (claim.trial.number + step) for step in range(1, 10)]  # noqa: E731
    rows = run_all(study_of_one(tmp_path, pruner="hyperband", num_unpruned_steps=1, total_steps=9), 12, falls)
    assert next(row.state for row in rows if row.is_base) == "complete"
    assert "pruned" in {row.state for row in rows}


def test_a_collapse_is_a_failure_that_is_not_ranked_but_avoided(tmp_path):
    fate = lambda claim: "collapsed" if claim.params.get("learning_rate", 0) > 2e-3 else [claim.trial.params["learning_rate"]]  # noqa: E731
    study = study_of_one(tmp_path, num_startup_trials=3)
    rows = run_all(study, 16, fate)
    failed = [row for row in rows if row.state == "failed"]
    assert 0 < len(failed) < 8
    assert all(row.value is None and row.params["learning_rate"] > 2e-3 for row in failed)
    assert rows[-len(failed):] == failed
    assert best_of(rows).value == max(row.value for row in rows if row.state == "complete") <= 2e-3
    assert "failed, collapsed: why" in table(rows, list(SPACE), ACCURACY)


@pytest.mark.parametrize(("fates", "said"), [
    (["refused"] * 5, "5 trials in a row were refused, the last because: why (the same command goes on)"),
    (["refused"] * 4, ""), (["refused"] * 4 + ["crashed"], ""), (["refused"] * 5 + [[1.0]], ""), (["collapsed"] * 5, "")])
def test_failures_in_a_row_are_told(tmp_path, fates, said):
    rows = run_all(study_of_one(tmp_path), 1 + len(fates), lambda claim: [[1.0], *fates][claim.trial.number])
    assert more_of_the_same(rows) == said


def test_a_base_that_is_refused_leaves_nothing(tmp_path):
    study = study_in(tmp_path)
    with pytest.raises(InputError, match="the base config itself cannot be ranked: why"):
        run_all(study, 3, lambda claim: "refused")
    assert not (tmp_path / "trials" / "0000").exists()
    assert len(run_all(study_in(tmp_path, facts={"config": {"seed": 2}}), 2, lambda claim: [1.0])) == 2


def test_a_base_outside_of_the_space_is_compared_with(tmp_path):
    study, base = study_of_one(tmp_path), {"seed": 1, **VALUES, "learning_rate": 0.1, "lr_scheduler_type": None}
    claim = study.claim(1, base)
    assert (claim.is_base, claim.params, dict(claim.trial.params)) == (True, {}, {})
    study.finish(claim, Outcome("complete", 0.5, updates=4), 1.0)
    rows = run_all(study, 8, lambda claim: [0.1 * claim.trial.number])
    assert next(row.params for row in rows if row.is_base) == {name: base[name] for name in SPACE}, "for reports"
    assert verdict(rows, ACCURACY).startswith("trial 0007 beats the base config: contrastive_accuracy 0.7 against 0.5")
    assert set(study.importances()) == set(SPACE)
    few = study_of_one(tmp_path / "few")
    run_all(few, 3, lambda claim: [0.1 * claim.trial.number])
    assert few.importances() == {}


def write_metrics(folder, records):
    folder.mkdir()
    lines = [json.dumps({"phase": phase, "step": step, **values}) for phase, step, values in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"phase": "valid')  # the last one is being written


def test_what_a_run_is_worth(tmp_path):
    write_metrics(tmp_path / "pretraining", [("train", 1, {"contrastive_accuracy": 0.9}),
                                             ("validation", 1, {"contrastive_accuracy": 0.3}),
                                             ("validation", 2, {"contrastive_accuracy": 0.2})])
    assert ACCURACY.worth(validations(str(tmp_path / "pretraining"))) == (0.2, []), "the last model is the one that is there"
    write_metrics(tmp_path / "ctc", [("validation", 1, {"wer": 1.0, "cer": 0.7, "loss": 5.0}),
                                     ("validation", 2, {"wer": 0.9, "cer": 0.6, "loss": 6.0}),
                                     ("validation", 3, {"wer": 0.9, "cer": 0.5, "loss": None})])
    assert WER.worth(validations(str(tmp_path / "ctc"))) == (0.9, [0.9, 0.5, float("inf")]), "the best is the one that is there"
    write_metrics(tmp_path / "lost", [("validation", 1, {"contrastive_accuracy": None})])
    assert ACCURACY.worth(validations(str(tmp_path / "lost"))) == (None, [])
    with pytest.raises(InputError, match=r"run_ctc_decoding\.py: does not train, .* and run_ctc_finetuning can be swept"):
        objective_of("run_ctc_decoding.py", "wer", None)
    with pytest.raises(InputError, match=r"--metric is needed for other\.py, which is none of run_wav2vec2_pretraining"):
        objective_of("other.py", None, None)
    with pytest.raises(InputError, match="--direction minimize or maximize is needed for --metric bleu"):
        objective_of("other.py", "bleu", None)


def test_equal_error_rates_are_told_apart(tmp_path):
    study = study_of_one(tmp_path, objective=WER)
    for ties in ([1.0, 0.7, 3.0], [1.0, 0.6, 3.0], [1.0, 0.6, 2.0]):
        study.finish(study.claim(3, VALUES), Outcome("complete", 1.0, ties, 4), 1.0)
    rows = study.rows()
    assert [row.number for row in rows] == [2, 1, 0]
    assert "trial 0002 beats the base config: wer 1 (cer 0.6) against 1 (cer 0.7)" in verdict(rows, WER)


def test_the_verdict(tmp_path):
    assert verdict([], ACCURACY) == "no trial was completed, so there is no best one"
    worse = run_all(study_of_one(tmp_path / "worse"), 3, lambda claim: [0.5 if claim.is_base else 0.1 * claim.trial.number])
    assert verdict(worse, ACCURACY) == ("no trial beats the base config: contrastive_accuracy 0.5; the best of the others, "
                                        "trial 0002, has 0.2")
    lost = run_all(study_of_one(tmp_path / "lost"), 3, lambda claim: "collapsed" if claim.is_base else [0.1])
    assert verdict(lost, ACCURACY) == ("trial 0001 is the best: contrastive_accuracy 0.1; the base config failed, collapsed "
                                       "(the base config): why")


def test_best_arguments_are_for_the_script(tmp_path):
    given = pretraining.parse_arguments(["--config", str(ROOT / "configs" / "demo_pretraining.yaml")])
    names = ("dataset_name", "mask_time_prob", "model_name_or_path", "lr_scheduler_type", "torch_compile")
    base = Base("run_wav2vec2_pretraining_no_trainer.py", {name: getattr(given, name) for name in names}, vars(given))
    rows = run_all(study_of_one(tmp_path), 4, lambda claim: [0.1 * claim.trial.number])
    args = pretraining.parse_arguments(["--config", write_best(str(tmp_path), rows[0], base, ACCURACY)])
    assert {name: getattr(args, name) for name in SPACE} == rows[0].params
    assert args.output_dir == str(tmp_path / "best_run")
    assert args.dataset_name == given.dataset_name
    assert "trial 0003: contrastive_accuracy 0.3" in (tmp_path / "best.yaml").read_text()
    write_table(str(tmp_path / "trials.csv"), rows, list(SPACE), ACCURACY)
    with open(tmp_path / "trials.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["learning_rate"]) for line in lines] == [row.params["learning_rate"] for row in rows]
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4"]


def test_models_of_all_but_the_best_are_removed(tmp_path):
    study = study_of_one(tmp_path)
    rows = run_all(study, 3, lambda claim: [0.1 * claim.trial.number])
    folders = {row.number: study.folder(row.number) for row in rows}
    for folder in map(Path, folders.values()):
        (folder / "checkpoints" / "step_00000004").mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        (folder / "metrics.jsonl").write_text("")
    running = study.claim(4, VALUES)
    (Path(running.folder) / "checkpoints").mkdir()
    drop_models(study.rows(), {**folders, 3: running.folder})
    assert sorted(path.parent.name for path in tmp_path.rglob("checkpoints")) == ["0002", "0003"]
    assert [path.parent.name for path in tmp_path.rglob("model.safetensors")] == ["0002"]
    assert len(list(tmp_path.rglob("metrics.jsonl"))) == 3


def test_a_base_outside_of_the_space_is_drawn_beyond_the_axes(tmp_path):
    study = study_of_one(tmp_path)
    base = {**VALUES, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    for value in (0.5, 0.6):
        study.finish(study.claim(2, base), Outcome("complete", value, updates=4), 1.0)
    rows = study.rows()
    heights = parallel_coordinates(rows, SPACE, ACCURACY).axes[0].lines[0].get_ydata()
    assert list(heights) == pytest.approx([1 + BEYOND, 1 / 3, -BEYOND, 0])
    _, *slices = importance(rows, SPACE, ACCURACY, {}).axes
    places = [float(axes.collections[1].get_offsets()[0][0]) for axes in slices]
    assert places == pytest.approx([1e-2 * 100**BEYOND, 2, -1])
    assert [axes.get_title("left") + axes.get_title("right") for axes in slices] == [
        "base: 0.1, outside of the space", "", "base: constant, outside of the space"]
    assert all(axes.get_xlim()[0] < place < axes.get_xlim()[1] for axes, place in zip(slices, places, strict=True))


HANGING = """
import sys, threading
from wavtrain import arguments
from wavtrain.reporting.errands import Errands
def main():
    Errands("slow", threading.Event().wait).wait_for_end(0)
    threading.Thread(target=threading.Event().wait).start()  # as libraries do
    sys.exit(3)
arguments.run_as_script(main)
"""


def test_a_trial_whose_tracker_hangs_leaves_its_exit_code(tmp_path):
    (tmp_path / "hangs.py").write_text(HANGING)
    command = [sys.executable, "-m", "wavtrain.sweeps.trial_process", str(tmp_path), str(tmp_path / "hangs.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert process.wait(60) == 3
    assert (tmp_path / EXIT_CODE).read_text() == "3"


def test_pictures_show_every_trial(tmp_path):
    fates = {4: "collapsed", 5: "crashed", 6: "refused"}
    study = study_of_one(tmp_path, num_startup_trials=2, num_unpruned_steps=2, total_steps=4)
    rows = run_all(study, 10, lambda claim: fates.get(claim.trial.number, [step * claim.trial.params["learning_rate"]
                                                                           for step in range(1, 5)]))
    states = [row.state for row in rows]
    assert {*states} == {"complete", "pruned", "failed"}
    left, right = history(rows, ACCURACY).axes
    assert len(left.collections) == len(rows)
    assert len(right.lines) == len(rows)
    assert left.get_ylabel() == right.get_ylabel() == "validation contrastive accuracy"
    bars, *slices = (axes for axes in importance(rows, SPACE, ACCURACY, {"learning_rate": 0.75, "num_warmup_steps": 0.25}).axes)
    assert [round(bar.get_width()) for bar in bars.patches] == [25, 75]
    assert [axes.get_xlabel() for axes in slices] == ["learning rate, log", "num warmup steps", "lr scheduler type"]
    assert slices[0].get_xscale() == "log"
    wide = {**SPACE, "adam_beta1": Range(0.1, 0.9), "adam_beta2": Range(0.1, 0.9)}
    assert [axes.get_visible() for axes in importance(rows, wide, ACCURACY, {}).axes] == [True] * 6 + [False] * 3
    lines = parallel_coordinates(rows, SPACE, ACCURACY).axes[0].lines
    assert [line.get_linestyle() for line in lines[: len(rows)]] == [
        {"complete": "-", "pruned": "--", "failed": ":"}[state] for state in reversed(states)]
    paths = draw(str(tmp_path), rows, SPACE, ACCURACY, study.importances())
    assert all(Path(path).stat().st_size > 10_000 for path in paths)
    assert draw(str(tmp_path), [row for row in rows if row.state == "failed"], SPACE, ACCURACY, {}) == []
    assert len(draw(str(tmp_path), [row for row in rows if row.is_base], SPACE, ACCURACY, {})) == 3
