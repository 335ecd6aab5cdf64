"""MMS: small adapters and a head for each language inside one wav2vec 2.0, in files of their own as transformers reads them."""

import os
import re
import shutil

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.wav2vec2.modeling_wav2vec2 import WAV2VEC2_ADAPTER_SAFE_FILE
from transformers.utils import cached_file

from wavtrain import InputError
from wavtrain.durable_files import written_beside

WIDTH = 16  # of the adapters of published checkpoints
ADAPTER_FILE = re.compile(r"adapter\..+\.(safetensors|bin)")


def ask_for_adapters(config: PreTrainedConfig, language: str) -> None:
    """The config of a model with adapters, of one that may have none yet."""
    if config.model_type != "wav2vec2":
        raise InputError(f"--adapter_language: only wav2vec2 models have adapters for languages, {config.model_type} models "
                         "have not: leave the flag out")
    if not re.fullmatch(r"[\w.-]+", language):  # it becomes part of the name of a file
        raise InputError(f"--adapter_language {language}: a language is named by letters, digits and hyphens")
    config.adapter_attn_dim = config.adapter_attn_dim or WIDTH


def load_or_begin(model: PreTrainedModel, language: str, loads: bool, cache_dir: str | None) -> bool:
    """Adapters and head of a language: those that the model's directory has if asked for, else random. Whether they are new."""
    source = model.config.name_or_path
    named = WAV2VEC2_ADAPTER_SAFE_FILE.format(language)
    if loads and cached_file(source, named, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False):
        model.load_adapter(language, cache_dir=cache_dir)
        return False
    for name, module in model.named_modules():
        if name.endswith("adapter_layer"):
            begin_at_random(module, model.config.initializer_range)
    begin_at_random(model.lm_head, model.config.initializer_range)
    model.target_lang = language
    return True


def begin_at_random(module: nn.Module, deviation: float) -> None:
    """As transformers begins linear layers; its own init_adapter_layers leaves alone what was loaded from a file."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=deviation)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def train_only_adapters(model: PreTrainedModel) -> None:
    """And the head; all that languages share stays as it is."""
    model.freeze_base_model()
    model.freeze_feature_encoder()
    for parameter in model._get_adapters().values():
        parameter.requires_grad_(True)


def save_adapters(model: PreTrainedModel, language: str, folder: str) -> None:
    """The language's own file, and beside it those of the other languages that the model came with."""
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model._get_adapters().items()}
    own = os.path.join(folder, WAV2VEC2_ADAPTER_SAFE_FILE.format(language))
    with written_beside(own) as beside:
        save_file(weights, beside, metadata={"format": "pt"})
    source = model.config.name_or_path
    for name in os.listdir(source) if os.path.isdir(source) else ():
        if ADAPTER_FILE.fullmatch(name) and not os.path.exists(os.path.join(folder, name)):
            _add_file(os.path.join(source, name), os.path.join(folder, name))


def _add_file(path: str, added: str) -> None:
    """Without a copy where that can be: there are models with a thousand languages."""
    try:
        os.link(os.path.realpath(path), added)
    except OSError:  # another file system
        shutil.copyfile(path, added)
