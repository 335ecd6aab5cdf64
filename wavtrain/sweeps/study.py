"""The study: an Optuna study on disk that several sweeps may work on, die over and go on with.

A trial belongs to the sweep that holds the lock in its folder. A trial that runs, says the study, but whose lock is free, was
left by a sweep that died: the next one goes on with it, so that no trial is lost and none is counted twice.
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wavtrain import InputError
from wavtrain.durable_files import Lock, lock
from wavtrain.sweeps.objectives import Objective
from wavtrain.sweeps.search_space import Space, matched
from wavtrain.sweeps.suggestions import Judges, optuna, pruner, sampler, suggest
from wavtrain.sweeps.trial_rows import BASE, BASE_VALUES, OUTCOME, Row, ranked, row_of
from wavtrain.sweeps.trials import Outcome

DATABASE, TRIALS, CLAIMING, CLAIMED = "study.db", "trials", ".claiming.lock", ".sweep.lock"
PATIENCE_OF_SQLITE = 120.0  # seconds to wait for another sweep to write
FEWEST_TO_TELL = 4  # completed trials: of two, each flag would explain the same
LENGTH = "max_train_steps"  # the flag, which a space may have
SURPLUS, FACTS = "is_surplus", "facts"


@dataclass(frozen=True)
class Claim:
    """A trial that this sweep is to run."""

    trial: Any
    folder: str
    params: dict[str, Any]
    is_base: bool
    is_resumed: bool
    held: Lock


class Study:
    """Trials of one base config over one search space, judged by one objective."""

    def __init__(self, output_dir: str, storage: str | None, name: str, space: Space, objective: Objective,
                 facts: dict[str, Any], judges: Judges) -> None:
        """`facts` are what the trials have in common; a study is not gone on with under others."""
        if optuna is None:
            raise InputError("sweeps need Optuna: pip install -r requirements-sweeps.txt")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.output_dir, self.name, self.space, self.objective, self.judges = output_dir, name, space, objective, judges
        self.is_here = storage is None
        self._url = storage or f"sqlite:///{os.path.abspath(os.path.join(output_dir, DATABASE))}"
        os.makedirs(os.path.join(output_dir, TRIALS), exist_ok=True)
        with self._alone():
            self._storage = self._opened()
            self._study = optuna.create_study(storage=self._storage, study_name=name, direction=objective.direction,
                                              pruner=pruner(judges), load_if_exists=True)
            _refuse_other_facts(self._study, {**facts, "space": _plain(space), "objective": vars(objective)}, name)

    def claim(self, num_trials: int, base_flags: dict[str, Any]) -> Claim | None:
        """A trial to run: one that was left, else the next; None where the study has as many as it is to have.

        A base config outside of the space is to be compared with, not learned from: Optuna gets no values of it.
        """
        base_values = {name: base_flags[name] for name in self.space}
        with self._alone():
            found = self._left() or self._next(num_trials, base_values)
            if found is None:
                return None
            trial, held, is_resumed = found
            is_base = trial.user_attrs.get(BASE, False)
            if not is_base or matched(self.space, base_values):
                for name, dimension in self.space.items():
                    suggest(trial, name, dimension)
            return Claim(trial, self.folder(trial.number), {} if is_base else dict(trial.params), is_base, is_resumed, held)

    def is_hopeless(self, claim: Claim, step: int, value: float) -> bool:
        """Whether other trials were better at this update; that of the base config is run to its end, to compare with."""
        if step in self._frozen(claim.trial.number).intermediate_values:
            return False
        claim.trial.report(value, step)
        total_steps = claim.params.get(LENGTH, self.judges.total_steps)
        is_over = total_steps is not None and step >= total_steps
        return not claim.is_base and not is_over and claim.trial.should_prune()

    def finish(self, claim: Claim, outcome: Outcome, seconds: float) -> None:
        """What became of it, and the trial is over. A base config that is refused takes its study with it.

        Optuna's samplers do not look at failed trials; those that the arguments made fail are pruned to it, to be avoided.
        """
        if claim.is_base and outcome.kind in ("refused", "unmeasured") and len(self._trials()) == 1:
            optuna.delete_study(study_name=self.name, storage=self._storage)
            claim.held.release()
            shutil.rmtree(claim.folder)
            raise InputError(f"the base config itself cannot be ranked: {outcome.reason}")
        claim.trial.set_user_attr(OUTCOME, {**vars(outcome), "seconds": seconds})
        states = optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "crashed": states.FAIL, "unmeasured": states.FAIL}
        self._study.tell(claim.trial, outcome.value, state=state.get(outcome.kind, states.PRUNED))
        claim.held.release()

    def rows(self) -> list[Row]:
        """All trials: the best first, then those that were ended early, then those that failed or still run."""
        return ranked([row_of(trial) for trial in self._trials()], self.objective)

    def importances(self) -> dict[str, float]:
        """How much of being among the best each flag explains, as shares; empty where there are too few trials to tell."""
        if sum(row.kind == "complete" for row in self.rows()) < FEWEST_TO_TELL:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says itself what few trials are worth
            try:
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                return optuna.importance.get_param_importances(self._study, evaluator=evaluator)
            except (ValueError, RuntimeError):  # none that differ
                return {}

    def folder(self, number: int) -> str:
        """Of a trial."""
        return os.path.join(self.output_dir, TRIALS, f"{number:04d}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One sweep at a time looks for a trial in this directory."""
        path = os.path.join(self.output_dir, CLAIMING)
        while (held := lock(path)) is None:
            time.sleep(0.1)
        try:
            yield
        finally:
            held.release()

    def _opened(self) -> Any:
        options = {"connect_args": {"timeout": PATIENCE_OF_SQLITE}} if self._url.startswith("sqlite") else {}
        try:
            return optuna.storages.RDBStorage(self._url, engine_kwargs=options)
        except Exception as error:  # of SQLAlchemy, of drivers that are not there, of servers that do not answer
            fault = str(error.__cause__ or error).strip().split("\n")[0][:300]
            raise InputError(f"--storage: cannot be opened ({type(error).__name__}: {fault})") from error

    def _trials(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if not trial.user_attrs.get(SURPLUS)]

    def _frozen(self, number: int) -> Any:
        return next(trial for trial in self._trials() if trial.number == number)

    def _left(self) -> tuple[Any, Lock, bool] | None:
        for trial in filter(_is_running, self._trials()):
            folder = self.folder(trial.number)
            held = lock(os.path.join(folder, CLAIMED)) if self.is_here or os.path.isdir(folder) else None
            if held is not None and _is_running(self._frozen(trial.number)):
                return optuna.trial.Trial(self._study, trial._trial_id), held, True
            if held is not None:  # its sweep was done with it in this moment
                held.release()
        return None

    def _next(self, num_trials: int, base_values: dict[str, Any]) -> tuple[Any, Lock, bool] | None:
        trials = self._trials()
        if not trials:
            self._study.enqueue_trial(matched(self.space, base_values) or {}, {BASE: True, BASE_VALUES: base_values})
        if sum(trial.state != optuna.trial.TrialState.WAITING for trial in trials) >= num_trials:
            return None
        self._study.sampler = sampler(self.judges, len(trials))
        trial = self._study.ask()
        before = sum(each.number < trial.number for each in self._trials())
        if before >= num_trials:  # a sweep elsewhere was faster
            trial.set_user_attr(SURPLUS, True)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        held = lock(os.path.join(self.folder(trial.number), CLAIMED))
        assert held is not None, "nobody looks for trials but this sweep"
        return trial, held, False


def _is_running(trial: Any) -> bool:
    return trial.state == optuna.trial.TrialState.RUNNING


def _refuse_other_facts(study: Any, facts: dict[str, Any], name: str) -> None:
    facts = json.loads(json.dumps(facts, default=str))
    saved = study.user_attrs.get(FACTS)
    if saved is None:
        study.set_user_attr(FACTS, facts)
        return
    changed = [part for part in facts if saved.get(part) != facts[part]]
    if changed:
        raise InputError(f"the study {name} was begun with another {' and '.join(changed)}: give back what it had, or begin "
                         "another one with another --output_dir")


def _plain(space: Space) -> dict[str, Any]:
    return {name: each._asdict() for name, each in space.items()}
