"""A run as it is laid out: the model, the speech it will hear, how long it is, and its micro-batches from any step on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
from accelerate import Accelerator
from transformers import FeatureExtractionMixin, PreTrainedModel

from wavtrain.batching import EpochPlan
from wavtrain.checks.published import Recipe
from wavtrain.checks.run_shape import BatchSizes, RunSettings, batch_sizes
from wavtrain.loading import PlannedClips, loaded
from wavtrain.places import TrainingPlaces, share_of
from wavtrain.schedules import Schedule
from wavtrain.speech.prepared_directory import PreparedSpeech


@dataclass(frozen=True)
class PlannedRun:
    """As its script has it, before the model is spread over processes and anything is written."""

    accelerator: Accelerator
    prepared: PreparedSpeech
    model: PreTrainedModel
    extractor: FeatureExtractionMixin
    speech: PlannedClips
    held_out: PlannedClips | None
    recipe: Recipe | None  # for a model of its size
    options: RunSettings
    schedule: Schedule
    frozen_updates: int = 0  # at its beginning, in which the head alone learns

    @cached_property
    def plan(self) -> EpochPlan:
        """Of the first epoch; the others are like it."""
        return self.speech.plan(epoch=0)

    @property
    def per_update(self) -> int:
        """Micro-batches of all processes."""
        return self.accelerator.num_processes * self.options.gradient_accumulation_steps

    @property
    def total_steps(self) -> int:
        """Updates."""
        return self.options.max_train_steps or self.options.num_train_epochs * self.plan.num_updates(self.per_update)

    @cached_property
    def sizes(self) -> BatchSizes:
        """Of its micro-batches."""
        return batch_sizes(self.speech.heard(), self.speech.budget, self.speech.crops, self.plan)

    @property
    def num_met(self) -> int:
        """Micro-batches of the first epoch that it comes to."""
        return min(self.total_steps * self.per_update, self.plan.num_batches)

    @property
    def frozen(self) -> float:
        """Share of the updates in which the head alone learns."""
        return min(self.frozen_updates / self.total_steps, 1.0)

    @property
    def heard(self) -> dict[str, datasets.Dataset]:
        """The clips of train and of validation that serve."""
        return {part: speech.clips for part, speech in (("train", self.speech), ("validation", self.held_out))
                if speech is not None}

    @property
    def launched(self) -> dict[str, Any]:
        """What its arguments do not say, or leave to others."""
        return {"num_processes": self.accelerator.num_processes, "mixed_precision": self.accelerator.mixed_precision,
                "uneven_clips": "crop" if self.speech.crops else "pad", "total_steps": self.total_steps}

    def updates(self, num_workers: int | None, **first: int) -> Iterator[list[Any]]:
        """This process's micro-batches of one update after the other, from a place on to the end."""
        places = TrainingPlaces(self.speech.plan, self.per_update, share_of(self.accelerator), self.total_steps, **first)
        yield from loaded(self.speech, places, num_workers, self.accelerator.device)

    def weights(self, only_learning: bool = False) -> int:
        """How many numbers the model consists of."""
        never = {id(each) for each in self.model.encoder_parameters()} if only_learning and self.frozen == 1 else set()
        return sum(each.numel() for each in self.model.parameters()
                   if not only_learning or (each.requires_grad and id(each) not in never))
