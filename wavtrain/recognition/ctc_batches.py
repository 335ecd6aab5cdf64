"""Prepared clips with text -> micro-batches for CTC: speed, waveform or filter banks, labels, masks, padding."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import soxr
import torch
from torch import Tensor

from wavtrain.batching import BatchBudget
from wavtrain.durable_files import write_lines
from wavtrain.loading import PlannedClips, padded, rounded_up
from wavtrain.masking import frames_after, span_mask
from wavtrain.places import Place
from wavtrain.recognition.transcribed_clips import Survey, survey
from wavtrain.recognition.transcripts import TextRules, normalised
from wavtrain.recognition.vocabularies import Vocabulary
from wavtrain.speech.waveforms import SAMPLING_RATE

ON_THE_CPU = ("label_lengths", "num_frames")  # the loss asks for them there; on a GPU they would have to be waited for


class SpanMasks(NamedTuple):
    """SpecAugment along one axis."""

    probability: float
    length: int
    min_spans: int


@dataclass(frozen=True)
class CtcSettings:
    """How clips become a batch."""

    seed: int
    budget: BatchBudget
    rules: TextRules
    vocabulary: Vocabulary
    features_of: Callable[[np.ndarray], np.ndarray]  # a waveform -> what the model is given: (samples,) or (frames, features)
    frames_of: Callable[[np.ndarray], np.ndarray]  # samples -> frames with labels
    convolutions: tuple[tuple[int, int], ...]  # between what the model is given and its masks
    hidden_size: int
    is_training: bool
    time_masks: SpanMasks
    channel_masks: SpanMasks
    speeds: tuple[float, ...] = (1.0,)
    counts_tokens: bool = False  # an update is a mean over labels rather than utterances
    pad_to_multiple_of: int | None = None


class CtcBatch(NamedTuple):
    """What the model is given, and what is known of it without asking the device."""

    inputs: dict[str, Tensor]
    place: Place
    seed: int  # of dropout
    targets: int  # utterances, or labels
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
        return {"targets": self.targets, "speech_samples": self.speech_samples, "samples": self.samples}


class CtcBatches(PlannedClips):
    """Prepared clips with their labels, a micro-batch at a time: `batches[place]`."""

    def __init__(self, clips: datasets.Dataset, settings: CtcSettings) -> None:
        num_samples = clips.data.column("num_samples").to_numpy()
        slowest = np.ceil(num_samples / min(settings.speeds)).astype(np.int64)
        fastest = np.floor(num_samples / max(settings.speeds)).astype(np.int64)
        is_too_long = slowest > (settings.budget.max_samples or np.inf) if settings.is_training else None
        self.survey: Survey = survey(clips, settings.rules, settings.vocabulary, settings.frames_of(fastest), is_too_long)
        usable, clips = self.survey.usable, clips.select_columns(["utterance_id", "audio", "num_samples", "text", "speaker"])
        super().__init__(clips if len(usable) == len(clips) else clips.select(usable), slowest[usable], settings.seed,
                         settings.budget)
        self.settings, self.slowest = settings, min(settings.speeds)

    def heard(self) -> np.ndarray:
        """At speeds as an epoch may draw them."""
        speeds = np.random.default_rng(self.seed).choice(self.settings.speeds, len(self.num_samples))
        return np.ceil(self.num_samples * self.slowest / speeds).astype(np.int64)

    def __getitem__(self, place: Place) -> CtcBatch:
        rows, waves = self.opened(place)
        generator, seed = self.random_at(place)
        waves = [self._at_some_speed(wave, generator) for wave in waves]
        labels = [self.settings.vocabulary.encode(normalised(text, self.settings.rules)) for text in rows["text"]]
        return self._batch(waves, labels, place, generator, seed)

    def _at_some_speed(self, wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Faster is higher as well, as if the tape ran faster."""
        speed = self.settings.speeds[generator.integers(len(self.settings.speeds))]
        return wave if speed == 1 else soxr.resample(wave, SAMPLING_RATE * speed, SAMPLING_RATE, quality="MQ")

    def _batch(self, waves: list[np.ndarray], labels: list[np.ndarray], place: Place, generator: np.random.Generator,
               seed: int) -> CtcBatch:
        settings = self.settings
        features = [settings.features_of(wave) for wave in waves]
        lengths = np.array([len(each) for each in features])
        values = padded(features, rounded_up(int(lengths.max()), settings.pad_to_multiple_of), np.float32)
        num_samples = np.array([len(wave) for wave in waves])
        inputs = {"inputs": values, "labels": padded(labels, max(map(len, labels)), np.int64),
                  "label_lengths": np.array([len(each) for each in labels]), "num_frames": settings.frames_of(num_samples)}
        if lengths.min() < values.shape[1]:
            inputs["lengths"] = lengths
        if settings.is_training:
            inputs |= self._masks(lengths, values.shape[1], generator)
        tensors = {name: torch.from_numpy(each) for name, each in inputs.items()}
        targets = sum(map(len, labels)) if settings.counts_tokens else len(labels)
        return CtcBatch(tensors, place, seed, targets, int(num_samples.sum()), int(num_samples.max()) * len(waves))

    def _masks(self, lengths: np.ndarray, width: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        settings, masks = self.settings, {}
        num_frames = frames_after(lengths, settings.convolutions)
        most = int(frames_after(np.array(width), settings.convolutions))
        if settings.time_masks.probability:
            mask = span_mask(num_frames, *settings.time_masks, generator)
            masks["time_mask"] = np.pad(mask, ((0, 0), (0, most - mask.shape[1])))
        if settings.channel_masks.probability:
            masks["channel_mask"] = span_mask(np.full(len(lengths), settings.hidden_size), *settings.channel_masks, generator)
        return masks


def write_lists(folder: str, speech: CtcBatches, held_out: CtcBatches | None) -> None:
    """rejected.jsonl has a line for every clip left out; training_text.txt is for a language model."""
    rejected = [each for batches in (speech, held_out) if batches for each in batches.survey.rejected]
    write_lines(os.path.join(folder, "rejected.jsonl"), [json.dumps(each, ensure_ascii=False) for each in rejected])
    texts = (normalised(text, speech.settings.rules) for text in speech.clips["text"])
    write_lines(os.path.join(folder, "training_text.txt"), texts)
