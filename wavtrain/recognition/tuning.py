"""Language-model weight and word score for the lowest word error rate on held-out speech."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from wavtrain.progress import progress_bar
from wavtrain.recognition.beam_decoding import BeamDecoder
from wavtrain.recognition.beam_workers import candidates_of
from wavtrain.recognition.decoding import greedy
from wavtrain.recognition.error_rates import total, word_edits

LM_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
WORD_SCORES = (-2.0, 0.0, 2.0)
SPREAD, SHRINKS = 1.0, 0.9  # of what is tried around the best pair


class Trial(NamedTuple):
    """A pair of weights and what it gave."""

    lm_weight: float
    word_score: float
    wer: float


class BestWeights(NamedTuple):
    """The best pair, and what to compare it with."""

    lm_weight: float
    word_score: float
    wer: float
    start_wer: float  # of the decoder as it was given
    greedy_wer: float
    trials: tuple[Trial, ...]


def tuned(
    decoder: BeamDecoder, log_probs: Sequence[np.ndarray], references: Sequence[str], seconds_per_frame: float,
    num_trials: int = 30, seed: int = 0, num_workers: int = 0, quiet: bool = False,
) -> BestWeights:
    """Tries the decoder's own weights, no language model, a coarse grid, and then what lies around the best pair so far.

    A weight of what the decoder does not have, a language model or a lexicon, stays as it is. Of equals the first is best.
    """
    generator = np.random.default_rng(seed)
    start = (decoder.options.lm_weight, decoder.options.word_score)
    counts = np.array([decoder.options.lm_path is not None, decoder.options.lm_unit == "word"])
    grid = list(product(LM_WEIGHTS, WORD_SCORES))
    pairs = [start, (0.0, start[1]), *(grid[place] for place in generator.permutation(len(grid)))]
    pairs = list(dict.fromkeys(tuple(np.where(counts, pair, start).tolist()) for pair in pairs))[:num_trials]
    trials: list[Trial] = []
    with progress_bar(num_trials if counts.any() else 1, "trials", "tuning of the beam search", disable=quiet) as bar:
        while len(trials) < bar.total:
            refinement = len(trials) - len(pairs)
            pair = pairs[refinement] if refinement < 0 else _near(_best(trials), counts, generator, refinement)
            searched = candidates_of(decoder.with_weights(*pair), enumerate(log_probs), seconds_per_frame, num_workers)
            texts = [best.hypothesis.text for _, (best, *_) in searched]
            trials.append(Trial(*pair, _error_rate(references, texts)))
            bar.set_postfix_str(f"best WER {_best(trials).wer:.2%}", refresh=False)
            bar.update()
    texts = [greedy(each, decoder.vocabulary, seconds_per_frame).text for each in log_probs]
    return BestWeights(*_best(trials), trials[0].wer, _error_rate(references, texts), tuple(trials))


def _near(best: Trial, counts: np.ndarray, generator: np.random.Generator, step: int) -> tuple[float, float]:
    moves = generator.standard_normal(2) * counts * SPREAD * SHRINKS**step
    lm_weight, word_score = np.round(np.add([best.lm_weight, best.word_score], moves), 3).tolist()
    return max(lm_weight, 0.0), word_score


def _best(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.wer)


def _error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    return total(word_edits(references, texts)).rate
