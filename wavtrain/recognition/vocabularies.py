"""What a CTC model can say: built from texts or read from files, and saved as a tokenizer of transformers."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from transformers.utils import cached_file

from wavtrain import InputError
from wavtrain.durable_files import write_json
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabulary_files import (
    FILE_NAME,
    SPECIALS,
    Entries,
    has_languages,
    load_json,
    numbered,
    read_entries,
    tokens_by_id,
)

NEVER_SAID = {*SPECIALS, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", "<bos>", "<eos>"}
RULES_FILE = "text_rules.json"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id."""

    tokens: tuple[str, ...]
    unit: str  # letters | phones
    blank: int
    unknown: int
    delimiter: int | None  # of words; None for phones

    @cached_property
    def specials(self) -> frozenset[int]:
        """Ids of what is never part of a text."""
        return frozenset({self.blank, self.unknown} | {i for i, token in enumerate(self.tokens) if token in NEVER_SAID})

    @cached_property
    def long_letters(self) -> list[str]:
        """Letters of several characters, such as "sch", the longest first."""
        letters = (token for i, token in enumerate(self.tokens) if i not in self.specials and len(token) > 1)
        return sorted(letters, key=len, reverse=True) if self.unit == "letters" else []

    def encode(self, text: str) -> np.ndarray:
        """(tokens,) ids of a normalised text; what is not in the vocabulary becomes `unknown`."""
        id_of, unknown = self._ids.get, self.unknown
        return np.array([id_of(token, unknown) for token in self._split(text)], dtype=np.int64)

    def unknown_in(self, text: str) -> list[str]:
        """What `encode` does not know, in order, as often as it occurs."""
        return [token for token in self._split(text) if token not in self._ids]

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of ids that are collapsed already, without specials, with single spaces between words or phones."""
        said = [" " if i == self.delimiter else self.tokens[i] for i in ids if i not in self.specials]
        return " ".join(("" if self.unit == "letters" else " ").join(said).split())

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = {token: i for i, token in enumerate(self.tokens) if i not in self.specials}
        return ids if self.delimiter is None else {**ids, " ": self.delimiter}

    @cached_property
    def _letter(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.long_letters)) + "|.", re.DOTALL)

    def _split(self, text: str) -> Sequence[str]:
        if self.unit == "phones":
            return text.split()
        return self._letter.findall(text) if self.long_letters else text


def build_vocabulary(texts: Iterable[str], unit: str) -> Vocabulary:
    """Of normalised training texts: specials, delimiter, then what occurs, by code point."""
    found: set[str] = set()
    for text in texts:
        found.update(text if unit == "letters" else text.split())
    first = (*SPECIALS, "|") if unit == "letters" else SPECIALS
    found -= {*first, " "}
    if not found:
        raise InputError("the training part has no text to build a vocabulary from: name its column by --text_column_name")
    return _vocabulary(Entries(numbered([*first, *sorted(found)])), unit)


def read_vocabulary(
    path: str, flag: str, unit: str, language: str | None = None, cache_dir: str | None = None
) -> Vocabulary:
    """From fairseq's dictionary, vocab.json (also one of several languages), or a model directory or Hub id."""
    try:
        return _vocabulary(read_entries(path, unit, language, cache_dir), unit)
    except (OSError, ValueError, AttributeError, LookupError, RecursionError, TypeError) as error:  # of transformers, of JSON
        raise InputError(f"{flag} {path}: {' '.join(str(error).split())[:300]}") from error


def _vocabulary(entries: Entries, unit: str) -> Vocabulary:
    def find(names: Sequence[str], what: str) -> int:
        found = [entries.ids[name] for name in names if name in entries.ids]
        if not found:
            raise ValueError(f"has no {what}: add {names[0]!r}")
        return found[0]

    delimiter = find(entries.delimiters, "word delimiter, and --unit is letters") if unit == "letters" else None
    return Vocabulary(tokens_by_id(entries.ids), unit, find(entries.blanks, "blank"), find(entries.unknowns, "unknown token"),
                      delimiter)


def save_tokenizer(
    vocabulary: Vocabulary, rules: TextRules, folder: str, language: str | None = None,
    others: dict[str, dict[str, int]] | None = None,
) -> None:
    """Files from which AutoTokenizer makes one that encodes and decodes alike, and the rules that its texts follow.

    With `language` the vocabulary is added to those of other languages, for models with an adapter for each.
    """
    assert language or not others
    tokens, ids = vocabulary.tokens, numbered(vocabulary.tokens)
    config = {
        "processor_class": "Wav2Vec2Processor", "pad_token": tokens[vocabulary.blank], "unk_token": tokens[vocabulary.unknown],
        "bos_token": "<s>" if "<s>" in ids else None, "eos_token": "</s>" if "</s>" in ids else None,  # else they are added
        "clean_up_tokenization_spaces": False,  # would join a full stop to the word before it
        "split_special_tokens": not vocabulary.long_letters}  # "<s>" in a text is three letters
    if vocabulary.unit == "phones":
        if language:
            raise InputError(f"--adapter_language {language}: transformers has no tokenizer for phones of several languages")
        config |= {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": False}
    else:
        config |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": tokens[vocabulary.delimiter],
                   "target_lang": language, "do_lower_case": False}
    write_json(os.path.join(folder, FILE_NAME), {**(others or {}), language: ids} if language else ids, indent=1)
    write_json(os.path.join(folder, RULES_FILE), asdict(rules), indent=1)
    write_json(os.path.join(folder, "tokenizer_config.json"), config, indent=1)


def read_text_rules(model: str, cache_dir: str | None = None) -> TextRules | None:
    """The rules that a model's transcripts followed, where it came with them: a folder or a Hub id."""
    path = cached_file(model, RULES_FILE, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    if path is None:
        return None
    try:
        return TextRules(**load_json(path))
    except (OSError, ValueError, TypeError, InputError) as error:
        raise InputError(f"{path}: is damaged ({error}): remove it, and give the text flags of the training") from error


def saved_vocabularies(folder: str) -> dict[str, dict[str, int]]:
    """The vocabularies by language that a folder has; none where there is one for all."""
    path = os.path.join(folder, FILE_NAME)
    if not os.path.exists(path):
        return {}
    try:
        values = load_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}): remove it, or save the tokenizer again") from error
    return values if has_languages(values) else {}
