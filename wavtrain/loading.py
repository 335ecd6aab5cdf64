"""Clips and micro-batches from disk, loaded ahead by other processes."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wavtrain import InputError
from wavtrain.batching import BatchBudget
from wavtrain.places import Place
from wavtrain.speech.waveforms import SAMPLING_RATE, Refusal, open_speech


class Placed(Protocol):
    """A micro-batch that knows where in the run it belongs."""

    place: Place


Batch = TypeVar("Batch", bound=Placed)


def loaded(speech: Dataset, places: Iterable[Place], num_workers: int, device: torch.device) -> Iterator[list[Batch]]:
    """The micro-batches `speech[place]` of one update after the other, loaded ahead if there are to be processes for it."""
    loader = DataLoader(speech, batch_size=None, sampler=places, num_workers=num_workers, pin_memory=device.type == "cuda",
                        prefetch_factor=4 if num_workers else None, worker_init_fn=_leave_signals_to_the_loop)
    update: list[Batch] = []
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        update.append(batch)
        if len(update) == batch.place.rounds:
            yield update
            update = []


def _leave_signals_to_the_loop(worker: int) -> None:
    """A signal sent to the whole job must not take away the loader from a loop that is to finish its update."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decoded(utterance_id: str, audio: dict[str, bytes]) -> np.ndarray:
    """The samples of a prepared clip, float32."""
    try:
        with open_speech(audio["bytes"]) as speech:
            return np.concatenate(list(speech.blocks("float32")))
    except Refusal as refusal:
        raise InputError(f"--dataset_name: the prepared clip {utterance_id} is damaged ({refusal}): prepare the corpus again "
                         "with --overwrite_cache") from refusal


def normalised(wave: np.ndarray) -> np.ndarray:
    """As Wav2Vec2FeatureExtractor with do_normalize, over the whole clip."""
    return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)


def rounded_up(length: int, multiple: int | None) -> int:
    """To the next multiple, if one is asked for."""
    return ceil(length / multiple) * multiple if multiple else length


def budget_of(max_clips: int | None, max_seconds: float | None, longest_seconds: float | None = None) -> BatchBudget:
    """As the flags say; eight clips where they say nothing."""
    seconds = (round(each * SAMPLING_RATE) if each else None for each in (max_seconds, longest_seconds))
    return BatchBudget(max_clips if max_clips or max_seconds else 8, *seconds)


def frames_after(num_samples: np.ndarray, convolutions: Iterable[tuple[int, int]]) -> np.ndarray:
    """How many frames layers of (kernel, stride) make of so many samples."""
    for kernel, stride in convolutions:
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def padded(rows: Sequence[np.ndarray], width: int, kind: type) -> np.ndarray:
    """(rows, width, ...), filled up with 0."""
    values = np.zeros((len(rows), width, *rows[0].shape[1:]), dtype=kind)
    for row, value in enumerate(rows):
        values[row, : len(value)] = value
    return values
