"""wav2vec 2.0 from its equations, over tensors with fairseq's names: what converted models must equal."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu, group_norm, layer_norm, linear


@dataclass(frozen=True)
class Shape:
    """A small model of one of the published kinds."""

    norm: str = "group"  # of the convolutions: group (BASE) | layer (LARGE on LV-60, XLSR)
    norm_first: bool = False  # in the transformer
    conv_bias: bool = False
    convolutions: tuple[tuple[int, int, int], ...] = ((12, 10, 5), (12, 3, 2), (12, 3, 2), (16, 2, 2))
    hidden: int = 32
    heads: int = 4
    layers: int = 3
    inner: int = 48
    positions: tuple[int, int] = (8, 4)  # kernel, groups
    groups: int = 2
    codes: int = 6
    codevector: int = 20
    projected: int = 24

    @property
    def as_written(self) -> str:
        """For fairseq's flag of the convolutions."""
        return " + ".join(f"[({width}, {kernel}, {stride})]" for width, kernel, stride in self.convolutions)


def random_tensors(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """All that fairseq saves of a model in pretraining; norms too are random, so that none can be forgotten or exchanged."""
    source = torch.Generator().manual_seed(seed)
    tensors = {}

    def add(name: str, *size: int, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = torch.randn(size, generator=source) / math.sqrt(math.prod(size[1:]))
        if bias:
            tensors[f"{name}.bias"] = torch.randn(size[0], generator=source) * 0.3

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=source)
        tensors[f"{name}.bias"] = 0.3 * torch.randn(width, generator=source)

    seen = 1
    for number, (width, kernel, _) in enumerate(shape.convolutions):
        add(f"feature_extractor.conv_layers.{number}.0", width, seen, kernel, bias=shape.conv_bias)
        if shape.norm == "layer":
            norm(f"feature_extractor.conv_layers.{number}.2.1", width)
        elif number == 0:
            norm("feature_extractor.conv_layers.0.2", width)
        seen = width
    norm("layer_norm", seen)
    if seen != shape.hidden:
        add("post_extract_proj", shape.hidden, seen)
    kernel, groups = shape.positions
    tensors["mask_emb"] = torch.rand(shape.hidden, generator=source)
    tensors["encoder.pos_conv.0.bias"] = torch.randn(shape.hidden, generator=source) * 0.3
    tensors["encoder.pos_conv.0.weight_g"] = 1 + torch.rand(1, 1, kernel, generator=source)
    tensors["encoder.pos_conv.0.weight_v"] = torch.randn(shape.hidden, shape.hidden // groups, kernel, generator=source)
    for number in range(shape.layers):
        layer = f"encoder.layers.{number}"
        for part in "kvqo":
            add(f"{layer}.self_attn.{'out' if part == 'o' else part}_proj", shape.hidden, shape.hidden)
        add(f"{layer}.fc1", shape.inner, shape.hidden)
        add(f"{layer}.fc2", shape.hidden, shape.inner)
        norm(f"{layer}.self_attn_layer_norm", shape.hidden)
        norm(f"{layer}.final_layer_norm", shape.hidden)
    norm("encoder.layer_norm", shape.hidden)
    tensors["quantizer.vars"] = torch.rand(1, shape.groups * shape.codes, shape.codevector // shape.groups, generator=source)
    add("quantizer.weight_proj", shape.groups * shape.codes, seen)
    add("project_q", shape.projected, shape.codevector)
    add("final_proj", shape.projected, shape.hidden)
    return tensors


class Reference:
    """The forward pass in evaluation mode."""

    def __init__(self, shape: Shape, tensors: dict[str, Tensor]) -> None:
        self.shape, self.tensors = shape, tensors

    def features(self, waves: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, channels), normalised: what is quantized."""
        made = waves[:, None]
        for number, (width, _, stride) in enumerate(self.shape.convolutions):
            name = f"feature_extractor.conv_layers.{number}"
            made = conv1d(made, self.tensors[f"{name}.0.weight"], self.tensors.get(f"{name}.0.bias"), stride=stride)
            if self.shape.norm == "layer":
                made = self._norm(made.mT, f"{name}.2.1").mT
            elif number == 0:
                made = group_norm(made, width, self.tensors[f"{name}.2.weight"], self.tensors[f"{name}.2.bias"])
            made = gelu(made)
        return self._norm(made.mT, "layer_norm")

    def hidden_states(self, waves: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Of the input of the first layer, then of every layer, the last as the model gives it."""
        hidden = self.features(waves)
        if "post_extract_proj.weight" in self.tensors:
            hidden = self._linear(hidden, "post_extract_proj")
        if mask is not None:
            hidden = torch.where(mask[..., None], self.tensors["mask_emb"], hidden)
        hidden = hidden + self._positions(hidden)
        if not self.shape.norm_first:
            hidden = self._norm(hidden, "encoder.layer_norm")
        states = [hidden]
        for number in range(self.shape.layers):
            states.append(self._layer(states[-1], f"encoder.layers.{number}"))
        if self.shape.norm_first:
            states[-1] = self._norm(states[-1], "encoder.layer_norm")
        return states

    def quantized(self, waves: Tensor) -> Tensor:
        """(batch, frames, projected): the nearest codes of each group, joined and projected."""
        features = self.features(waves)
        scores = self._linear(features, "quantizer.weight_proj")
        book = self.tensors["quantizer.vars"][0].view(self.shape.groups, self.shape.codes, -1)
        parts = [of_group[best.argmax(-1)] for of_group, best in zip(book, scores.chunk(self.shape.groups, -1), strict=True)]
        return self._linear(torch.cat(parts, -1), "project_q")

    def contrastive_logits(self, waves: Tensor, mask: Tensor, others: Tensor, temperature: float) -> Tensor:
        """(1 + others, batch, frames): of a frame's own code, then of other frames', (batch, frames, n)."""
        predicted, codes = self._linear(self.hidden_states(waves, mask)[-1], "final_proj"), self.quantized(waves)
        wrong = torch.stack([of_clip[places] for of_clip, places in zip(codes, others, strict=True)])
        candidates = torch.cat([codes[:, :, None], wrong], 2)
        cosines = (predicted[:, :, None] * candidates).sum(-1) / (predicted.norm(dim=-1)[..., None] * candidates.norm(dim=-1))
        return cosines.permute(2, 0, 1) / temperature

    def _positions(self, hidden: Tensor) -> Tensor:
        kernel, groups = self.shape.positions
        direction, length = (self.tensors[f"encoder.pos_conv.0.weight_{part}"] for part in "vg")
        weight = direction / direction.square().sum((0, 1), keepdim=True).sqrt() * length
        made = conv1d(hidden.mT, weight, self.tensors["encoder.pos_conv.0.bias"], padding=kernel // 2, groups=groups)
        return gelu(made[..., : hidden.shape[1]]).mT

    def _layer(self, hidden: Tensor, name: str) -> Tensor:
        for part, norm in ((self._attended, "self_attn_layer_norm"), (self._fed_forward, "final_layer_norm")):
            if self.shape.norm_first:
                hidden = hidden + part(self._norm(hidden, f"{name}.{norm}"), name)
            else:
                hidden = self._norm(hidden + part(hidden, name), f"{name}.{norm}")
        return hidden

    def _attended(self, hidden: Tensor, name: str) -> Tensor:
        query, key, value = (self._linear(hidden, f"{name}.self_attn.{part}_proj").unflatten(-1, (self.shape.heads, -1))
                             for part in "qkv")
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        heard = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
        return self._linear(heard.flatten(-2), f"{name}.self_attn.out_proj")

    def _fed_forward(self, hidden: Tensor, name: str) -> Tensor:
        return self._linear(gelu(self._linear(hidden, f"{name}.fc1")), f"{name}.fc2")

    def _linear(self, values: Tensor, name: str) -> Tensor:
        return linear(values, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, values: Tensor, name: str) -> Tensor:
        return layer_norm(values, values.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
