"""The convolutions that make frames of samples, as matrix products over activations whose channels are last.

Numbers are those of transformers' layers. There every layer norm turns its activations over and back, and GELU reads them
across the grain; here a convolution of stride s is a product with s frames at a time, and what follows runs along memory.
Of each layer only the convolution's result and its input are kept; norm and GELU are computed again in the backward pass.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from wavtrain import InputError

Reality = Callable[[int], Tensor | None]  # frames -> (batch, frames) which of them are not padding, None: all of them


def kernels_and_strides(config: PreTrainedConfig) -> tuple[tuple[int, int], ...]:
    """Of each layer of the feature encoder."""
    if min(*config.conv_kernel, *config.conv_stride) < 1 or len(config.conv_kernel) != len(config.conv_stride):
        raise InputError(f"--model_name_or_path {config.name_or_path}: conv_kernel {config.conv_kernel} and conv_stride "
                         f"{config.conv_stride} of its config.json make no frames: numbers from 1, as many of each")
    return tuple(zip(config.conv_kernel, config.conv_stride, strict=True))


def channels_last(feature_extractor: nn.Module, is_real: Reality = lambda frames: None) -> None:
    """Replace the forward pass of a feature encoder of transformers; weights and results stay.

    `is_real` is asked about the frames of the first layer; a group norm there is over those alone.
    """
    for layer in feature_extractor.conv_layers:
        layer.forward = partial(_layer, layer, is_real)
    feature_extractor.forward = partial(_encoder, feature_extractor)


def as_in_transformers(feature_extractor: nn.Module) -> None:
    """Undo that, for those who want plain operators."""
    for module in (feature_extractor, *feature_extractor.conv_layers):
        del module.forward


def _encoder(feature_extractor: nn.Module, input_values: Tensor) -> Tensor:
    """(batch, samples) -> (batch, channels, frames), channels last in memory."""
    features = input_values[..., None]
    for layer in feature_extractor.conv_layers:
        features = layer(features)
    return features.transpose(1, 2)


def _layer(layer: nn.Module, is_real: Reality, features: Tensor) -> Tensor:
    """(batch, frames, channels) -> the same."""
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.conv.weight.dtype
    weight, stride = layer.conv.weight, layer.conv.stride[0]
    if features.shape[2] == 1:  # the samples of a frame become its channels: one product writes the longest of all results
        features, weight, stride = features[..., 0].unfold(1, weight.shape[2], stride), weight.transpose(1, 2), 1
    bias = None if layer.conv.bias is None else layer.conv.bias.to(dtype)
    features = _Convolution.apply(features.to(dtype), weight.to(dtype), bias, stride)
    norm = getattr(layer, "layer_norm", None)
    if norm is None:
        return layer.activation(features)
    counted = None if isinstance(norm, nn.LayerNorm) else is_real(features.shape[1])
    return checkpoint(_normed, features, norm, layer.activation, counted, use_reentrant=False, preserve_rng_state=False)


def _normed(features: Tensor, norm: nn.Module, activation: Callable[[Tensor], Tensor], counted: Tensor | None) -> Tensor:
    dtype = features.dtype
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(norm.weight.dtype)
        if isinstance(norm, nn.LayerNorm):
            features = layer_norm(features, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        else:
            features = _group_norm(features, norm, counted)
        return activation(features).to(dtype)


def _group_norm(features: Tensor, norm: nn.GroupNorm, counted: Tensor | None) -> Tensor:
    """One group a channel: over time. torch.var_mean would be twenty times slower than means, across memory on a CPU."""
    shares = None
    if counted is not None:
        counted = counted.to(features.dtype)
        shares = (counted / counted.sum(1, keepdim=True))[:, None]

    def mean(values: Tensor) -> Tensor:
        return values.mean(1, keepdim=True) if shares is None else shares @ values

    features = features - mean(features)
    return torch.addcmul(norm.bias, features, (mean(features.square()) + norm.eps).rsqrt() * norm.weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        features = features.contiguous()  # _windows counts on it
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        made = None
        for seen, taps in _taps(features, weight, stride):
            taps = taps.expand(len(features), -1, -1)
            if made is None:
                made = seen @ taps if bias is None else torch.baddbmm(bias, seen, taps)
            else:
                made.baddbmm_(seen, taps)
        return made

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        of_weight = []
        for number, (seen, taps) in enumerate(_taps(features, weight, ctx.stride)):
            of_weight.append(torch.bmm(seen.transpose(1, 2), gradient).sum(0))
            if of_features is not None:
                _windows(of_features, weight, ctx.stride, number).baddbmm_(gradient, taps.T.expand(len(features), -1, -1))
        of_weight = torch.cat(of_weight).view(weight.shape[2], weight.shape[1], weight.shape[0]).permute(2, 1, 0)
        return of_features, of_weight, gradient.sum((0, 1)) if ctx.has_bias else None, None


def _taps(features: Tensor, weight: Tensor, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The product in parts, each of a stride's taps: what they see (batch, frames, taps * channels), and their weights."""
    for number, taps in enumerate(weight.permute(2, 1, 0).split(stride)):
        yield _windows(features, weight, stride, number), taps.reshape(-1, weight.shape[0])


def _windows(features: Tensor, weight: Tensor, stride: int, number: int) -> Tensor:
    """A view that does not overlap itself, so that it can be read and added to by a matrix product."""
    batch, length, channels = features.shape
    frames = (length - weight.shape[2]) // stride + 1
    width = min(stride, weight.shape[2] - number * stride)
    return features.as_strided((batch, frames, width * channels), (length * channels, stride * channels, 1),
                               features.storage_offset() + number * stride * channels)
