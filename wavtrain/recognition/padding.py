"""Padding changes nothing: a clip comes out of a padded batch as it does alone.

transformers masks attention. Beyond that, in its models a clip depends on the longest one of its batch through the group norm
of the first convolution (BASE), through convolutions over frames that follow something which makes padding non-zero (data2vec,
conformers, adapters, HuBERT with a batch norm), and through SEW's pooling. In training the batch norm of conformers still
counts padded frames, as fairseq's does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from wavtrain.masking import first_of, frames_after
from wavtrain.models.convolutions import channels_last, kernels_and_strides


class Padding:
    """Installed in a model, it is told before each forward pass how much of each clip is real.

    It stays told until the next one: checkpointed activations are computed again in the backward pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.frames: list[Tensor] | None = None  # (batch,) each: before the adapter, after each of its layers; None: no padding
        self._frames_of_first_layer: Tensor | None = None
        base = model.base_model
        self._silence_convolutions(base.encoder, 0)
        self.adapter_layers = list(base.adapter.layers) if getattr(base, "adapter", None) is not None else []
        for level, layer in enumerate(self.adapter_layers):
            self._silence_convolutions(layer, level)
        if hears_waves(self.config):
            channels_last(base.feature_extractor, self._is_real_in_first_layer)
            base.feature_extractor.forward = self._clip_by_clip(base.feature_extractor.forward)
        if self.config.model_type == "sew":
            base.encoder.forward = self._in_whole_squeezes(base.encoder)

    def note(self, lengths: Tensor | None) -> None:
        """How many samples (or filter bank frames) of each clip are real; None where all are."""
        self.frames = self._frames_of_first_layer = None
        if lengths is not None:
            self._frames_of_first_layer = convolved(lengths, self.config, num_layers=1)
            self.frames = [convolved(lengths, self.config)]
            for _ in self.adapter_layers:
                self.frames.append(adapted(self.frames[-1], self.config))

    def _is_real_in_first_layer(self, frames: int) -> Tensor | None:
        return None if self._frames_of_first_layer is None else first_of(self._frames_of_first_layer, frames)

    def _silence_convolutions(self, module: nn.Module, level: int) -> None:
        """Convolutions that look past the end of a clip find zeros there, as they do when it is alone."""

        def silence(convolution: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            return given if self.frames is None else (_silenced(given[0], self.frames[level]),)

        for convolution in module.modules():
            if isinstance(convolution, nn.Conv1d) and convolution.padding[0] > 0:
                convolution.register_forward_pre_hook(silence)

    def _clip_by_clip(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Where nothing learns, the memory of one clip is enough; on a CPU this takes no longer."""

        def forward(waves: Tensor) -> Tensor:
            if torch.is_grad_enabled() or waves.device.type != "cpu":
                return run(waves)
            noted, made = self._frames_of_first_layer, []
            for number in range(len(waves)):
                self._frames_of_first_layer = None if noted is None else noted[number, None]
                made.append(run(waves[number, None]).transpose(1, 2))
            self._frames_of_first_layer = noted
            return torch.cat(made).transpose(1, 2)

        return forward

    def _in_whole_squeezes(self, encoder: nn.Module) -> Callable[..., Any]:
        """SEW works on means of two frames: a clip alone loses an odd last one, after the positional convolution saw it."""
        run, squeeze, unsqueezed = encoder.forward, self.config.squeeze_factor, []
        encoder.pos_conv_embed.conv.register_forward_pre_hook(lambda _, given: (unsqueezed.pop(),) if unsqueezed else given)

        def forward(hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            if self.frames is None:
                return run(hidden, **kwargs)
            unsqueezed.append(_silenced(hidden.transpose(1, 2), self.frames[0]))
            whole = self.frames[0] // squeeze * squeeze
            found = run(hidden, attention_mask=first_of(whole, hidden.shape[1]), **kwargs)
            found.last_hidden_state = _silenced(found.last_hidden_state.transpose(1, 2), whole).transpose(1, 2)
            return found

        return forward


def convolved(lengths: Any, config: PreTrainedConfig, num_layers: int | None = None) -> Any:
    """How many frames the feature encoder, or its first layers, make of so many samples: ints, arrays or tensors."""
    return frames_after(lengths, convolutions(config)[:num_layers])


def convolutions(config: PreTrainedConfig) -> tuple[tuple[int, int], ...]:
    """Kernel and stride of each layer between what the model is given and where its masks are."""
    return kernels_and_strides(config) if hears_waves(config) else ()


def hears_waves(config: PreTrainedConfig) -> bool:
    """Whether the model is given samples, which its feature encoder makes frames of; w2v-BERT is given filter banks."""
    return config.model_type != "wav2vec2-bert"


def adapted(frames: Any, config: PreTrainedConfig) -> Any:
    """How many frames one layer of the adapter makes of so many."""
    padding = 1 if hears_waves(config) else config.adapter_stride // 2
    return (frames + 2 * padding - config.adapter_kernel_size) // config.adapter_stride + 1


def _silenced(hidden: Tensor, frames: Tensor) -> Tensor:
    """(batch, channels, frames) with zeros after the last real frame of each clip."""
    return hidden.masked_fill(~first_of(frames, hidden.shape[-1])[:, None], 0.0)
