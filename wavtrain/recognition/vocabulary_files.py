"""Vocabularies as others write them: fairseq's dictionaries, vocab.json of one language or several, checkpoints.

What is wrong with a file is a ValueError; who knows the flag that named it makes the message.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # in the order of published checkpoints
FILE_NAME = "vocab.json"


class Entries(NamedTuple):
    """Tokens with their ids, and what its specials may be called, the likeliest name first."""

    ids: dict[str, int]
    blanks: Sequence[str] = ("<pad>", "[PAD]")
    unknowns: Sequence[str] = ("<unk>", "[UNK]")
    delimiters: Sequence[str] = ("|", " ")


def read_entries(path: str, unit: str, language: str | None, cache_dir: str | None) -> Entries:
    """From whatever the path or Hub id is. A vocabulary of a single language is taken for any language."""
    if path.endswith(".json"):
        return Entries(_of_language(load_json(path), language))
    if os.path.isfile(path) or path.endswith(".txt"):
        return Entries(_of_dictionary(path))
    return _of_checkpoint(path, unit, language, cache_dir)


def tokens_by_id(ids: dict[str, int]) -> tuple[str, ...]:
    """All of them, without a gap."""
    if any(type(i) is not int for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}, each once")
    return tuple(sorted(ids, key=ids.__getitem__))


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Ids in order."""
    return {token: i for i, token in enumerate(tokens)}


def load_json(path: str) -> dict[str, Any]:
    """An object that is not empty and names nothing twice."""
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file, object_pairs_hook=_without_doubles)
        except RecursionError as error:
            raise ValueError("is nested too deeply") from error
    if not isinstance(values, dict) or not values:
        raise ValueError("is not a JSON object, or an empty one")
    return values


def has_languages(values: dict[str, Any]) -> bool:
    """Whether it is {language: {token: id}}."""
    return all(isinstance(value, dict) for value in values.values())


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return values


def _of_language(values: dict[str, Any], language: str | None) -> dict[str, int]:
    if not has_languages(values):
        return values
    if language not in values:
        known = ", ".join(sorted(values)[:10])
        raise ValueError(f"has {len(values)} languages and no {language!r}: give --adapter_language, one of {known}")
    return values[language]


def _of_dictionary(path: str) -> dict[str, int]:
    """Lines `token count`. Its models' blank is <s> with id 0; the conversion to transformers calls that <pad>."""
    ids = numbered(SPECIALS)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            token, _, count = line.rstrip("\n").removesuffix(" #fairseq:overwrite").rpartition(" ")
            if not token or not count.isdecimal():
                raise ValueError(f"line {number} is not a token and its count")
            if token in ids:
                raise ValueError(f"line {number}: {token!r} is there already")
            ids[token] = len(ids)
    return ids


def _of_checkpoint(name: str, unit: str, language: str | None, cache_dir: str | None) -> Entries:
    """Through transformers, which knows the names of its specials and the tokens that were added."""
    values = load_json(cached_file(name, FILE_NAME, cache_dir=cache_dir))
    config = get_tokenizer_config(name, cache_dir=cache_dir)
    language = language or config.get("target_lang")
    ids = _of_language(values, language)
    tokens_by_id(ids)
    if not config:
        return Entries(ids)
    tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, do_phonemize=False,  # which needs another package
                                              trust_remote_code=False, target_lang=None if ids is values else language)
    if not isinstance(tokenizer, (Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer)):
        raise ValueError(f"its {type(tokenizer).__name__} is not of a CTC model")
    if unit == "letters" and isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer):
        raise ValueError("recognises phones: give --unit phones")
    added = {token: i for token, i in tokenizer.added_tokens_encoder.items() if i >= len(ids)} if ids is values else {}
    # transformers 5 takes every other delimiter than "|" for a special that it does not know
    delimiters = (str(config.get("word_delimiter_token")), *Entries._field_defaults["delimiters"])
    return Entries({**added, **ids}, (str(tokenizer.pad_token),), (str(tokenizer.unk_token),), delimiters)
