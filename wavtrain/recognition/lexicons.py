"""Words and how they are spelled in tokens: from a lexicon file, or the words of an ARPA language model letter by letter."""

import gzip
import logging
from collections.abc import Iterable, Iterator

from wavtrain import InputError
from wavtrain.recognition.vocabularies import Vocabulary

UNKNOWN = "<unk>"
NOT_WORDS = {"<s>", "</s>", UNKNOWN, "<UNK>"}
KENLM_BINARY, GZIP = b"mmap lm http://kheafield.com/code", b"\x1f\x8b"
Spelling = tuple[int, ...]

logger = logging.getLogger(__name__)


def spellings(vocabulary: Vocabulary, lexicon_path: str | None, lm_path: str | None) -> dict[str, list[Spelling]]:
    """The spellings of each word, delimiter included. Words that the vocabulary cannot spell are left out and counted."""
    flag, path, entries = (("--lexicon_path", lexicon_path, _lexicon_entries) if lexicon_path is not None
                           else ("--lm_path", lm_path, _arpa_words))
    try:
        return _spelled(vocabulary, entries(path), f"{flag} {path}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error}); words are expected as UTF-8 text") from error


def _spelled(vocabulary: Vocabulary, entries: Iterable[tuple[str, list[str]]], source: str) -> dict[str, list[Spelling]]:
    if vocabulary.delimiter is None:
        raise InputError("--lm_unit word: words are told apart by a delimiter, which a vocabulary of phones has not: give "
                         "--lm_unit token")
    ids = {token: place for place, token in enumerate(vocabulary.tokens)}
    found: dict[str, list[Spelling]] = {}
    strange: list[str] = []
    for word, tokens in entries:
        spelling = [ids.get(token, vocabulary.unknown) for token in tokens] or vocabulary.encode(word).tolist()
        if spelling and spelling[-1] == vocabulary.delimiter:
            spelling.pop()
        if not spelling or (vocabulary.specials | {vocabulary.delimiter}) & set(spelling):
            strange.append(word)
            continue
        known = found.setdefault(word, [])
        if (spelling := (*spelling, vocabulary.delimiter)) not in known:
            known.append(spelling)
    examples = ", ".join(strange[:5])
    if not found:
        tokens = " ".join(vocabulary.tokens[-5:])
        seen = f" ({examples} ...): are they in the case of the model's tokens, ... {tokens}?" if strange else ""
        raise InputError(f"{source}: has no word that the vocabulary can spell{seen}")
    if strange:
        logger.warning("%s: %d words cannot be spelled and are left out (%s ...); %d remain", source, len(strange), examples,
                       len(found))
    return found


def _lexicon_entries(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            word, *tokens = line.split() or [UNKNOWN]
            if word not in NOT_WORDS:
                yield word, tokens


def _arpa_words(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, "rb") as file:
        begin = file.read(len(KENLM_BINARY))
    if begin == KENLM_BINARY:
        raise InputError(f"--lm_path {path}: a KenLM binary does not list its words: give them with --lexicon_path, a word a "
                         "line")
    with (gzip.open if begin.startswith(GZIP) else open)(path, "rt", encoding="utf-8") as lines:
        if not any(line.strip() == "\\1-grams:" for line in lines):
            raise InputError(f"--lm_path {path}: is no language model: it has no \\1-grams: of an ARPA file")
        for line in lines:
            _, *word = line.split()[:2] or [None]
            if line.startswith("\\"):
                break
            if word and word[0] not in NOT_WORDS:
                yield word[0], []
