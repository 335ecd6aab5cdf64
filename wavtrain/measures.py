"""Sums over micro-batches and processes -> the numbers of a record. A mean is taken once, at the end, over all targets."""

import torch
from accelerate import Accelerator
from torch import Tensor

PER_TARGET = ("loss", "contrastive_loss", "diversity_loss", "feature_penalty")


def perplexity(usage: Tensor) -> Tensor:
    """How many codes are in use, summed over the groups, of their shares (groups, codes)."""
    tiny = torch.finfo(usage.dtype).tiny  # the gradient of 0 log 0 is not finite
    return torch.exp(-(usage * usage.clamp(min=tiny).log()).sum(-1)).sum()


class Sums:
    """What micro-batches add up to; tensors stay on their device until the sums are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor | float], weight: float = 1.0) -> None:
        """Add numbers, or tensors of equal shape, by name."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            value = weight * value
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def over_processes(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The sums of all processes, on the CPU. A collective: every process calls it, with the same names."""
        flat = torch.cat([value.flatten().to(accelerator.device) for value in self._sums.values()])
        flat = accelerator.reduce(flat, "sum").cpu()
        parts = flat.split([value.numel() for value in self._sums.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._sums.items(), parts, strict=True)}


def pretraining_measures(sums: dict[str, Tensor]) -> dict[str, float]:
    """Losses per masked frame in nats, contrastive accuracy, and code perplexity over all codes that were best."""
    targets = max(float(sums["targets"]), 1.0)
    values = {name: float(sums[name]) / targets for name in PER_TARGET}
    values["contrastive_accuracy"] = float(sums["correct"]) / targets
    values["code_perplexity"] = float(perplexity(sums["code_counts"] / targets))
    values["masked_fraction"] = float(sums["targets"] / sums["frames"])
    values["padding_fraction"] = 1 - float(sums["speech_samples"] / sums["samples"])
    return values


def recognition_measures(sums: dict[str, Tensor]) -> dict[str, float]:
    """The CTC loss per utterance (or label) in nats."""
    return {"loss": float(sums["loss"]) / max(float(sums["targets"]), 1.0),
            "padding_fraction": 1 - float(sums["speech_samples"] / sums["samples"])}
