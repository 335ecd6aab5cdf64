"""Build, load and save the models that are pretrained."""

import logging
import os
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel

from wavtrain import InputError
from wavtrain.models.contrastive import ObjectiveSettings, Wav2Vec2ConformerPretraining, Wav2Vec2Pretraining
from wavtrain.speech.waveforms import SAMPLING_RATE

PRETRAINING_CLASSES = {"wav2vec2": Wav2Vec2Pretraining, "wav2vec2-conformer": Wav2Vec2ConformerPretraining}
SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs", "models")
# what transformers raises for what it cannot find or read
NOT_THERE = (OSError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, UnpicklingError,
             HfHubHTTPError, StrictDataclassError)

DECIDES_NUMBERS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim",
                   "conv_kernel", "conv_stride", "num_conv_pos_embeddings", "num_codevector_groups",
                   "num_codevectors_per_group", "codevector_dim", "proj_codevector_dim", "hidden_dropout",
                   "attention_dropout", "activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout",
                   "conformer_conv_dropout", "layerdrop", "mask_time_prob", "mask_time_length", "mask_time_min_masks",
                   "diversity_loss_weight", "contrastive_logits_temperature", "num_negatives", "hidden_act",
                   "feat_extract_activation", "layer_norm_eps", "do_stable_layer_norm")

logger = logging.getLogger(__name__)


def load_config(
    name: str, flag: str, overrides: Mapping[str, Any], cache_dir: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The config of a model directory or Hub id, with the values that flags override, checked for pretraining."""
    try:
        config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except NOT_THERE as error:
        name = shipped_instead(name, flag, error)
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in PRETRAINING_CLASSES:
        raise InputError(f"{flag} {name}: its model_type is {config.model_type}; pretrained here are "
                         f"{' and '.join(PRETRAINING_CLASSES)}")
    for field, value in overrides.items():
        if value is not None:
            setattr(config, field, value)
    if not config.mask_time_prob > 0:
        raise InputError(f"{flag} {name}: mask_time_prob is {config.mask_time_prob}, so nothing would be learned: give "
                         "--mask_time_prob 0.65")
    if config.num_negatives < 1:
        raise InputError(f"{flag} {name}: num_negatives is {config.num_negatives}; at least 1 is needed")
    if config.mask_feature_prob > 0 or config.add_adapter:
        raise InputError(f"{flag} {name}: mask_feature_prob and add_adapter belong to fine-tuning: set them to 0 and false")
    return config


def load_feature_extractor(
    name: str, flag: str, cache_dir: str | None = None, trust_remote_code: bool = False
) -> FeatureExtractionMixin:
    """How the model wants its waveform: saved with it, and where `do_normalize` stands."""
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except NOT_THERE as error:
        extractor = AutoFeatureExtractor.from_pretrained(shipped_instead(name, flag, error))
    if extractor.sampling_rate != SAMPLING_RATE:
        raise InputError(f"{flag} {name}: wants {extractor.sampling_rate} Hz; prepared speech has {SAMPLING_RATE}")
    return extractor


def shipped_instead(name: str, flag: str, error: Exception) -> str:
    """A Hub id that cannot be had is looked for in configs/models."""
    shipped = os.path.join(SHIPPED, os.path.basename(name))
    reason = what_it_says(error)[:200]
    if os.path.isdir(name) or not os.path.isdir(shipped):
        where = "cannot be used" if os.path.isdir(name) else "is no folder and not to be had from the Hub"
        raise InputError(f"{flag} {name}: {where} ({reason}); configs/models/ has "
                         f"{', '.join(sorted(os.listdir(SHIPPED)))}, which need no network") from error
    logger.warning("%s %s: not to be had from the Hub; taking configs/models/%s", flag, name, os.path.basename(name))
    return shipped


def what_it_says(error: Exception) -> str:
    """In one line; but not torch's advice on a pickle, to read it whatever code it runs."""
    if isinstance(error, UnpicklingError):
        return "its weights are a damaged pickle, or one that could run code and is not read: save them as safetensors"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if isinstance(error, (LookupError, AttributeError, TypeError)) else text


def build(config: PreTrainedConfig, objective: ObjectiveSettings, init_from: str | None = None,
          cache_dir: str | None = None) -> PreTrainedModel:
    """A pretraining model with random weights, or with those of a directory or Hub id, whatever head they had."""
    kind = PRETRAINING_CLASSES[config.model_type]
    try:
        model = kind(config) if init_from is None else _with_weights(kind, config, init_from, cache_dir)
    except NOT_THERE as error:  # sizes that do not go together
        raise InputError(f"--model_name_or_path {config.name_or_path}: {what_it_says(error)}") from error
    model.objective = objective
    return model.train()  # from_pretrained leaves it in evaluation mode


def _with_weights(
    kind: type[PreTrainedModel], config: PreTrainedConfig, init_from: str, cache_dir: str | None
) -> PreTrainedModel:
    try:
        model, loaded = kind.from_pretrained(init_from, config=config, cache_dir=cache_dir, output_loading_info=True,
                                             dtype=torch.float32)
    except (*NOT_THERE, RuntimeError, SafetensorError) as error:
        raise InputError(f"--init_from {init_from}: {what_it_says(error)}") from error
    missing = sorted(loaded["missing_keys"])
    of_the_encoder = [name for name in missing if name.startswith(kind.base_model_prefix) and "masked_spec_embed" not in name]
    if of_the_encoder or loaded["mismatched_keys"]:
        raise InputError(f"--init_from {init_from}: holds other weights than the config asks for: "
                         f"{', '.join([*of_the_encoder, *map(str, loaded['mismatched_keys'])][:3])}")
    if missing:
        logger.warning("--init_from %s: has no %s; these begin at random", init_from, ", ".join(missing))
    return model


def describe(extractor: FeatureExtractionMixin, model: PreTrainedModel, folder: str) -> None:
    """config.json, naming the class of transformers that reads the weights, and preprocessor_config.json."""
    stock = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers."))
    model.config.architectures = [stock.__name__]
    model.config.save_pretrained(folder)
    extractor.save_pretrained(folder)


def identity(config: PreTrainedConfig, extractor: FeatureExtractionMixin, micro_batches_per_update: int,
             prepared_speech: str, mixed_precision: str) -> dict[str, Any]:
    """What decides the numbers of a run, beside its arguments."""
    found = {name: getattr(config, name, None) for name in DECIDES_NUMBERS}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}  # as JSON gives it back
    return {"micro_batches_per_update": micro_batches_per_update, "prepared_speech": prepared_speech,
            "mixed_precision": mixed_precision, **found, "do_normalize": getattr(extractor, "do_normalize", None)}


def takes_uneven_clips(config: PreTrainedConfig) -> str:
    """ "crop" for models with group norm, whose first layer cannot tell padding from speech, otherwise "pad"."""
    return "crop" if config.feat_extract_norm == "group" else "pad"


def adapted(model: PreTrainedModel, checkpoints: bool, compiles: bool) -> PreTrainedModel:
    """The same model. --gradient_checkpointing: activations are computed again in the backward pass. --torch_compile: layer by
    layer, as they repeat, so little is compiled, and lengths may change."""
    if checkpoints:  # transformers 5.2x has a new name for it
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if compiles:
        for layer in (*_convolution_layers(model), *model.base_model.encoder.layers):
            layer.compile(dynamic=True)
    return model


def _convolution_layers(model: PreTrainedModel) -> list[nn.Module]:
    """None in a model of filter banks."""
    return list(model.base_model.feature_extractor.conv_layers) if hasattr(model.base_model, "feature_extractor") else []
