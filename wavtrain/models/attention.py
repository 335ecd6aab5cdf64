"""Self-attention on a CPU, clip by clip: no time for padding, and scores and dropout are made again in the backward pass.

torch has fast attention on a CPU, but not with dropout; there it keeps three arrays of heads x frames x frames for each layer,
more than all else in a training step. Here a seed is kept. Elsewhere, and where a layer is compiled, attention is torch's.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "by_clip"
SCORES_AT_ONCE = 1 << 23  # 32 MB, and in the backward pass as much again
LANES = 1 << 16  # the random numbers that decide which weights are dropped are below it


def by_clip(encoder: nn.Module) -> None:
    """Let the layers of an encoder of transformers attend so; weights and results stay. Not those with relative positions."""
    shared = encoder.config
    if shared._attn_implementation != "sdpa" or getattr(shared, "position_embeddings_type", "rotary") != "rotary":
        return
    encoder.config = copy.copy(shared)
    encoder.config._attn_implementation = NAME
    for module in encoder.layers.modules():
        if getattr(module, "config", None) is shared:
            module.config = encoder.config


def _mask(*, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
    """What the layers are given: (batch, frames) on a CPU, as it came; elsewhere what torch's attention takes."""
    if attention_mask is None or attention_mask.device.type == "cpu":
        return attention_mask
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:
    """(batch, heads, frames, size) -> (batch, frames, heads, size). Clips are padded at their ends; there the result is 0."""
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :]
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    num_clips, _, most, _ = query.shape
    lengths = [most] * num_clips if attention_mask is None else attention_mask.sum(1).tolist()
    heard = []
    for *clip, length in zip(query.unbind(), key.unbind(), value.unbind(), lengths, strict=True):
        real = [each[:, :length] for each in clip]
        result = (_AttentionWithDropout.apply(*real, scaling, dropout) if dropout
                  else scaled_dot_product_attention(*(each[None] for each in real), scale=scaling)[0])
        heard.append(pad(result.transpose(0, 1), (0, 0, 0, 0, 0, most - length)))
    return torch.stack(heard), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


class _AttentionWithDropout(Function):
    """Of one clip: (heads, frames, size) thrice -> (heads, frames, size)."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        heard = torch.empty_like(value)
        for heads, kept in _parts(query, seed, dropout):
            weights = _weights(query[heads] * scaling, key[heads])
            np.multiply(weights.numpy(), kept, out=weights.numpy())
            heard[heads] = weights.to(value.dtype) @ value[heads]
        ctx.save_for_backward(query, key, value)
        ctx.options = seed, scaling, dropout
        return heard.mul_(_boost(dropout))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        seed, scaling, dropout = ctx.options
        of_query, of_key, of_value = (torch.empty_like(each) for each in (query, key, value))
        for heads, kept in _parts(query, seed, dropout):
            scaled, boosted = query[heads] * scaling, gradient[heads] * _boost(dropout)
            weights = _weights(scaled, key[heads])
            dropped = torch.empty_like(weights)
            np.multiply(weights.numpy(), kept, out=dropped.numpy())
            of_value[heads] = _product_of_turned(dropped.to(value.dtype), boosted)
            of_weights = (boosted @ value[heads].mT).float()
            np.multiply(of_weights.numpy(), kept, out=of_weights.numpy())
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32, grad_input=dropped).to(value.dtype)
            of_query[heads] = (of_scores @ key[heads]) * scaling
            of_key[heads] = _product_of_turned(of_scores, scaled)
        return of_query, of_key, of_value, None, None


def _parts(query: Tensor, seed: int, dropout: float) -> Iterator[tuple[slice, np.ndarray]]:
    """A few heads at a time, and which of their weights are kept: the same for the same seed."""
    num_heads, frames, _ = query.shape
    source = np.random.SFC64(seed)  # ten times as fast as torch's own
    at_once = max(1, SCORES_AT_ONCE // frames**2)
    for first in range(0, num_heads, at_once):
        shape = (min(at_once, num_heads - first), frames, frames)
        size = int(np.prod(shape))
        lanes = source.random_raw(-(-size // 4)).view(np.uint16)[:size]
        yield slice(first, first + at_once), (lanes >= _dropped_lanes(dropout)).reshape(shape)


def _weights(scaled: Tensor, key: Tensor) -> Tensor:
    scores = (scaled @ key.mT).float()
    return torch.softmax(scores, -1, out=scores)


def _dropped_lanes(dropout: float) -> int:
    return round(dropout * LANES)


def _boost(dropout: float) -> float:
    """What makes up for the dropped weights, of which there are so many in LANES."""
    return LANES / (LANES - _dropped_lanes(dropout))


def _product_of_turned(weights: Tensor, other: Tensor) -> Tensor:
    """weights.mT @ other, whose turned result torch computes in half the time."""
    return (other.mT @ weights).mT
