"""Edit counts that add: over utterances, batches and processes. Rates are taken from sums, once, at the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jiwer

AT_ONCE = 1000  # utterances: jiwer keeps every character of a call as objects of its own


class Edits(NamedTuple):
    """How a hypothesis differs from its reference."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word of the reference; where that is empty the number of insertions, as jiwer has it: always finite."""
        return self.errors / max(self.length, 1)

    def __add__(self, other: "Edits") -> "Edits":  # type: ignore[override]  # sums, where tuples would be joined
        return Edits(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Alignment(NamedTuple):
    """The words (or characters) of both sides, and the stretches of them that belong together."""

    reference: list[str]
    hypothesis: list[str]
    chunks: list[jiwer.AlignmentChunk]

    @property
    def edits(self) -> Edits:
        sizes = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
        for chunk in self.chunks:
            sizes[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        return Edits(*sizes.values())


def aligned_words(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """One alignment an utterance. Words stand between spaces; texts of phones are words as well."""
    return list(_aligned(jiwer.process_words, references, hypotheses))


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> list[Edits]:
    """Of each utterance."""
    return [alignment.edits for alignment in _aligned(jiwer.process_words, references, hypotheses)]


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> list[Edits]:
    """Of each utterance; a space between words is a character."""
    return [alignment.edits for alignment in _aligned(jiwer.process_characters, references, hypotheses)]


def total(edits: Iterable[Edits]) -> Edits:
    """The sum."""
    return sum(edits, Edits())


def _aligned(process: Callable[..., Any], references: Sequence[str], hypotheses: Sequence[str]) -> Iterator[Alignment]:
    assert len(references) == len(hypotheses), f"{len(references)} references for {len(hypotheses)} hypotheses"
    for start in range(0, len(references), AT_ONCE):
        found = process(*(list(texts[start : start + AT_ONCE]) for texts in (references, hypotheses)))
        yield from map(Alignment, found.references, found.hypotheses, found.alignments)
