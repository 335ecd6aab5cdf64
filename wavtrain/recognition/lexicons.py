"""Words and how they are spelled in tokens: from a lexicon file, or the words of an ARPA language model letter by letter."""

import gzip
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO

from wavtrain import InputError
from wavtrain.recognition.vocabularies import Vocabulary
from wavtrain.workers import WorkerDiedError, Workers

UNKNOWN = "<unk>"
NOT_WORDS = {"<s>", "</s>", UNKNOWN, "<UNK>"}
KENLM_BINARY, GZIP = b"mmap lm http://kheafield.com/code", b"\x1f\x8b"
GZIP_AT_BEST = 1032  # bytes that a zipped one can stand for
LONGEST_LINE, MOST_HEADER_LINES = 1 << 16, 100
BYTES_OF_A_GRAM = 4  # at least: `0<TAB>a` and the end of the line
MOST_EXAMPLES = 5
Spelling = tuple[int, ...]

logger = logging.getLogger(__name__)


def spellings(vocabulary: Vocabulary, lexicon_path: str | None, lm_path: str | None) -> dict[str, list[Spelling]]:
    """The spellings of each word, delimiter included. Words that the vocabulary cannot spell are left out and counted."""
    flag, path, entries = (("--lexicon_path", lexicon_path, _lexicon_entries) if lexicon_path is not None
                           else ("--lm_path", lm_path, _arpa_words))
    try:
        return _spelled(vocabulary, entries(path), f"{flag} {path}")
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{flag} {path}: cannot be read ({error}); words are expected as UTF-8 text") from error


def _spelled(vocabulary: Vocabulary, entries: Iterable[tuple[str, list[str]]], source: str) -> dict[str, list[Spelling]]:
    if vocabulary.delimiter is None:
        raise InputError("--lm_unit word: words are told apart by a delimiter, which a vocabulary of phones has not: give "
                         "--lm_unit token")
    ids = {token: place for place, token in enumerate(vocabulary.tokens)}
    found: dict[str, list[Spelling]] = {}
    strange, num_strange = [], 0
    for word, tokens in entries:
        spelling = [ids.get(token, vocabulary.unknown) for token in tokens] or vocabulary.encode(word).tolist()
        if spelling and spelling[-1] == vocabulary.delimiter:
            spelling.pop()
        if not spelling or (vocabulary.specials | {vocabulary.delimiter}) & set(spelling):
            num_strange += 1
            strange += [word] * (num_strange <= MOST_EXAMPLES)
            continue
        known = found.setdefault(word, [])
        if (spelling := (*spelling, vocabulary.delimiter)) not in known:
            known.append(spelling)
    examples = ", ".join(strange)
    if not found:
        tokens = " ".join(vocabulary.tokens[-5:])
        seen = f" ({examples} ...): are they in the case of the model's tokens, ... {tokens}?" if strange else ""
        raise InputError(f"{source}: has no word that the vocabulary can spell{seen}")
    if strange:
        logger.warning("%s: %d words cannot be spelled and are left out (%s ...); %d remain", source, num_strange, examples,
                       len(found))
    return found


def _lexicon_entries(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8") as file:
        for line in _lines(file):
            word, *tokens = line.split() or [UNKNOWN]
            if word not in NOT_WORDS:
                yield word, tokens


def _arpa_words(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, "rb") as file:
        begin = file.read(len(KENLM_BINARY))
    if begin == KENLM_BINARY:
        raise InputError(f"--lm_path {path}: a KenLM binary does not list its words: give them with --lexicon_path, a word a "
                         "line")
    with (gzip.open if begin.startswith(GZIP) else open)(path, "rt", encoding="utf-8") as file:
        lines = _lines(file)
        if not any(line.strip() == "\\1-grams:" for line in islice(lines, MOST_HEADER_LINES)):
            raise InputError(f"--lm_path {path}: is no language model: it has no \\1-grams: of an ARPA file")
        for line in lines:
            _, *word = line.split()[:2] or [None]
            if line.startswith("\\"):
                break
            if word and word[0] not in NOT_WORDS:
                yield word[0], []


def _lines(file: IO[str]) -> Iterator[str]:
    """No line is longer than memory, whatever a zipped file unfolds to."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UnicodeError(f"a line of more than {LONGEST_LINE} characters")
        yield line


def refuse_deadly(path: str, trial: Callable[[str], None]) -> None:
    """A damaged KenLM binary may end the process that uses it: another one tries it first."""
    with open(path, "rb") as file:
        if file.read(len(KENLM_BINARY)) != KENLM_BINARY:
            refuse_odd_counts(path)
            return
    try:
        with Workers(trial, 1) as workers:
            workers.submit(path).result()
    except WorkerDiedError as error:
        raise InputError(f"--lm_path {path}: KenLM crashes over it: it is damaged, build or copy it again") from error


def refuse_odd_counts(path: str) -> None:
    """Counts in the head of an ARPA file that KenLM would die of: below 0, or of more n-grams than the file can hold."""
    with open(path, "rb") as file:
        begin = file.read(len(GZIP))
    is_zipped = begin.startswith(GZIP)
    most = os.path.getsize(path) * (GZIP_AT_BEST if is_zipped else 1) // BYTES_OF_A_GRAM
    with (gzip.open if is_zipped else open)(path, "rb") as file:
        for _ in range(MOST_HEADER_LINES):
            line = file.readline(LONGEST_LINE)
            if line.startswith(b"\\1-grams:"):
                return
            count = re.match(rb"ngram\s+\d+\s*=\s*(.*?)\s*$", line)
            if count and not (re.fullmatch(rb"\d{1,15}", count[1]) and int(count[1]) <= most):
                raise InputError(f"--lm_path {path}: promises {count[1][:20].decode(errors='replace')!r} n-grams, and has no "
                                 "room for so many: is it whole?")
    raise InputError(f"--lm_path {path}: is no language model: it has no \\1-grams: of an ARPA file in its head")
