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

    per_device_eval_batch_size: int = 8
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


class WindowGroup(NamedTuple):
    """Recordings in windows, as the model is given them."""

    place: Place
    plans: list[list[Window]]  # of each recording
    num_frames: list[int]  # of each window
    batches: list[dict[str, Tensor]]


class Recordings(Dataset):
    """Some prepared clips at a time, longest first: `recordings[place]`."""

    def __init__(
        self, clips: datasets.Dataset, options: WindowOptions, features_of: Callable[[np.ndarray], np.ndarray],
        frames_of: Callable[[np.ndarray], np.ndarray], samples_per_frame: int,
    ) -> None:
        self.clips, self.options, self.features_of, self.frames_of = clips, options, features_of, frames_of
        self.samples_per_frame = samples_per_frame

    def places(self, share: tuple[int, int]) -> list[Place]:
        """Which clips are this process's. As many at once as windows in a batch; those of several windows by themselves."""
        most = self.options.per_device_eval_batch_size
        budget = BatchBudget(most, most * self.options.samples[0])
        plan = plan_in_order(self.clips.data.column("num_samples").to_numpy(), budget)
        return [place for place in validation_places(plan, share) if place.micro_batch.counts]

    def __getitem__(self, place: Place) -> WindowGroup | InputError:
        """An error is handed over rather than raised, as a loader's process would wrap it in its traceback."""
        plans, features, num_frames = [], [], []
        try:
            rows = self.clips.select_columns(["utterance_id", "audio"])[place.micro_batch.clips.tolist()]
            for row in zip(rows["utterance_id"], rows["audio"], strict=True):
                wave = decoded(*row)
                plan = window_plan(len(wave), *self.options.samples, self.samples_per_frame, self.frames_of)
                plans.append(plan)
                features += [self.features_of(wave[window.start : window.end]) for window in plan]
                num_frames += self.frames_of(np.array([window.end - window.start for window in plan])).tolist()
        except InputError as error:
            return error
        most = self.options.per_device_eval_batch_size
        batches = [_batch(features[first : first + most]) for first in range(0, len(features), most)]
        return WindowGroup(place, plans, num_frames, batches)


@torch.inference_mode()
def log_probs_of(
    recordings: Recordings, model: PreTrainedModel, accelerator: Accelerator, num_workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, log-probabilities (frames, tokens)) of each clip of this process, longest first."""
    for (group,) in loaded(recordings, recordings.places(share_of(accelerator)), num_workers, accelerator.device):
        with accelerator.autocast():
            outputs = [model(**send_to_device(batch, accelerator.device))["log_probs"].float().cpu().numpy()
                       for batch in group.batches]
        windows = (each for output in outputs for each in output)
        windows = iter([each[:length] for each, length in zip(windows, group.num_frames, strict=True)])
        for row, plan in zip(group.place.micro_batch.clips.tolist(), group.plans, strict=True):
            yield row, joined([next(windows) for _ in plan], plan)


def _batch(features: list[np.ndarray]) -> dict[str, Tensor]:
    lengths = np.array([len(each) for each in features])
    inputs = {"inputs": torch.from_numpy(padded(features, int(lengths.max()), np.float32))}
    return inputs if lengths.min() == lengths.max() else {**inputs, "lengths": torch.from_numpy(lengths)}
