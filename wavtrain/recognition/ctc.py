"""CTC over every encoder of speech for which transformers has a CTC head.

Weights, names and numbers are those of transformers' classes: for the same labels, and without masks, loss and gradients
are equal. What differs: masks are given, not drawn; layerdrop keeps processes in step; padding changes nothing.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import ctc_loss
from transformers import MODEL_FOR_CTC_MAPPING, PreTrainedConfig, PreTrainedModel

from wavtrain.masking import first_of
from wavtrain.models.attention import by_clip
from wavtrain.models.layerdrop import drop_layers
from wavtrain.recognition.padding import Padding, convolved, hears_waves

FAMILIES = ("wav2vec2", "wav2vec2-conformer", "wav2vec2-bert", "hubert", "wavlm", "data2vec-audio", "unispeech",
            "unispeech-sat", "sew")


def recogniser_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that reads a CTC model of this config, with our forward pass."""
    return _mixed(MODEL_FOR_CTC_MAPPING[type(config)])


@cache
def _mixed(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    return type(stock.__name__, (_Recogniser, stock), {"__module__": __name__})


class _Recogniser:
    """Mixed into a CTC model of transformers, whose forward pass it replaces."""

    encoder_is_frozen = False  # asked at every forward pass: features are computed, with dropout, and do not learn

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._time_mask = self._channel_mask = None
        self._padding = Padding(self)
        self.base_model._mask_hidden_states = self._masked
        by_clip(self.base_model.encoder)
        always = 1 if config.model_type == "wavlm" else 0  # WavLM's first layer makes the position bias of all others
        drop_layers(self.base_model.encoder, config.layerdrop, always)
        if self._padding.adapter_layers:
            self.base_model.adapter.layerdrop = -1.0  # numpy's global state would draw it, and a clip lose half its stride

    def forward(
        self,
        inputs: Tensor,  # (batch, samples) or (batch, frames, features)
        lengths: Tensor | None = None,  # (batch,) real samples or frames of the inputs, where clips are padded
        labels: Tensor | None = None,  # (batch, most)
        label_lengths: Tensor | None = None,  # (batch,) on the CPU
        num_frames: Tensor | None = None,  # (batch,) on the CPU: how many frames each clip comes out as
        time_mask: Tensor | None = None,  # (batch, frames) before the adapter
        channel_mask: Tensor | None = None,  # (batch, hidden)
    ) -> dict[str, Tensor]:
        """`log_probs` (batch, frames, tokens); with labels the `losses` of the utterances in nats and their sum `loss`."""
        self._time_mask, self._channel_mask = time_mask, channel_mask
        self._padding.note(lengths)
        attention_mask = None if lengths is None else first_of(lengths, inputs.shape[1]).long()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            hidden = self.base_model(inputs, attention_mask=attention_mask).last_hidden_state
        if self.encoder_is_frozen and not isinstance(self, FSDPModule):
            hidden = hidden + 0 * sum(parameter.sum() for parameter in self.encoder_parameters())  # DDP waits for them
        log_probs = self.lm_head(self.dropout(hidden)).float().log_softmax(-1)
        if labels is None:
            return {"log_probs": log_probs}
        if num_frames is None:
            num_frames = torch.full((len(labels),), log_probs.shape[1]) if lengths is None else self._padding.frames[-1].cpu()
        losses = ctc_loss(log_probs.transpose(0, 1), labels, num_frames, label_lengths, blank=self.config.pad_token_id,
                          reduction="none", zero_infinity=self.config.ctc_zero_infinity)
        return {"loss": losses.sum(), "losses": losses.detach(), "log_probs": log_probs}

    def freeze_feature_encoder(self) -> None:
        """The convolutions over samples learn nothing; w2v-BERT has none."""
        if hasattr(self.base_model, "feature_extractor"):
            encoder = self.base_model.feature_extractor
            encoder._freeze_parameters()
            encoder.forward = torch.no_grad()(encoder.forward)  # else its checkpoints keep what no backward pass asks for

    def encoder_parameters(self) -> list[nn.Parameter]:
        """All that learns beside the head."""
        return [parameter for parameter in self.base_model.parameters() if parameter.requires_grad]

    def forget_frozen_gradients(self) -> None:
        """The zeros that a frozen encoder gave, so that no optimizer decays its weights or counts a step for them."""
        if self.encoder_is_frozen:
            for parameter in self.encoder_parameters():
                parameter.grad = None

    def _masked(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """SpecAugment with the given masks, in place of transformers', which draws them from numpy's global state."""
        if self._time_mask is not None:
            hidden = torch.where(self._time_mask[..., None], self.base_model.masked_spec_embed.to(hidden.dtype), hidden)
        return hidden if self._channel_mask is None else hidden.masked_fill(self._channel_mask[:, None], 0.0)


def leave_out_unused(model: PreTrainedModel) -> list[str]:
    """What no loss reaches asks for no gradient any more, as DDP would wait for it. Returns the names."""
    assert not model.encoder_is_frozen, "everything is reached through the sum that keeps a frozen encoder in step"
    was_training = model.training
    with torch.random.fork_rng(devices=[]):  # older transformers draw for layerdrop in evaluation mode too
        outcome = model.eval()(**_smallest_inputs(model))["log_probs"]
    model.train(was_training)
    reached, seen, ahead = set(), set(), [outcome.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            reached.add(id(getattr(node, "variable", None)))  # leaves of the graph hold the parameter they stand for
            ahead.extend(following for following, _ in node.next_functions)
    unused = {name: parameter for name, parameter in model.named_parameters()
              if parameter.requires_grad and id(parameter) not in reached}
    for parameter in unused.values():
        parameter.requires_grad_(False)
    return list(unused)


def _smallest_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """One short clip, with a mask where training will have masks."""
    config = model.config
    shape = (1, 4000) if hears_waves(config) else (1, 16, config.feature_projection_input_dim)
    mask = torch.zeros(1, convolved(shape[1], config), dtype=torch.bool, device=model.device)
    mask[:, 0] = True
    return {"inputs": torch.ones(shape, device=model.device), **({"time_mask": mask} if config.mask_time_prob > 0 else {})}
