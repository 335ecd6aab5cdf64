"""Prepared clips -> log-probabilities of whole recordings: long ones in windows, short ones together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from wavtrain import InputError
from wavtrain.batching import BatchBudget, plan_in_order
from wavtrain.loading import decoded, loaded, padded
from wavtrain.places import Place, share_of, validation_places
from wavtrain.recognition.windows import Window, joined, window_plan
from wavtrain.speech.waveforms import SAMPLING_RATE


@dataclass(frozen=True)
class WindowOptions:
    """The fields are flags of the same names."""

    per_device_eval_batch_size: int | None = None  # the script's default depends on the device
    window_in_seconds: float = 30.0
    window_overlap_in_seconds: float = 6.0

    def __post_init__(self) -> None:
        if self.window_overlap_in_seconds >= self.window_in_seconds:
            raise InputError(f"--window_overlap_in_seconds {self.window_overlap_in_seconds:g}: is not below "
                             f"--window_in_seconds {self.window_in_seconds:g}")

    @property
    def samples(self) -> tuple[int, int]:
        """Of a window, and of what two of them share."""
        return round(self.window_in_seconds * SAMPLING_RATE), round(self.window_overlap_in_seconds * SAMPLING_RATE)


class Piece(NamedTuple):
    """What is heard at once: short recordings whole, of long ones so many windows."""

    place: Place
    windows: list[tuple[int, Window]]  # the row of each, and the window


class Inputs(NamedTuple):
    """A piece, as the model is given it."""

    place: Place
    windows: list[tuple[int, Window]]
    batch: dict[str, Tensor]


class Recordings(Dataset):
    """Prepared clips a piece at a time, so that memory does not grow with their length: `recordings[piece]`."""

    def __init__(
        self, clips: datasets.Dataset, options: WindowOptions, features_of: Callable[[np.ndarray], np.ndarray],
        frames_of: Callable[[np.ndarray], np.ndarray], samples_per_frame: int,
    ) -> None:
        self.options, self.features_of, self.frames_of = options, features_of, frames_of
        self.samples_per_frame = samples_per_frame
        self.num_samples = clips.data.column("num_samples").to_numpy()
        self._stored = clips.select_columns(["utterance_id", "audio"])
        self._opened: tuple[int, str, bytes] = (-1, "", b"")  # the clip of the last window: the next is likely of the same

    def pieces(self, share: tuple[int, int]) -> Iterator[Piece]:
        """This process's, the longest clips first, all windows of a clip one after the other."""
        most = self.options.per_device_eval_batch_size
        plan = plan_in_order(self.num_samples, BatchBudget(most, most * self.options.samples[0]))
        for place in validation_places(plan, share):
            rows = place.micro_batch.clips.tolist() if place.micro_batch.counts else []
            windows = [(row, window) for row in rows for window in self._windows_of(row)]
            yield from (Piece(place, windows[first : first + most]) for first in range(0, len(windows), most))

    def __getitem__(self, piece: Piece) -> Inputs:
        return Inputs(*piece, _batch([self.features_of(self._samples(*each)) for each in piece.windows]))

    def _windows_of(self, row: int) -> list[Window]:
        return window_plan(int(self.num_samples[row]), *self.options.samples, self.samples_per_frame, self.frames_of)

    def _samples(self, row: int, window: Window) -> np.ndarray:
        if self._opened[0] != row:
            clip = self._stored[row]
            self._opened = row, clip["utterance_id"], clip["audio"]["bytes"]
        _, name, audio = self._opened
        return decoded(name, audio, window.start, window.end)


@torch.inference_mode()
def log_probs_of(
    recordings: Recordings, model: PreTrainedModel, accelerator: Accelerator, num_workers: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, log-probabilities (frames, tokens)) of each clip of this process, longest first."""
    heard: list[np.ndarray] = []
    plan: list[Window] = []
    for (inputs,) in loaded(recordings, recordings.pieces(share_of(accelerator)), num_workers, accelerator.device):
        with accelerator.autocast():
            output = model(**send_to_device(inputs.batch, accelerator.device))["log_probs"].float().cpu().numpy()
        for (row, window), log_probs in zip(inputs.windows, output, strict=True):
            heard.append(log_probs)
            plan.append(window)
            if window.end == recordings.num_samples[row]:
                yield row, _checked(joined(heard, plan))
                heard, plan = [], []


def _checked(log_probs: np.ndarray) -> np.ndarray:
    if np.isnan(log_probs).any():
        raise InputError("--model_name_or_path: the model gives values that are not numbers: try --mixed_precision no")
    return log_probs


def _batch(features: list[np.ndarray]) -> dict[str, Tensor]:
    lengths = np.array([len(each) for each in features])
    inputs = {"inputs": torch.from_numpy(padded(features, int(lengths.max()), np.float32))}
    return inputs if lengths.min() == lengths.max() else {**inputs, "lengths": torch.from_numpy(lengths)}
