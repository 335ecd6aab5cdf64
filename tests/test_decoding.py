"""The best path says what transformers says, at the same times."""

import json
from time import perf_counter

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2CTCTokenizer

from wavtrain.recognition.decoding import greedy
from wavtrain.recognition.vocabularies import Vocabulary

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = Vocabulary((*SPECIALS, "|", "a", "b", "c", "'", "."), "letters", blank=0, unknown=3, delimiter=4)
PHONES = Vocabulary((*SPECIALS, "aː", "k", "ts"), "phones", blank=0, unknown=3, delimiter=None)


def certain(path: list[int], num_tokens: int = 10, probability: float = 0.9) -> np.ndarray:
    """Log-probabilities of which the path is best in each frame."""
    log_probs = np.full((len(path), num_tokens), (1 - probability) / (num_tokens - 1))
    log_probs[np.arange(len(path)), path] = probability
    return np.log(log_probs).astype(np.float32)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({token: place for place, token in enumerate(LETTERS.tokens)}))
    return Wav2Vec2CTCTokenizer(str(path))


def test_text_and_times_are_those_of_transformers(tokenizer):
    generator = np.random.default_rng(0)
    for _ in range(300):
        probabilities = generator.dirichlet(np.ones(10) * 0.3)  # some delimiters at the ends and in rows, some special tokens
        path = generator.choice(10, size=generator.integers(1, 40), p=probabilities)
        theirs = tokenizer.batch_decode([path], output_word_offsets=True)
        ours = greedy(certain(path), LETTERS, seconds_per_frame=0.5, start=3.0)
        assert ours.text == theirs.text[0] == tokenizer.batch_decode([path])[0]
        assert [(word.text, word.start, word.end) for word in ours.words] == [
            (each["word"], 3 + each["start_offset"] / 2, 3 + each["end_offset"] / 2) for each in theirs.word_offsets[0]]


def test_scores_and_confidences():
    log_probs = np.log(np.array([  # <pad> ... | a b
        [.1, 0, 0, 0, 0, .8, .1, 0, 0, 0], [.1, 0, 0, 0, 0, .5, .4, 0, 0, 0], [.1, 0, 0, 0, .9, 0, 0, 0, 0, 0],
        [.7, 0, 0, 0, 0, 0, .3, 0, 0, 0], [.2, 0, 0, 0, 0, 0, .6, .2, 0, 0]]) + 1e-30)
    said = greedy(torch.tensor(log_probs, dtype=torch.float32), LETTERS, 0.02)
    assert said.text == "a b"
    assert said.score == pytest.approx(np.log(.8 * .5 * .9 * .7 * .6), abs=1e-6)
    assert said.confidence == pytest.approx((.8 * .9 * .6) ** (1 / 3), abs=1e-6)  # the better frame of "a"; "|"; "b"
    assert [word.confidence for word in said.words] == pytest.approx([.8, .6], abs=1e-6)
    assert [word[1:3] for word in said.words] == [(0.0, 0.04), (0.08, 0.1)]


def test_nothing_said():
    blank = greedy(certain([0, 0, 0]), LETTERS, 0.02)
    assert (blank.text, blank.words, blank.confidence) == ("", (), pytest.approx(0.9))
    assert greedy(np.zeros((0, 10)), LETTERS, 0.02) == ("", 0.0, 0.0, ())
    assert greedy(certain([4, 0, 4, 4]), LETTERS, 0.02)[::3] == ("", ())


def test_a_phone_is_a_word():
    said = greedy(certain([5, 5, 0, 4, 6, 0, 6], 7), PHONES, 0.01)
    assert said.text == "k aː ts ts"
    assert [(word.text, word.start, word.end) for word in said.words] == [
        ("k", 0.0, 0.02), ("aː", 0.03, 0.04), ("ts", 0.04, 0.05), ("ts", 0.06, 0.07)]


def test_it_is_quick():
    generator = np.random.default_rng(0)
    log_probs = certain(generator.choice(10, size=500, p=[.55, *[.05] * 9]))
    begin = perf_counter()
    for _ in range(20):
        greedy(log_probs, LETTERS, 0.02)
    assert (perf_counter() - begin) / 20 < 0.02  # measured: 1 ms; a shared machine may be slow
