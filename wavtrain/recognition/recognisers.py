"""Build, load and save recognisers: an encoder of any CTC family of transformers, its head, and the vocabulary of that."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel, SeamlessM4TFeatureExtractor
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from wavtrain import InputError
from wavtrain.loading import normalised
from wavtrain.models import encoders
from wavtrain.models.encoders import NOT_THERE, load_feature_extractor
from wavtrain.recognition import adapters
from wavtrain.recognition.ctc import FAMILIES, leave_out_unused, recogniser_class
from wavtrain.recognition.filter_banks import FRAME_SAMPLES, HOP_SAMPLES, filter_banks
from wavtrain.recognition.padding import adapted, convolved, hears_waves
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import Vocabulary, read_vocabulary, save_tokenizer, saved_vocabularies

FLAG = "--model_name_or_path"  # names weights
WITHOUT_HEAD = ("ForPreTraining", "Model")  # ends of the names of classes
MASK_FLAGS = ("mask_time_prob", "mask_feature_prob")
BANKS_PER_FRAME = 2  # that w2v-BERT's extractor joins
UNREADABLE = (*NOT_THERE, RuntimeError, SafetensorError)

logger = logging.getLogger(__name__)


def load_config(
    name: str, flag: str, vocabulary: Vocabulary, overrides: Mapping[str, Any], cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The config of a model directory or Hub id, with the values that flags override and the size of the vocabulary."""
    try:
        config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except NOT_THERE as error:
        config = AutoConfig.from_pretrained(encoders.shipped_instead(name, flag, error))
    if config.model_type not in FAMILIES:
        raise InputError(f"{flag} {name}: its model_type is {config.model_type}; fine-tuned here are {', '.join(FAMILIES)}")
    for field, value in overrides.items():
        if value is not None and not hasattr(config, field):
            raise InputError(f"--{field}: {config.model_type} models have no such setting: leave the flag out")
        if value is not None:
            setattr(config, field, value)
    if not getattr(config, "apply_spec_augment", True) and not any(overrides.get(name) for name in MASK_FLAGS):
        config.mask_time_prob = config.mask_feature_prob = 0.0
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    config.vocab_size, config.pad_token_id = len(vocabulary.tokens), vocabulary.blank
    config.bos_token_id, config.eos_token_id = ids.get("<s>"), ids.get("</s>")
    config.ctc_zero_infinity = True  # what is too long for its audio adds nothing, rather than spoil the update
    return config


