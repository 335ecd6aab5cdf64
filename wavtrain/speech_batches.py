"""Prepared speech -> micro-batches: decode, normalise, crop or pad, mask. What is random follows from (seed, step, number)."""

from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor

from wavtrain import InputError
from wavtrain.batching import BatchBudget, planned_lengths
from wavtrain.loading import PlannedClips, normalised, padded, rounded_up
from wavtrain.masking import frames_after, masked_places, span_mask
from wavtrain.places import Place


@dataclass(frozen=True)
class BatchSettings:
    """How clips become a batch."""

    seed: int
    budget: BatchBudget
    crops: bool  # every clip to the shortest of its batch, at a random place; otherwise they are padded to the longest
    normalises: bool  # each clip to mean 0 and variance 1
    convolutions: tuple[tuple[int, int], ...]  # kernel and stride of each layer that makes frames of samples
    mask_time_prob: float
    mask_time_length: int
    mask_time_min_masks: int
    require_same_masks: bool = False
    pad_to_multiple_of: int | None = None

    def frames_of(self, num_samples: np.ndarray) -> np.ndarray:
        """How many frames the model makes of so many samples."""
        return frames_after(num_samples, self.convolutions)


class SpeechBatch(NamedTuple):
    """What the model is given, and what is known of it without asking the device."""

    inputs: dict[str, Tensor]
    place: Place
    seed: int  # of dropout, Gumbel noise and negatives
    targets: int  # masked frames
    frames: int
    speech_samples: int
    samples: int  # with the padding

    @property
    def weight(self) -> float:
        """0 where it repeats another micro-batch for the sake of the collectives."""
        return float(self.place.micro_batch.counts)

    @property
    def counted_targets(self) -> int:
        """Its share of the divisor."""
        return int(self.weight) * self.targets

    def known(self) -> dict[str, float]:
        """What measures.Sums adds up beside the model's output."""
        return {"targets": self.targets, "frames": self.frames, "speech_samples": self.speech_samples, "samples": self.samples}


class SpeechBatches(PlannedClips):
    """Prepared clips, a micro-batch at a time: `batches[place]`."""

    def __init__(self, clips: datasets.Dataset, settings: BatchSettings) -> None:
        num_samples = clips.data.column("num_samples").to_numpy()
        num_frames = settings.frames_of(planned_lengths(num_samples, settings.budget).astype(np.int64))
        usable = np.flatnonzero(num_frames >= settings.mask_time_length)
        if not len(usable):
            raise InputError(f"no clip is long enough for a mask of {settings.mask_time_length} frames (the longest makes "
                             f"{num_frames.max()}): --random_crop_in_seconds, --max_batch_duration_in_seconds and "
                             "--mask_time_length decide that")
        self.num_too_short = len(num_samples) - len(usable)  # no part in the loss, and others would be cropped to them
        clips = clips.select_columns(["utterance_id", "audio", "num_samples", "speaker"])
        super().__init__(clips.select(usable) if self.num_too_short else clips, num_samples[usable], settings.seed,
                         settings.budget)
        self.settings, self.crops = settings, settings.crops

    def __getitem__(self, place: Place) -> SpeechBatch:
        _, waves = self.opened(place)
        return self._batch(waves, place, *self.random_at(place))

    def _batch(self, waves: list[np.ndarray], place: Place, generator: np.random.Generator, seed: int) -> SpeechBatch:
        settings = self.settings
        lengths = planned_lengths(np.array([len(wave) for wave in waves]), settings.budget)
        if settings.crops:
            lengths = np.full_like(lengths, _rounded_down(int(lengths.min()), settings.pad_to_multiple_of))
        width = rounded_up(int(lengths.max()), settings.pad_to_multiple_of)
        starts = [generator.integers(len(wave) - length + 1) for wave, length in zip(waves, lengths, strict=True)]
        pieces = [normalised(wave, start, start + length) if settings.normalises else wave[start : start + length]
                  for wave, start, length in zip(waves, starts, lengths, strict=True)]
        values = padded(pieces, width, np.float32)
        num_frames = settings.frames_of(lengths.astype(np.int64))
        mask = span_mask(num_frames, settings.mask_time_prob, settings.mask_time_length, settings.mask_time_min_masks,
                         generator, settings.require_same_masks)
        total_frames = int(settings.frames_of(np.array(width)))
        mask = np.pad(mask, ((0, 0), (0, total_frames - mask.shape[1])))
        places, counts = masked_places(mask)
        inputs = {"input_values": values, "mask": mask, "places": places, "counts": counts}
        if num_frames.min() < total_frames:
            inputs["num_frames"] = num_frames
        return SpeechBatch({name: torch.from_numpy(each) for name, each in inputs.items()}, place, seed, int(counts.sum()),
                           int(num_frames.sum()), int(lengths.sum()), values.size)


def _rounded_down(length: int, multiple: int | None) -> int:
    return length // multiple * multiple if multiple and length >= multiple else length
