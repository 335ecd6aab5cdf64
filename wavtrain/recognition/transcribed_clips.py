"""Which clips can be learned from or scored: they have a text, and frames enough for its labels. The others have a reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import datasets
import numpy as np

from wavtrain import InputError
from wavtrain.recognition.transcripts import TextRules, has_digits, normalised
from wavtrain.recognition.vocabularies import Vocabulary

ROWS_AT_ONCE = 10_000
REMEDIES = {
    "no_text": "name the column of the transcripts with --text_column_name",
    "empty_transcript": "--chars_to_ignore, --remove_punctuation or the corpus leave nothing of them",
    "digits": "spell numbers out, or leave out --digits reject",
    "shorter_than_a_frame": "raise --min_duration_in_seconds to what the model can hear",
    "more_labels_than_frames": "the transcripts are not those of the clips, or --speed_perturbation is too fast",
    "longer_than_a_batch": "raise --max_batch_duration_in_seconds, or prepare with a lower --max_duration_in_seconds",
}


class Survey(NamedTuple):
    """What the transcripts of a split are like."""

    usable: np.ndarray  # (clips,) row numbers
    rejected: list[dict[str, str]]  # a line of rejected.jsonl each
    unknown: Counter[str]  # letters outside the vocabulary, in the clips that are usable

    def summary(self, split: str) -> list[str]:
        """Lines for people: what was left out and why, what the vocabulary lacks."""
        lines = []
        for reason, count in sorted(Counter(each["reason"] for each in self.rejected).items()):
            lines.append(f"note: {count:,} clips of {split} are left out: {reason} ({REMEDIES[reason]})")
        if self.unknown:
            shown = ", ".join(f"{letter!r} {count}" for letter, count in self.unknown.most_common(20))
            more = f" and {len(self.unknown) - 20} more" if len(self.unknown) > 20 else ""
            lines.append(f"note: {self.unknown.total():,} letters of {split} are not in the vocabulary and cannot be "
                         f"recognised: {shown}{more}")
        return lines


def texts_of(clips: datasets.Dataset, rules: TextRules) -> Iterator[str]:
    """The normalised transcripts that are there and allowed, for a vocabulary or a language model."""
    for text in _texts(clips):
        spoken, fault = _read(text, rules)
        if fault is None:
            yield spoken


def survey(
    clips: datasets.Dataset, rules: TextRules, vocabulary: Vocabulary, num_frames: np.ndarray,
    is_too_long: np.ndarray | None = None,
) -> Survey:
    """`num_frames` and `is_too_long` are (clips,), the latter given for training: labels must fit, digits may be unwelcome."""
    usable, rejected, unknown = [], [], Counter()
    is_training = is_too_long is not None
    rules = rules if is_training else replace(rules, digits="keep")
    for row, (text, frames) in enumerate(zip(_texts(clips), num_frames.tolist(), strict=True)):
        spoken, reason = _read(text, rules)
        detail = ""
        if reason is None and not frames:
            reason = "shorter_than_a_frame"
        if reason is None and is_training:
            reason, detail = _misfit(vocabulary.encode(spoken), frames, bool(is_too_long[row]))
        if reason is None:
            usable.append(row)
            unknown.update(vocabulary.unknown_in(spoken))
        else:
            source = clips.data.column("utterance_id")[row].as_py()
            rejected.append({"source": source, "reason": reason, "detail": detail or repr(text)})
    if not usable and len(clips):
        first = rejected[0]
        part = "training" if is_training else "validation"
        raise InputError(f"--dataset_name: none of the {len(clips)} {part} clips can be used: {first['source']} is the first: "
                         f"{first['reason']} {first['detail']}; {REMEDIES[first['reason']]}")
    return Survey(np.array(usable, dtype=np.int64), rejected, unknown)


def labels_needed(labels: np.ndarray) -> int:
    """Frames that CTC needs at least: one a label, and a blank between equal ones."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def _texts(clips: datasets.Dataset) -> Iterator[str | None]:
    column = clips.data.column("text")
    for start in range(0, len(clips), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


def _read(text: str | None, rules: TextRules) -> tuple[str, str | None]:
    """The normalised text, and what speaks against it."""
    if text is None:
        return "", "no_text"
    if rules.digits == "reject" and has_digits(text):
        return "", "digits"
    spoken = normalised(text, rules)
    return spoken, None if spoken else "empty_transcript"


def _misfit(labels: np.ndarray, num_frames: int, is_too_long: bool) -> tuple[str | None, str]:
    if is_too_long:
        return "longer_than_a_batch", f"{num_frames} frames"
    needed = labels_needed(labels)
    return ("more_labels_than_frames", f"{needed} > {num_frames}") if needed > num_frames else (None, "")
