"""The wav2vec 2.0 objective, computed for masked frames only, and the model classes that carry it.

Weights, names and numbers are those of transformers' `Wav2Vec2ForPreTraining` and `Wav2Vec2ConformerForPreTraining`: for the
same masks and negatives loss and gradients are equal. What is left out is the work for frames that do not count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax, normalize, one_hot
from transformers import PreTrainedConfig, Wav2Vec2ConformerForPreTraining, Wav2Vec2ForPreTraining

from wavtrain.masking import cross_utterance_negatives, first_of, same_utterance_negatives
from wavtrain.measures import perplexity
from wavtrain.models.attention import by_clip
from wavtrain.models.convolutions import channels_last
from wavtrain.models.layerdrop import drop_layers


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the model's config does not say. The defaults are those of BASE."""

    feature_penalty_weight: float = 10.0
    feature_grad_mult: float = 0.1
    cross_sample_negatives: int = 0
    codebook_negatives: int = 0


class _MaskedFramesOnly:
    """Mixed into a pretraining model of transformers, whose forward pass it replaces."""

    objective = ObjectiveSettings()

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        channels_last(self.base_model.feature_extractor)
        by_clip(self.base_model.encoder)
        drop_layers(self.base_model.encoder, config.layerdrop)

    def forward(
        self,
        input_values: Tensor,  # (batch, samples)
        mask: Tensor,  # (batch, frames)
        places: Tensor,  # (batch, most): the masked frames of each clip, rows filled up with 0
        counts: Tensor,  # (batch,): how many of them are
        temperature: float | Tensor,
        num_frames: Tensor | None = None,  # (batch,), where clips are padded
        negatives: Tensor | None = None,  # (batch, most, negatives): places among the masked frames of the clip, or drawn here
    ) -> dict[str, Tensor]:
        """Sums over masked frames: `loss`, its parts, `correct`; and how often each code was used, (groups, codes)."""
        features = self._features(input_values)
        is_speech = None if num_frames is None else first_of(num_frames, features.shape[1])
        hidden, unmasked = self.base_model.feature_projection(features)
        hidden = torch.where(mask[..., None], self.base_model.masked_spec_embed.to(hidden.dtype), hidden)
        hidden = self.base_model.encoder(hidden, attention_mask=is_speech).last_hidden_state
        penalty = _mean_square(features.float(), is_speech)
        return self.loss_of(at_places(hidden, places), at_places(unmasked, places), counts, penalty, temperature, negatives)

    def loss_of(
        self,
        hidden: Tensor,  # (batch, most, hidden): what the transformer made of the masked frames
        features: Tensor,  # (batch, most, channels): what they were, normalised
        counts: Tensor,
        feature_penalty: Tensor,
        temperature: float | Tensor,
        negatives: Tensor | None,
    ) -> dict[str, Tensor]:
        """From the masked frames to the sums."""
        most = hidden.shape[1]
        predicted, code_logits = self.project_hid(hidden), self.quantizer.weight_proj(self.dropout_features(features))
        counted = first_of(counts, most)
        with torch.autocast(hidden.device.type, enabled=False):
            codes, used_codes, code_counts = self._codes(code_logits.float(), counted, temperature)
            quantized = self._codevectors(codes)
        positives = self.project_q(quantized.to(self.project_q.weight.dtype))
        if negatives is None:
            negatives = same_utterance_negatives(counts, most, self.config.num_negatives)
        more = self._more_negatives(counts, most)
        with torch.autocast(hidden.device.type, enabled=False):
            contrastive_loss, correct = self._contrast(predicted.float(), positives.float(), codes, counted, negatives, more)
            parts = {
                "contrastive_loss": contrastive_loss,
                "diversity_loss": (1 - used_codes / code_counts.numel()) * counts.sum(),
                "feature_penalty": feature_penalty * counts.sum(),
            }
        weights = (1.0, self.config.diversity_loss_weight, self.objective.feature_penalty_weight)
        loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        sums = {name: part.detach() for name, part in parts.items()}
        return {"loss": loss, **sums, "correct": correct, "code_counts": code_counts}

    def _features(self, input_values: Tensor) -> Tensor:
        """(batch, frames, channels)."""
        features = self.base_model.feature_extractor(input_values).transpose(1, 2)
        factor = self.objective.feature_grad_mult
        if factor != 1.0 and features.requires_grad:
            features.register_hook(lambda gradient: gradient * factor)
        return features

    def _codes(self, logits: Tensor, counted: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One-hot codes (batch, most, groups, codes), the perplexity of their distribution, how often each was the best."""
        logits = logits.unflatten(-1, (self.quantizer.num_groups, -1))
        best = one_hot(logits.argmax(-1), logits.shape[-1]) * counted[..., None, None]
        if self.training:
            codes, weights = gumbel_softmax(logits, tau=temperature, hard=True), logits.softmax(-1) * counted[..., None, None]
        else:
            codes, weights = best.float(), best.float()
        usage = weights.sum((0, 1)) / counted.sum().clamp(min=1)
        return codes, perplexity(usage), best.sum((0, 1))

    def _codevectors(self, codes: Tensor) -> Tensor:
        """(..., groups, codes) -> (..., channels): the rows of the codebook that the codes name."""
        codebook = self.quantizer.codevectors.float().view(*codes.shape[-2:], -1)
        return torch.einsum("...gv,gvd->...gd", codes, codebook).flatten(-2)

    def _more_negatives(self, counts: Tensor, most: int) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Options of fairseq: places among all masked frames of the batch; projected random codevectors with their codes."""
        across = from_codebook = None
        if self.objective.cross_sample_negatives:
            across = cross_utterance_negatives(counts, most, self.objective.cross_sample_negatives)
        if self.objective.codebook_negatives:
            shape = (len(counts), most, self.objective.codebook_negatives, self.quantizer.num_groups)
            drawn = one_hot(torch.randint(self.quantizer.num_vars, shape, device=counts.device), self.quantizer.num_vars)
            vectors = self.project_q(self._codevectors(drawn.float()).to(self.project_q.weight.dtype))
            from_codebook = vectors, _code_numbers(drawn)
        return across, from_codebook

    def _contrast(
        self,
        predicted: Tensor,  # (batch, most, channels)
        positives: Tensor,
        codes: Tensor,
        counted: Tensor,
        negatives: Tensor,
        more: tuple[Tensor | None, tuple[Tensor, Tensor] | None],
    ) -> tuple[Tensor, Tensor]:
        """The sum of the loss, and how many masked frames are nearer to their own code than to every negative.

        A negative that is the positive's code is left out of the loss, as in the paper; it does not count as beaten either.
        """
        across, from_codebook = more
        predicted, positives = normalize(predicted, dim=-1, eps=1e-8), normalize(positives, dim=-1, eps=1e-8)
        similarity = predicted @ positives.transpose(1, 2)  # (batch, most, most): every negative of an utterance is in it
        positive, numbers = similarity.diagonal(dim1=1, dim2=2), _code_numbers(codes)
        found = [(similarity.gather(2, negatives), numbers[:, None].expand(similarity.shape).gather(2, negatives))]
        if across is not None:
            everywhere = (predicted.flatten(0, 1) @ positives.flatten(0, 1).T).view(*positive.shape, -1)
            found.append((everywhere.gather(2, across), numbers.flatten()[across]))
        if from_codebook is not None:
            vectors, their_numbers = from_codebook
            vectors = normalize(vectors.float(), dim=-1, eps=1e-8)
            found.append((torch.einsum("bmd,bmnd->bmn", predicted, vectors), their_numbers))
        similarity, others = (torch.cat(each, dim=-1) for each in zip(*found, strict=True))
        is_same = others == numbers[..., None]
        temperature = self.config.contrastive_logits_temperature
        logits = torch.cat([positive[..., None], similarity.masked_fill(is_same, float("-inf"))], dim=-1) / temperature
        losses = (logits.logsumexp(-1) - logits[..., 0]).masked_fill(~counted, 0.0)
        is_correct = (positive > similarity.amax(-1)) & ~is_same.any(-1) & counted
        return losses.sum(), is_correct.sum()


class Wav2Vec2Pretraining(_MaskedFramesOnly, Wav2Vec2ForPreTraining):
    """BASE, LARGE, LV-60, XLSR: group or layer norm, post-LN or pre-LN."""


class Wav2Vec2ConformerPretraining(_MaskedFramesOnly, Wav2Vec2ConformerForPreTraining):
    """The same objective over conformer layers."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.base_model.encoder.pos_conv_embed.requires_grad_(False)  # is there and never used, in fairseq as well


def at_places(frames: Tensor, places: Tensor) -> Tensor:
    """The frames (batch, most, channels) at places (batch, most)."""
    return frames.gather(1, places[..., None].expand(-1, -1, frames.shape[-1]))


def _code_numbers(codes: Tensor) -> Tensor:
    """One number for the codes of all groups together."""
    groups, size = codes.shape[-2:]
    return (codes.argmax(-1) * size ** torch.arange(groups, device=codes.device)).sum(-1)


def _mean_square(features: Tensor, is_speech: Tensor | None) -> Tensor:
    if is_speech is None:
        return features.square().mean()
    return (features.square().mean(-1) * is_speech).sum() / is_speech.sum()
