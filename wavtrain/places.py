"""The way of one process through a run: which micro-batches are its own, in their order, from any place on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from accelerate import Accelerator

from wavtrain.batching import EpochPlan, MicroBatch, updates_of

OF_VALIDATION = 0  # its step: masks and negatives are the same every time


class Place(NamedTuple):
    """Which micro-batch of the run: everything there is to resume."""

    step: int
    epoch: int
    update: int  # within the epoch
    rounds: int  # micro-batches of each process in this update
    micro_batch: MicroBatch


class TrainingPlaces:
    """The micro-batches of this process from a place in the run to its end, planned an epoch at a time."""

    def __init__(self, plan: Callable[[int], EpochPlan], micro_batches_per_update: int, share: tuple[int, int], last_step: int,
                 step: int = 1, epoch: int = 0, update: int = 0) -> None:
        self.plan, self.micro_batches_per_update, self.share = plan, micro_batches_per_update, share
        self.last_step, self.first = last_step, (step, epoch, update)

    def __iter__(self) -> Iterator[Place]:
        step, epoch, first_update = self.first
        while step <= self.last_step:
            updates = updates_of(self.plan(epoch), self.micro_batches_per_update, *self.share, first_update)
            for update, micro_batches in enumerate(updates, start=first_update):
                if step > self.last_step:
                    return
                yield from (Place(step, epoch, update, len(micro_batches), each) for each in micro_batches)
                step += 1
            epoch, first_update = epoch + 1, 0


def share_of(accelerator: Accelerator) -> tuple[int, int]:
    """Which process of how many this is."""
    return accelerator.process_index, accelerator.num_processes


def validation_places(plan: EpochPlan, share: tuple[int, int]) -> list[Place]:
    """This process's share of the validation batches, every process with equally many."""
    process_index, num_processes = share
    places = []
    for update, (each,) in enumerate(updates_of(plan, num_processes, process_index, num_processes)):
        number = update * num_processes + each.number
        places.append(Place(OF_VALIDATION, 0, update, 1, each._replace(number=number)))
    return places
