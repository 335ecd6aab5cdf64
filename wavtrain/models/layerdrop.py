"""Layers that are left out at random in training (https://huggingface.co/papers/1909.11556)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def droppable(layer: nn.Module, probability: float) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """A forward for the layer: layerdrop that costs nothing and still gives every parameter its gradient, zero, so that
    processes stay in step.
    """
    run = layer.forward

    def forward(hidden: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if probability and layer.training and torch.rand(()) < probability:
            hidden = hidden + 0 * sum(parameter.sum() for parameter in layer.parameters())
            return (hidden, kwargs["position_bias"]) if "position_bias" in kwargs else hidden  # WavLM hands its bias on
        return run(hidden, *args, **kwargs)

    return forward
