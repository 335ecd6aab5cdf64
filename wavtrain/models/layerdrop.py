"""Layers that are left out at random in training (https://huggingface.co/papers/1909.11556)."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def drop_layers(encoder: nn.Module, probability: float, always: int = 0) -> None:
    """Let an encoder of transformers, in training, leave out any of its layers but the first so many."""
    encoder.config = copy.copy(encoder.config)
    encoder.config.layerdrop = 0.0  # its own way of dropping leaves parameters without a gradient, which DDP cannot bear
    for layer in encoder.layers[always:]:
        layer.forward = _droppable(layer, probability)


def _droppable(layer: nn.Module, probability: float) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
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