def build(
    config: PreTrainedConfig, vocabulary: Vocabulary, init_from: str | None = None, language: str | None = None,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """A model with random weights, or with those of a directory or Hub id, whose head is kept if it has the same vocabulary.

    With `language` only its adapters and the head are trained. `model.head_is_new` says what became of the head.
    """
    if language:
        adapters.ask_for_adapters(config, language)
    kind = recogniser_class(config)
    keeps_head = init_from is not None and _says_the_same(init_from, vocabulary, language, cache_dir)
    try:
        if init_from is None:
            model, new = kind(config), []
        else:
            model, new = _with_weights(kind, config, init_from, bool(language), cache_dir)
        model.head_is_new = "lm_head.weight" in new or not keeps_head
        if language:
            model.head_is_new = adapters.load_or_begin(model, language, keeps_head, cache_dir)
            adapters.train_only_adapters(model)
        elif model.head_is_new:
            adapters.begin_at_random(model.lm_head, config.initializer_range)
    except UNREADABLE as error:
        raise InputError(f"{FLAG} {init_from or config.name_or_path}: {encoders.what_it_says(error)}") from error
    if init_from and model.head_is_new:
        logger.warning("%s %s: the head begins at random, as it has none for this vocabulary", FLAG, init_from)
    leave_out_unused(model)
    return model.train()


def _says_the_same(name: str, vocabulary: Vocabulary, language: str | None, cache_dir: str | None) -> bool:
    """Whether a checkpoint comes with this very vocabulary; one of pretraining comes with none."""
    try:
        return read_vocabulary(name, FLAG, vocabulary.unit, language, cache_dir) == vocabulary
    except InputError as error:
        logger.debug("%s", error)
        return False


def _with_weights(
    kind: type[PreTrainedModel], config: PreTrainedConfig, init_from: str, may_lack_adapters: bool, cache_dir: str | None
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and which weights it has not found: those of the head, of masks, of adapters where they may be new."""
    if os.path.isdir(init_from) and not any(name.endswith((".safetensors", ".bin")) for name in os.listdir(init_from)):
        raise InputError(f"{FLAG} {init_from}: has no weights: --config_name {init_from} starts from random ones")
    model, loaded = kind.from_pretrained(init_from, config=config, cache_dir=cache_dir, output_loading_info=True,
                                         dtype=torch.float32, ignore_mismatched_sizes=True)
    new = sorted({*loaded["missing_keys"], *(str(each[0]) for each in loaded["mismatched_keys"])})
    may_be_new = ("lm_head", "masked_spec_embed", "adapter.layers", *(("adapter_layer",) if may_lack_adapters else ()))
    if wrong := [name for name in new if not any(part in name for part in may_be_new)]:
        raise InputError(f"{FLAG} {init_from}: holds other weights than the config asks for: {', '.join(wrong[:3])}")
    return model, new


def load_recogniser(
    name: str, language: str | None = None, cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, FeatureExtractionMixin, Vocabulary]:
    """Any CTC checkpoint, ready to listen: a directory or Hub id, of one of its languages where it has several."""
    extractor = load_feature_extractor(name, FLAG, cache_dir)
    try:
        config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=False)
        vocabulary = _own_vocabulary(name, config, language, cache_dir)
        if config.model_type not in FAMILIES:
            raise InputError(f"{FLAG} {name}: its model_type is {config.model_type}; known are {', '.join(FAMILIES)}")
        if language and not getattr(config, "adapter_attn_dim", None):
            raise InputError(f"--adapter_language {language}: {name} has no adapters for languages: leave the flag out")
        options = {"target_lang": language, "ignore_mismatched_sizes": True} if language else {}
        model, loaded = recogniser_class(config).from_pretrained(name, cache_dir=cache_dir, output_loading_info=True,
                                                                 dtype=torch.float32, **options)
    except UNREADABLE as error:
        raise InputError(f"{FLAG} {name}: {encoders.what_it_says(error)}") from error
    if missing := [key for key in loaded["missing_keys"] if "masked_spec_embed" not in key]:
        raise InputError(f"{FLAG} {name}: is no recogniser: it has no {', '.join(sorted(missing)[:3])}")
    size = model.lm_head.out_features
    if size > len(vocabulary.tokens):
        raise InputError(f"{FLAG} {name}: its head has {size} tokens, its vocabulary {len(vocabulary.tokens)}")
    vocabulary = replace(vocabulary, tokens=vocabulary.tokens[:size])  # tokenizers add <s> and </s>, which no head says
    return model.to(device).eval(), extractor, vocabulary


def _own_vocabulary(name: str, config: PreTrainedConfig, language: str | None, cache_dir: str | None) -> Vocabulary:
    is_of_phones = "Phoneme" in (get_tokenizer_config(name, cache_dir=cache_dir).get("tokenizer_class") or "")
    try:
        return read_vocabulary(name, FLAG, "phones" if is_of_phones else "letters", language, cache_dir)
    except InputError as error:
        if not any(each.endswith(WITHOUT_HEAD) for each in config.architectures or ()):
            raise
        raise InputError(f"{FLAG} {name}: is a pretrained model and has no vocabulary: fine-tune it first with "
                         "run_ctc_finetuning.py") from error


def describe(extractor: FeatureExtractionMixin, vocabulary: Vocabulary, rules: TextRules, language: str | None,
             model: PreTrainedModel, folder: str) -> None:
    """All that belongs beside the weights: configs, tokenizer, rules of the text, and the adapters of languages."""
    encoders.describe(extractor, model, folder)
    save_tokenizer(vocabulary, rules, folder, language, saved_vocabularies(model.config.name_or_path) if language else None)
    if language:
        adapters.save_adapters(model, language, folder)


def features_of(wave: np.ndarray, extractor: FeatureExtractionMixin) -> np.ndarray:
    """What the model is given for one clip: its waveform (samples,), or filter banks (frames, features) without padding."""
    if isinstance(extractor, SeamlessM4TFeatureExtractor):
        return filter_banks(wave, extractor)
    return normalised(wave) if extractor.do_normalize else wave


def frames_of(config: PreTrainedConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Samples -> frames of log-probabilities, 0 where there are too few."""

    def frames(num_samples: np.ndarray) -> np.ndarray:
        made = convolved(np.asarray(num_samples), config)
        if not hears_waves(config):
            made = ((made - FRAME_SAMPLES) // HOP_SAMPLES + 1) // BANKS_PER_FRAME
        for _ in range(_num_adapter_layers(config)):
            made = adapted(made, config)
        return np.where(made < getattr(config, "squeeze_factor", 1), 0, np.maximum(made, 0))  # SEW joins frames and parts them

    return frames


def samples_per_frame(config: PreTrainedConfig) -> int:
    """The distance from one frame of log-probabilities to the next."""
    of_encoder = prod(config.conv_stride) if hears_waves(config) else HOP_SAMPLES * BANKS_PER_FRAME
    return of_encoder * getattr(config, "adapter_stride", 1) ** _num_adapter_layers(config)


def _num_adapter_layers(config: PreTrainedConfig) -> int:
    return config.num_adapter_layers if getattr(config, "add_adapter", False) else 0
