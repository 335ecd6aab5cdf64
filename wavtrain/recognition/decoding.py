"""Log-probabilities of tokens -> text, with times and confidences: the best path, and what any path through the frames says.

A confidence is the geometric mean of probabilities: of each token at its best frame, the word delimiters of a text included;
of the blank over all frames where a path has nothing else; 0 where there are no frames.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from wavtrain.recognition.vocabularies import Vocabulary


class Word(NamedTuple):
    """A word, or a phone where phones are recognised."""

    text: str
    start: float  # seconds
    end: float
    confidence: float


class Hypothesis(NamedTuple):
    """A text and how good it is."""

    text: str
    score: float  # natural log-probability of its path; of a beam search with the weighted parts added
    confidence: float
    words: tuple[Word, ...]


class Clock(NamedTuple):
    """When a frame is."""

    seconds_per_frame: float
    start: float = 0.0

    def at(self, frame: int) -> float:
        """Where the frame begins, in seconds."""
        return self.start + int(frame) * self.seconds_per_frame


class Runs(NamedTuple):
    """The tokens that a path says: repeats made one, blanks left out. Each (runs,)."""

    tokens: np.ndarray
    firsts: np.ndarray  # frame of the first repeat
    ends: np.ndarray  # frame after the last one
    peaks: np.ndarray  # the best log-probability among the repeats


def greedy(log_probs: Tensor | np.ndarray, vocabulary: Vocabulary, seconds_per_frame: float, start: float = 0.0) -> Hypothesis:
    """The best path of (frames, tokens), spelled as `batch_decode` of transformers' tokenizer does, special tokens and all."""
    log_probs = as_array(log_probs)
    path = log_probs.argmax(1)
    return along(path, log_probs, vocabulary, Clock(seconds_per_frame, start))


def along(path: np.ndarray, log_probs: np.ndarray, vocabulary: Vocabulary, clock: Clock) -> Hypothesis:
    """What a path (frames,) through log-probabilities (frames, tokens) says."""
    runs = collapsed(path, log_probs, vocabulary.blank)
    texts = [vocabulary.tokens[token] for token in runs.tokens]
    if vocabulary.delimiter is None:
        words = [(text, slice(place, place + 1)) for place, text in enumerate(texts)]
        return assembled(" ".join(texts), words, path, log_probs, runs, clock)
    delimiters = np.flatnonzero(runs.tokens == vocabulary.delimiter).tolist()
    between = zip([-1, *delimiters], [*delimiters, len(texts)], strict=True)
    words = [("".join(texts[before + 1 : after]), slice(before + 1, after)) for before, after in between if after > before + 1]
    for place in delimiters:
        texts[place] = " "
    return assembled("".join(texts).strip(), words, path, log_probs, runs, clock)


def assembled(
    text: str, words: Iterable[tuple[str, slice]], path: np.ndarray, log_probs: np.ndarray, runs: Runs, clock: Clock
) -> Hypothesis:
    """A text whose words are each made of some of the runs."""
    on_path = _on_path(path, log_probs)
    timed = tuple(Word(word, clock.at(runs.firsts[part][0]), clock.at(runs.ends[part][-1]), _confidence(runs.peaks[part]))
                  for word, part in words)
    return Hypothesis(text, float(on_path.sum()), _confidence(runs.peaks if len(runs.peaks) else on_path), timed)


def collapsed(path: np.ndarray, log_probs: np.ndarray, blank: int) -> Runs:
    """The runs of equal tokens in a path, without those of the blank."""
    if not len(path):
        return Runs(path, path, path, np.zeros(0, np.float32))
    changes = np.flatnonzero(path[1:] != path[:-1]) + 1
    firsts, ends = np.append(0, changes), np.append(changes, len(path))
    says = path[firsts] != blank
    peaks = np.maximum.reduceat(_on_path(path, log_probs), firsts)
    return Runs(path[firsts][says], firsts[says], ends[says], peaks[says])


def as_array(log_probs: Tensor | np.ndarray) -> np.ndarray:
    """Float32 on the CPU, in one piece."""
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().float().cpu().numpy()
    return np.ascontiguousarray(log_probs, dtype=np.float32)


def _on_path(path: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    return log_probs[np.arange(len(path)), path]


def _confidence(log_probs: np.ndarray) -> float:
    return min(float(np.exp(log_probs.mean(dtype=np.float64))), 1.0) if len(log_probs) else 0.0
