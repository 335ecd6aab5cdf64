"""A checkpoint of fairseq as a directory that transformers and the scripts here read:

    python -m wavtrain.conversion.from_fairseq CHECKPOINT.pt OUT_DIR [DICT.txt]

Pretraining and CTC of wav2vec 2.0 (BASE, LARGE, XLSR) and HuBERT. The dictionary of a recogniser, if none is named, is the
dict.ltr.txt beside the checkpoint, or the one that newer checkpoints hold. Nothing that the file names is run, fairseq is not
needed, and a tensor that has no place in the model is an error.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoModelForPreTraining,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.conversion.fairseq_layout import Layout, config_of, layout_of, renamed
from wavtrain.conversion.fairseq_pickles import Checkpoint, read_checkpoint
from wavtrain.durable_files import flush_tree, write_or_say_full
from wavtrain.models.encoders import NOT_THERE, what_it_says
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import Vocabulary, save_tokenizer
from wavtrain.recognition.vocabulary_files import SPECIALS, read_entries, tokens_by_id

BESIDE = "dict.ltr.txt"
SHOWN = 5


def convert(path: str, out_dir: str, dictionary: str | None = None) -> str:
    """Write the directory, complete or not at all. Returns what became of the checkpoint."""
    if os.path.lexists(out_dir) and not (os.path.isdir(out_dir) and not os.listdir(out_dir)):
        raise InputError(f"{out_dir}: is there already: name a new folder")
    checkpoint = read_checkpoint(path)
    layout = layout_of(checkpoint.tensors, checkpoint.settings)
    try:
        values, do_normalize, guessed = config_of(layout, checkpoint.settings, checkpoint.encoder_settings)
        tensors, unused, unknown = renamed(layout)
        model = _empty_model(layout, values)
        _fill(model, tensors, unused, unknown)
    except KeyError as error:
        raise InputError(f"{path}: is no wav2vec 2.0 or HuBERT of fairseq: it has no tensor {error}") from error
    except (*NOT_THERE, RuntimeError) as error:
        raise InputError(f"{path}: cannot be converted: {what_it_says(error)}") from error
    hears_padding = values["feat_extract_norm"] == "group"
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=not hears_padding)
    vocabulary = _vocabulary(path, dictionary, checkpoint, len(layout.head["weight"])) if layout.head else None
    out_dir = os.path.abspath(out_dir)
    os.makedirs(os.path.dirname(out_dir), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=os.path.dirname(out_dir)) as beside:
        whole = os.path.join(beside, "model")
        write_or_say_full(model.save_pretrained, whole)
        extractor.save_pretrained(whole)
        if vocabulary:
            save_tokenizer(vocabulary, TextRules(unit=vocabulary.unit), whole)
        flush_tree(whole)
        os.rename(whole, out_dir)
    said = f"{out_dir}: {type(model).__name__}, {len(tensors)} tensors, {model.num_parameters():,} parameters"
    said += f"\n  left out, as transformers' class has no use for it: {', '.join(unused)}" if unused else ""
    return said + (f"\n  not told by the checkpoint, taken as in published models: {', '.join(guessed)}" if guessed else "")


def _empty_model(layout: Layout, values: dict[str, Any]) -> PreTrainedModel:
    """Without memory for its weights."""
    known = AutoConfig.for_model(layout.model_type)  # HuBERT has no codebook
    config = AutoConfig.for_model(layout.model_type, **{name: each for name, each in values.items() if hasattr(known, name)})
    with torch.device("meta"):
        if layout.head:
            return AutoModelForCTC.from_config(config)
        return HubertModel(config) if layout.model_type == "hubert" else AutoModelForPreTraining.from_config(config)


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], unused: list[str], unknown: list[str]) -> None:
    """Every tensor of the checkpoint has a place in the model, and every place its tensor."""
    wanted = {name: each.shape for name, each in model.state_dict().items()}
    mask = next(name for name in tensors if name.endswith("masked_spec_embed"))
    if mask not in wanted:  # nothing is masked in this model
        del tensors[mask]
        unused.append("mask_emb")
    for what, names in {
        "tensors that no model here has": [*unknown, *sorted(tensors.keys() - wanted.keys())],
        "no tensors for": sorted(wanted.keys() - tensors.keys()),
        "tensors of another shape than the model's": [f"{name} {tuple(tensors[name].shape)}" for name in sorted(wanted)
                                                      if name in tensors and tensors[name].shape != wanted[name]],
    }.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ValueError(f"it has {what} {', '.join(names[:SHOWN])}{more}")
    model.load_state_dict({name: each.to(torch.float32, copy=True).contiguous() for name, each in tensors.items()}, assign=True)


def _vocabulary(path: str, dictionary: str | None, checkpoint: Checkpoint, size: int) -> Vocabulary:
    """fairseq's first four symbols are <s>, which is the blank, <pad>, </s> and <unk>; in transformers they are SPECIALS."""
    beside = os.path.join(os.path.dirname(path), BESIDE)
    if dictionary is None and os.path.exists(beside):
        dictionary = beside
    if dictionary is None and not checkpoint.symbols:
        raise InputError(f"{path}: is a recogniser, and there is no {BESIDE} beside it to say what its {size} outputs mean: "
                         "name its dictionary after OUT_DIR")
    if dictionary and not os.path.isfile(dictionary):
        raise InputError(f"{dictionary}: is no file: name the recogniser's dictionary")
    try:
        tokens = (tokens_by_id(read_entries(dictionary, "letters", None, None).ids) if dictionary
                  else (*SPECIALS, *checkpoint.symbols[len(SPECIALS):]))
    except NOT_THERE as error:
        raise InputError(f"{dictionary}: {what_it_says(error)}") from error
    if len(tokens) != size or tokens[: len(SPECIALS)] != SPECIALS or len(set(tokens)) != size:
        raise InputError(f"{dictionary or path}: has {len(tokens)} symbols, {', '.join(SPECIALS)} among them, and the "
                         f"recogniser {size} outputs: name the dictionary that it was trained with after OUT_DIR")
    delimiter = tokens.index("|") if "|" in tokens else None
    return Vocabulary(tokens, "phones" if delimiter is None else "letters", 0, SPECIALS.index("<unk>"), delimiter)


def main(words: Sequence[str]) -> None:
    """CHECKPOINT.pt OUT_DIR [DICT.txt]"""
    if not 2 <= len(words) <= 3 or any(word.startswith("-") for word in words):
        raise InputError("name a checkpoint and a new folder: python -m wavtrain.conversion.from_fairseq CHECKPOINT.pt OUT_DIR "
                         "[DICT.txt]")
    print(convert(*words))


if __name__ == "__main__":
    run_as_script(lambda: main(sys.argv[1:]))
