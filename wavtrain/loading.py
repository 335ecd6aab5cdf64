"""Clips and micro-batches from disk, loaded ahead by other processes."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from wavtrain import InputError
from wavtrain.batching import BatchBudget, EpochPlan, plan_epoch, plan_in_order
from wavtrain.flags import NUM_CORES
from wavtrain.places import Place, share_of, validation_places
from wavtrain.progress import followed
from wavtrain.speech.waveforms import SAMPLING_RATE, Refusal, open_speech


class PlannedClips(Dataset):
    """Prepared clips of which plans make micro-batches."""

    crops = False  # every clip to the shortest of its batch
    slowest = 1.0  # of the speeds at which clips run; the plan has them that long

    def __init__(self, clips: datasets.Dataset, num_samples: np.ndarray, seed: int, budget: BatchBudget) -> None:
        self.clips, self.num_samples, self.seed, self.budget = clips, num_samples, seed, budget

    def plan(self, epoch: int) -> EpochPlan:
        """Every clip once."""
        return plan_epoch(self.num_samples, self.seed, epoch, self.budget)

    def plan_in_order(self) -> EpochPlan:
        """Every clip once, for validation."""
        return plan_in_order(self.num_samples, self.budget)

    def heard(self) -> np.ndarray:
        """How many samples each clip may have when it is loaded, before it is cropped."""
        return self.num_samples

    def opened(self, place: Place) -> tuple[dict[str, list[Any]], list[np.ndarray]]:
        """The columns of a micro-batch's clips, and their samples."""
        rows = self.clips[place.micro_batch.clips.tolist()]
        columns = rows["utterance_id"], rows["audio"], rows["num_samples"]  # a few bytes could be hours of silence
        return rows, [decoded(name, audio["bytes"], 0, length) for name, audio, length in zip(*columns, strict=True)]

    def random_at(self, place: Place) -> tuple[np.random.Generator, int]:
        """What decides all that is random in a micro-batch, and a seed for what the model draws: by (seed, step, number)."""
        seeds = np.random.SeedSequence((self.seed, place.step, place.micro_batch.number))
        return np.random.default_rng(seeds), int(seeds.generate_state(1)[0])


class _HandsOver(Dataset):
    """An InputError is handed over rather than raised, as a loader's process would wrap it in its traceback."""

    def __init__(self, speech: Dataset) -> None:
        self.speech = speech

    def __getitem__(self, place: Any) -> Any:
        try:
            return self.speech[place]
        except InputError as error:
            return error


def loaded(speech: Dataset, places: Iterable[Any], num_workers: int | None, device: torch.device) -> Iterator[list[Any]]:
    """The micro-batches `speech[place]` of one update after the other, loaded ahead if there are to be processes for it."""
    num_workers = loader_processes(device) if num_workers is None else num_workers
    loader = DataLoader(_HandsOver(speech), batch_size=None, sampler=places, num_workers=num_workers,
                        prefetch_factor=4 if num_workers else None, pin_memory=device.type == "cuda",
                        worker_init_fn=_leave_signals_to_the_loop,
                        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None)
    update = []
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        update.append(batch)
        if len(update) == batch.place.rounds:
            yield update
            update = []


def validation_batches(speech: Dataset, accelerator: Accelerator, num_workers: int | None) -> Iterator[Any]:
    """This process's share of all clips, each of them once, in order."""
    places = validation_places(speech.plan_in_order(), share_of(accelerator))
    updates = loaded(speech, places, num_workers, accelerator.device)
    for (batch,) in followed(updates, len(places), "batches", "validation", disable=not accelerator.is_main_process):
        yield batch


def loader_processes(device: torch.device) -> int:
    """Of each process, where the user has not said: one feeds a CPU, a fast GPU wants up to four."""
    cores = NUM_CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if device.type == "cpu" else max(1, min(4, cores - 1))


def _leave_signals_to_the_loop(worker: int) -> None:
    """A signal sent to the whole job must not take away the loader from a loop that is to finish its update."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decoded(utterance_id: str, audio: bytes, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The samples of a prepared clip, or of a part of it, float32."""
    try:
        with open_speech(audio, start, stop, "samples") as speech:
            blocks = list(speech.blocks("float32"))
    except Refusal as refusal:
        raise InputError(f"--dataset_name: the prepared clip {utterance_id} is damaged ({refusal}): prepare the corpus again "
                         "with --overwrite_cache") from refusal
    wave = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)  # most are one, which need not be copied
    return wave[: None if stop is None else stop - start]


def normalised(wave: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
    """As Wav2Vec2FeatureExtractor with do_normalize, over the whole clip; then a part of it."""
    centred = wave - wave.mean()
    scale = np.sqrt(np.square(centred).mean() + 1e-7)
    return centred[start:stop] / scale


def rounded_up(length: int, multiple: int | None) -> int:
    """To the next multiple, if one is asked for."""
    return ceil(length / multiple) * multiple if multiple else length


def budget_of(max_clips: int | None, max_seconds: float | None, longest_seconds: float | None = None) -> BatchBudget:
    """As the flags say; eight clips where they say nothing."""
    seconds = (round(each * SAMPLING_RATE) if each else None for each in (max_seconds, longest_seconds))
    return BatchBudget(max_clips if max_clips or max_seconds else 8, *seconds)


def padded(rows: Sequence[np.ndarray], width: int, kind: type) -> np.ndarray:
    """(rows, width, ...), filled up with 0."""
    values = np.zeros((len(rows), width, *rows[0].shape[1:]), dtype=kind)
    for row, value in enumerate(rows):
        values[row, : len(value)] = value
    return values
