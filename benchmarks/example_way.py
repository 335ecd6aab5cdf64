"""Pretraining as transformers' run_wav2vec2_pretraining_no_trainer.py does it: the other side of several benchmarks.

Either its loop, around the same model, functions and library (written down here), or a user's copy of the script itself, of
which only the data source is replaced.
"""

import io
import runpy
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import soundfile
import torch
from accelerate import Accelerator
from side_by_side import SAMPLING_RATE
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, FeatureExtractionMixin, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices


class Listener(Protocol):
    """Who is told how it goes."""

    def hear(self, samples: float, with_padding: float) -> None:
        """What a micro-batch holds."""

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same, and how long they were waited for."""

    def update_is_done(self) -> None:
        """Another one."""


def train(work: Path, clips: int, mixed_precision: str, listener: Listener) -> None:
    """The loop, without end."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed_precision)
    plain = Wav2Vec2ForPreTraining.from_pretrained(work / "model").train()
    extractor = AutoFeatureExtractor.from_pretrained(work / "model")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-5)
    loader = DataLoader(float_lists(work / "prepared" / "train", extractor), shuffle=True, batch_size=clips, drop_last=True,
                        collate_fn=lambda rows: padded(rows, plain, extractor))
    model, optimizer, loader = accelerator.prepare(plain, optimizer, loader)
    while True:
        for batch in listener.watched(loader):
            listener.hear(float(batch.pop("samples")), batch["input_values"].numel())
            num_losses = batch["mask_time_indices"].sum()
            batch.pop("sub_attention_mask", None)
            accelerator.backward(model(**batch).loss)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.data.mul_((1 / num_losses).to(parameter.grad.device))
            sum(each.grad.detach().data.norm(2).item() ** 2 for each in model.parameters() if each.grad is not None)
            optimizer.step()
            optimizer.zero_grad()
            listener.update_is_done()


def padded(rows: list[dict[str, Any]], model: Wav2Vec2ForPreTraining, extractor: FeatureExtractionMixin) -> dict[str, Any]:
    """Clips padded to the longest of them, with masks and negatives."""
    batch = dict(extractor.pad([{"input_values": row["input_values"]} for row in rows], padding=True, return_tensors="pt"))
    frames = int(model._get_feat_extract_output_lengths(batch["input_values"].shape[-1]))
    if "attention_mask" in batch:
        batch["sub_attention_mask"] = model._get_feature_vector_attention_mask(frames, batch["attention_mask"])
    drawn = masks_and_negatives(model, (len(rows), frames), batch.get("sub_attention_mask"))
    return {**batch, **drawn, "samples": torch.tensor(sum(len(row["input_values"]) for row in rows))}


def masks_and_negatives(model: Wav2Vec2ForPreTraining, shape: tuple[int, int], real: Any = None) -> dict[str, torch.Tensor]:
    """By transformers' own functions."""
    mask = _compute_mask_indices(shape, model.config.mask_time_prob, model.config.mask_time_length, attention_mask=real)
    negatives = _sample_negative_indices(shape, model.config.num_negatives, mask_time_indices=mask)
    return {"mask_time_indices": torch.tensor(mask, dtype=torch.long), "sampled_negative_indices": torch.from_numpy(negatives)}


def float_lists(folder: Path, extractor: FeatureExtractionMixin) -> datasets.Dataset:
    """What the example's map leaves in Arrow."""
    def lists() -> Iterator[dict[str, Any]]:
        for samples in waves(folder):
            yield {"input_values": extractor(samples, sampling_rate=SAMPLING_RATE).input_values[0]}

    return datasets.Dataset.from_generator(lists, cache_dir=tempfile.mkdtemp(dir=folder.parent))


def waves(folder: Path) -> Iterator[np.ndarray]:
    """The samples of prepared clips."""
    for clip in datasets.load_from_disk(folder):
        yield soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="float32")[0]


def run_script(script: Path, work: Path, clips: int, mixed_precision: str, listener: Listener) -> None:
    """A user's copy of the example, fed with the prepared clips; an update ends where the next forward pass begins."""
    def rows() -> Iterator[dict[str, Any]]:
        for samples in waves(work / "prepared" / "train"):
            yield {"audio": {"array": samples, "sampling_rate": SAMPLING_RATE}}

    speech = datasets.Dataset.from_generator(rows, cache_dir=tempfile.mkdtemp(dir=work))
    datasets.load_dataset = lambda *names, **options: speech
    datasets.DatasetDict.cast_column = lambda self, *what: self  # the column holds samples already
    forward, began = Wav2Vec2ForPreTraining.forward, []

    def counted(model: Wav2Vec2ForPreTraining, input_values: torch.Tensor, **others: Any) -> Any:
        if model.training:
            if began:
                listener.update_is_done()
            began.append(True)
            mask = others.get("attention_mask")
            listener.hear(float(input_values.numel() if mask is None else mask.sum()), input_values.numel())
        return forward(model, input_values, **others)

    Wav2Vec2ForPreTraining.forward = counted
    sys.argv = [str(script), "--dataset_name", "prepared", "--dataset_config_names", "any", "--dataset_split_names", "train",
                "--model_name_or_path", str(work / "model"), "--output_dir", str(work / "example"), "--max_duration_in_seconds",
                "30", "--per_device_train_batch_size", str(clips), "--min_duration_in_seconds", "0.1", "--num_train_epochs",
                "1000", "--logging_steps", "1000000", "--saving_steps", "1000000"]
    sys.path.insert(0, str(script.parent))
    if mixed_precision != "no":
        Accelerator(mixed_precision=mixed_precision)  # the script's own takes over what is set here
    runpy.run_path(str(script), run_name="__main__")
