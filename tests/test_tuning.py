"""Tuned weights are better than the ones before, and the same every time."""

import numpy as np
import pytest
from test_beam_decoding import SMALL, write_arpa

from wavtrain.recognition.beam_decoding import BeamDecoder, BeamOptions
from wavtrain.recognition.tuning import tuned

NEXT = {"<s>": "aab", "aab": "bb", "bb": "aba", "aba": "bab", "bab": "aab"}  # what mostly follows
WORDS = sorted(set(NEXT.values()))
NUM_SENTENCES = 20


@pytest.fixture(scope="module")
def speech():
    """Log-probabilities in which many a letter is heard as the other one, and what was said."""
    generator = np.random.default_rng(3)
    log_probs, references = [], []
    for _ in range(NUM_SENTENCES):
        word, words = "<s>", []
        for _ in range(5):
            word = NEXT[word] if generator.random() < 0.85 else str(generator.choice(WORDS))
            words.append(word)
        path = [frame for letter in "|".join(words) for frame in (SMALL.tokens.index(letter), 0)]
        logits = np.full((len(path), 7), -6.0)
        logits[np.arange(len(path)), path] = 0.0
        logits[:, 5:] += generator.standard_normal((len(path), 2)) * 3
        log_probs.append((logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32))
        references.append(" ".join(words))
    return log_probs, references


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    unigrams = {**dict.fromkeys(WORDS, -0.9), "</s>": -0.9, "<unk>": -3.0}
    return write_arpa(tmp_path_factory.mktemp("lm") / "lm.arpa", unigrams, dict.fromkeys(NEXT.items(), -0.1))


def test_better_than_greedy_and_the_start(speech, arpa):
    decoder = BeamDecoder(SMALL, BeamOptions(lm_path=arpa, lm_weight=30.0, word_score=0.0, beam_size=20))
    best = tuned(decoder, *speech, seconds_per_frame=0.02, seed=1)
    assert best.wer < min(best.start_wer, best.greedy_wer)
    assert best.wer == min(trial.wer for trial in best.trials)
    assert best.start_wer == best.trials[0].wer
    assert best.trials[0][:2] == (30.0, 0.0)
    assert 0.0 in [trial.lm_weight for trial in best.trials]
    assert len(best.trials) == 30
    again = tuned(decoder.with_weights(best.lm_weight, best.word_score), *speech, 0.02, num_trials=1)
    assert (again.wer, again.start_wer, len(again.trials)) == (best.wer, best.wer, 1)


def test_the_seed_decides(speech, arpa):
    decoder = BeamDecoder(SMALL, BeamOptions(lm_path=arpa, beam_size=5))
    some = speech[0][:4], speech[1][:4]
    first, second, other = (tuned(decoder, *some, 0.02, num_trials=20, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first.trials != other.trials


def test_only_weights_that_count_are_tried(speech, arpa, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    some = speech[0][:2], speech[1][:2]
    lexicon = BeamDecoder(SMALL, BeamOptions(lexicon_path=str(tmp_path / "words.txt"), beam_size=5))
    trials = tuned(lexicon, *some, 0.02, num_trials=8).trials
    assert {trial.lm_weight for trial in trials} == {2.0}
    assert len({trial.word_score for trial in trials}) > 3
    free = BeamDecoder(SMALL, BeamOptions(lm_unit="token", beam_size=5))
    assert len(tuned(free, *some, 0.02).trials) == 1
