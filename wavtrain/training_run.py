"""What a training script does with its output directory: begin or resume, record, save, push, finish."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from wavtrain import InputError, run_directory
from wavtrain.durable_files import flush_tree, write_or_say_full
from wavtrain.engine import found_by_main, gathered, load_state, save_state
from wavtrain.hub.fetched_runs import drop_part, fetch_run, fetching, wait_for_fetch
from wavtrain.hub.model_card import write_model_card
from wavtrain.hub.publishing import NoPublication, Publication
from wavtrain.hub.repository import is_hub_id
from wavtrain.hub.run_facts import write_facts
from wavtrain.places import Place
from wavtrain.planned_run import PlannedRun
from wavtrain.reporting.tracking import Tracking
from wavtrain.reports import draw_curves
from wavtrain.run_options import FREE_TO_CHANGE, RunOptions

NOTHING_DONE = {"step": 0, "epoch": 0, "update": 0, "samples_heard": 0.0, "skipped_updates": 0}


class TrainingRun:
    """A run in its output directory. Every process has one and calls the same methods."""

    def __init__(self, options: RunOptions, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer,
                 describe: Callable[[PreTrainedModel, str], None], arguments: dict[str, Any], identity: dict[str, Any],
                 ahead: PlannedRun, serves_best: bool = False) -> None:
        """`describe` writes into a folder what belongs beside the weights. With `serves_best` the model of the output
        directory is that of the last call of `serve`, otherwise the newest."""
        self.options, self.accelerator, self.ahead, self.serves_best = options, accelerator, ahead, serves_best
        self.model, self.optimizer, self.describe = model, optimizer, describe
        self.arguments, self.identity = {name: value for name, value in arguments.items() if name != "hub_token"}, identity
        self.is_main = accelerator.is_main_process

    def begin(self, total_steps: int, **counters: Any) -> dict[str, Any]:
        """What is done already: nothing (and `counters` of the script as they begin), or all up to the checkpoint that is
        loaded here."""
        options, ahead, self._total_steps, nothing = self.options, self.ahead, total_steps, {**NOTHING_DONE, **counters}
        self.publication = NoPublication()
        with ExitStack() as kept:  # from other runs: the output directory
            is_fetched = found_by_main(self.accelerator, lambda: self._opened(kept))
            if is_fetched and not self.is_main:
                wait_for_fetch(options.output_dir)
            checkpoint, is_elsewhere = found_by_main(self.accelerator, lambda: self._to_resume(is_fetched))
            done = self._resumed(checkpoint, total_steps, nothing) if checkpoint else nothing
            self._owes_model = is_elsewhere or not self.serves_best
            if is_elsewhere:
                done |= counters  # the best model so far is in another directory
            elif checkpoint:
                self.publication.goes_on(done["step"], checkpoint)
            self.publication.has_model = any(done[name] != counters[name] for name in counters)  # as where a best one was found
            if self.is_main:
                run_directory.write_arguments(options.output_dir, self.arguments)
                write_facts(options.output_dir, self.arguments, ahead.prepared, ahead.heard, checkpoint, ahead.launched)
            self._tracking = Tracking(self.accelerator, options, total_steps, done["step"], self.arguments)
            self.show = self._tracking.show
            self._kept = kept.pop_all()
        return done

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._tracking.close(is_well=kind is None)
        if kind is not None:  # otherwise finish() follows
            self.publication.stop()
            self._kept.close()

    def next_place(self, done: dict[str, Any]) -> dict[str, int]:
        """Where the plan goes on."""
        return {"step": done["step"] + 1, "epoch": done["epoch"], "update": done["update"]}

    def _resumed(self, checkpoint: str, total_steps: int, counters: dict[str, Any]) -> dict[str, Any]:
        done = run_directory.read_progress(checkpoint)
        if not run_directory.is_like(done, {**counters, "arguments": {}, "identity": {}}):
            raise InputError(f"--resume_from_checkpoint {checkpoint}: its {run_directory.PROGRESS} is none of a run of this "
                             "script: resume from another checkpoint")
        run_directory.refuse_changed_arguments(done["arguments"], self.arguments, FREE_TO_CHANGE, checkpoint)
        for name, now in self.identity.items():
            if done["identity"].get(name) != now:
                raise InputError(f"--resume_from_checkpoint {checkpoint}: {name} was {done['identity'].get(name)} and is {now}")
        if done["step"] > total_steps:
            raise InputError(f"--resume_from_checkpoint {checkpoint}: {done['step']} updates are done, and {total_steps} asked "
                             "for: --max_train_steps or --num_train_epochs can ask for more")
        if done["step"] == total_steps and self.is_main:  # it may have been killed before the model was written
            print(f"{checkpoint}: all {total_steps} updates are done; the model is written again")
        load_state(self.accelerator, self.model, self.optimizer, checkpoint)
        return done

    def _opened(self, kept: ExitStack) -> bool:
        """The output directory is kept for this run, the repository, if asked for, is there; whether a run is fetched now."""
        given = self.options
        kept.enter_context(run_directory.held(given.output_dir))
        if given.push_to_hub:
            self.publication = Publication(given, partial(write_model_card, given.output_dir))
        if not (given.resume_from_checkpoint and is_hub_id(given.resume_from_checkpoint)):
            drop_part(given.output_dir)
            return False
        run_directory.checkpoint_to_resume(given.output_dir, None, given.overwrite_output_dir)  # no run may lie there
        self._fetching = kept.enter_context(fetching(given.output_dir))
        return True

    def _to_resume(self, is_fetched: bool) -> tuple[str | None, bool]:
        """The checkpoint to go on from, and whether it lies in another output directory."""
        given, wanted = self.options, self.options.resume_from_checkpoint
        if is_fetched:
            with self._fetching:
                fetch_run(wanted, given.hub_token, given.output_dir, run_directory.CHECKPOINTS)
            wanted = "latest"
        checkpoint = run_directory.checkpoint_to_resume(given.output_dir, wanted, given.overwrite_output_dir and not is_fetched)
        return checkpoint, checkpoint is not None and not run_directory.is_own(checkpoint, given.output_dir)

    def record(self, phase: str, step: int, values: dict[str, float]) -> dict[str, float]:
        """A line of metrics.jsonl, and what trackers get. Returns it, of every process its own."""
        self._tracking.record(phase, step, values)
        return {"step": step, **values}

    def advance(self, step: int) -> None:
        """The update is done with."""
        self._tracking.advance(step)

    def leave(self, step: int, signal_number: int | None) -> None:
        """After a signal, when the checkpoint stands."""
        if self.is_main:
            print(f"stopped after update {step}, which is saved: the same command with --resume_from_checkpoint latest goes on")
            self.publication.leave()
        sys.exit(128 + (signal_number or signal.SIGTERM))

    def save(self, place: Place, counters: dict[str, Any]) -> None:
        """A checkpoint, complete or absent, that is also a model directory; with --push_to_hub the model goes there."""
        progress = {"step": place.step, "epoch": place.epoch, "update": place.update + 1, **counters}
        def write_state(folder: str) -> None:
            save_state(self.accelerator, self.model, self.optimizer, folder)
            if self.is_main:
                self.describe(self.accelerator.unwrap_model(self.model), folder)

        compared = {name: value for name, value in self.arguments.items()
                    if name not in FREE_TO_CHANGE and name not in run_directory.OF_THE_START}
        progress |= {"arguments": compared, "identity": self.identity}
        checkpoint = run_directory.save_checkpoint(
            self.options.output_dir, place.step, write_state, progress,
            is_main=self.is_main, wait_for_everyone=self.accelerator.wait_for_everyone, keep=self.options.save_total_limit)
        if self.options.push_to_hub:
            if not self.serves_best and self.options.hub_strategy != "end":
                self.serve()
            self.publication.saved(place.step, checkpoint, is_last=place.step == self._total_steps)

    def serve(self) -> None:
        """The model as it is now, in the output directory: written beside, then renamed file by file, the weights last."""
        model = self.accelerator.unwrap_model(self.model)
        weights = gathered(model.state_dict(), self.is_main)
        self._owes_model = not self.serves_best
        if not self.is_main:
            return
        part = os.path.join(self.options.output_dir, run_directory.MODEL_PART)
        shutil.rmtree(part, ignore_errors=True)

        def write_model(folder: str) -> None:
            model.save_pretrained(folder, state_dict=weights)
            self.describe(model, folder)
            for name in os.listdir(folder):  # safetensors lets nobody else read
                shutil.copymode(os.path.join(folder, "config.json"), os.path.join(folder, name))

        write_or_say_full(write_model, part)
        flush_tree(part)
        for name in sorted(os.listdir(part), key=lambda name: (name.startswith("model"), name)):
            os.replace(os.path.join(part, name), os.path.join(self.options.output_dir, name))
        os.rmdir(part)
        self.publication.served()

    def finish(self, what_next: str) -> None:
        """The model, the picture of the curves, the last upload, the last line."""
        if self._owes_model:
            self.serve()
        self.accelerator.wait_for_everyone()  # others may leave: a barrier would not outlast a long upload
        if self.is_main:
            draw_curves(self.options.output_dir)
            write_model_card(self.options.output_dir)
            print(what_next, flush=True)
            self.publication.finish()  # what has not come to the Hub is the last that is said
        self._kept.close()
