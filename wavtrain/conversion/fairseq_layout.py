"""What fairseq's tensors are called in transformers, and the config that their shapes and fairseq's settings make.

Shapes show nearly all of it. What they cannot show (strides, heads, the place of the norms) comes from the settings, and where
these are missing it is that of the published models, whose convolutions and norms tell them apart.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CTC_PREFIX, CTC_HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj."
ONLY_OF_HUBERT = "label_embs_concat"
PUBLISHED_STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}  # by kernel widths
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # by width: BASE, LARGE, XLS-R and HuBERT of 1 and 2 billion
MIN_MASKS = 2
ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "relu": "relu"}
LAYER = r"encoder\.layers\.(\d+)\."

ENCODER_NAMES = tuple((re.compile(theirs), ours) for theirs, ours in (
    (r"mask_emb", "masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(\w+)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?(\w+)", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"layer_norm\.(\w+)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(\w+)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.layer_norm\.(\w+)", r"encoder.layer_norm.\1"),
    (LAYER + r"self_attn\.([qkv]|out)_proj\.(\w+)", r"encoder.layers.\1.attention.\2_proj.\3"),
    (LAYER + r"self_attn_layer_norm\.(\w+)", r"encoder.layers.\1.layer_norm.\2"),
    (LAYER + r"fc1\.(\w+)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (LAYER + r"fc2\.(\w+)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (LAYER + r"final_layer_norm\.(\w+)", r"encoder.layers.\1.final_layer_norm.\2"),
))
HEAD_NAMES = tuple((re.compile(theirs), ours) for theirs, ours in (
    (r"quantizer\.vars", "quantizer.codevectors"),
    (r"quantizer\.weight_proj\.(\w+)", r"quantizer.weight_proj.\1"),
    (r"project_q\.(\w+)", r"project_q.\1"),
    (r"final_proj\.(\w+)", r"project_hid.\1"),
))
OF_TRAINING = {  # transformers' names: fairseq's, the first that there is
    "hidden_dropout": ("dropout",), "attention_dropout": ("attention_dropout",), "activation_dropout": ("activation_dropout",),
    "feat_proj_dropout": ("dropout_input",), "feat_quantizer_dropout": ("dropout_features",),
    "final_dropout": ("final_dropout",), "layerdrop": ("layerdrop", "encoder_layerdrop"), "mask_time_prob": ("mask_prob",),
    "mask_time_length": ("mask_length",), "mask_feature_prob": ("mask_channel_prob",),
    "mask_feature_length": ("mask_channel_length",), "apply_spec_augment": ("apply_mask",), "num_negatives": ("num_negatives",),
    "contrastive_logits_temperature": ("logit_temp",)}


class Layout(NamedTuple):
    """A model's type, its tensors without the prefix of a recogniser, and that recogniser's head."""

    model_type: str  # wav2vec2 | hubert
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]


def layout_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Layout:
    """Of pretraining or of CTC."""
    kind = str(settings.get("_name") or settings.get("arch") or "")
    model_type = "hubert" if ONLY_OF_HUBERT in tensors or "hubert" in kind else "wav2vec2"
    head = {name.removeprefix(CTC_HEAD): each for name, each in tensors.items() if name.startswith(CTC_HEAD)}
    encoder = {name.removeprefix(CTC_PREFIX) if head else name: each
               for name, each in tensors.items() if not name.startswith(CTC_HEAD)}
    return Layout(model_type, encoder, head)


def renamed(layout: Layout) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Under transformers' names, without those that its class has no use for, and those that nobody here knows."""
    has_quantizer = layout.model_type == "wav2vec2" and not layout.head
    prefix = f"{layout.model_type}." if has_quantizer or layout.head else ""
    found = {f"lm_head.{name}": each for name, each in layout.head.items()}
    unused, unknown = [], []
    for name, each in layout.tensors.items():
        if ours := _translated(name, ENCODER_NAMES):
            found[prefix + ours] = each
        elif has_quantizer and (ours := _translated(name, HEAD_NAMES)):
            found[ours] = each
        else:
            (unused if name == ONLY_OF_HUBERT or _translated(name, HEAD_NAMES) else unknown).append(name)
    width = len(layout.tensors["mask_emb"])
    if "post_extract_proj.weight" not in layout.tensors and layout.tensors["layer_norm.weight"].shape == (width,):
        found[f"{prefix}feature_projection.projection.weight"] = torch.eye(width)  # fairseq leaves it out where widths agree
        found[f"{prefix}feature_projection.projection.bias"] = torch.zeros(width)
    return found, unused, unknown


