"""A run as it is laid out: the model, the speech it will hear, how long it is, and its micro-batches from any step on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
        return batch_sizes(self.speech.num_samples, self.speech.budget, self.speech.crops, self.plan)

    def updates(self, num_workers: int | None, **first: int) -> Iterator[list[Any]]:
        """This process's micro-batches of one update after the other, from a place on to the end."""
        places = TrainingPlaces(self.speech.plan, self.per_update, share_of(self.accelerator), self.total_steps, **first)
        yield from loaded(self.speech, places, num_workers, self.accelerator.device)

    def weights(self, only_learning: bool = False) -> int:
        """How many numbers the model consists of."""
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad or not only_learning)