def _translated(name: str, names: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    return next((match.expand(ours) for theirs, ours in names if (match := theirs.fullmatch(name))), None)


def config_of(
    layout: Layout, settings: Mapping[str, Any], encoder_settings: Mapping[str, Any]
) -> tuple[dict[str, Any], bool, list[str]]:
    """Values of transformers' config, whether waveforms are normalised, and what had to be guessed."""
    of_form, of_training = {**settings, **encoder_settings}, {**encoder_settings, **settings}
    guessed = []

    def told(name: str, otherwise: Any) -> Any:
        if name not in of_form:
            guessed.append(f"{name} {otherwise}")
        return of_form.get(name, otherwise)

    tensors = layout.tensors
    hidden, per_group, num_positions = tensors["encoder.pos_conv.0.weight_v"].shape
    has_layer_norms = "feature_extractor.conv_layers.0.2.1.weight" in tensors
    shapes = [tuple(tensors[f"feature_extractor.conv_layers.{number}.0.weight"].shape)
              for number in range(_count(tensors, r"feature_extractor\.conv_layers\.\d+\.0\.weight"))]
    dims, kernels = tuple(shape[0] for shape in shapes), tuple(shape[2] for shape in shapes)
    activation = of_form.get("activation_fn", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"its activation_fn is {activation}; known are {', '.join(ACTIVATIONS)}")
    values = {ours: next(of_training[name] for name in theirs if name in of_training)
              for ours, theirs in OF_TRAINING.items() if not of_training.keys().isdisjoint(theirs)}
    values |= {
        "conv_dim": dims, "conv_kernel": kernels,
        "conv_stride": _strides(dims, kernels, told("conv_feature_layers", "as published")),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in tensors,
        "feat_extract_norm": "layer" if has_layer_norms else "group",
        "do_stable_layer_norm": bool(told("layer_norm_first", has_layer_norms)), "hidden_size": hidden,
        "num_hidden_layers": _count(tensors, LAYER + r"fc1\.weight"), "hidden_act": ACTIVATIONS[activation],
        "num_attention_heads": _heads(told("encoder_attention_heads", PUBLISHED_HEADS.get(hidden))),
        "intermediate_size": len(tensors["encoder.layers.0.fc1.weight"]), "num_conv_pos_embeddings": num_positions,
        "num_conv_pos_embedding_groups": hidden // per_group, "mask_time_min_masks": MIN_MASKS}
    if layout.head:  # what fairseq calls <s>, its blank, is <pad> in transformers
        values |= {"vocab_size": len(layout.head["weight"]), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    elif layout.model_type == "wav2vec2":
        _, num_codes, width = tensors["quantizer.vars"].shape
        projected, codevector = tensors["project_q.weight"].shape
        groups = codevector // width
        values |= {"num_codevector_groups": groups, "num_codevectors_per_group": num_codes // groups,
                   "codevector_dim": codevector, "proj_codevector_dim": projected}
    return values, bool(told("normalize", has_layer_norms)), guessed


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _heads(told: int | None) -> int:
    if told is None:
        raise ValueError("nothing says how many encoder_attention_heads it has, and no published model has this width")
    return told


def _strides(dims: Sequence[int], kernels: Sequence[int], told: str) -> Sequence[int]:
    """From an expression such as "[(512, 10, 5)] + [(512, 3, 2)] * 4", which is read, not run."""
    if strides := PUBLISHED_STRIDES.get(tuple(kernels)) if told == "as published" else None:
        return strides
    layers = [tuple(map(int, layer)) for group, times in re.findall(r"\[([^]]*)\](?:\s*\*\s*(\d{1,2}))?", told[:1000])
              for layer in re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", group) * int(times or 1)]
    if [layer[:2] for layer in layers] != list(zip(dims, kernels, strict=True)):
        raise ValueError(f"the strides of its convolutions are not known: its conv_feature_layers is {told[:100]!r}")
    return [layer[2] for layer in layers]
