"""Beam search over CTC log-probabilities by flashlight-text, an optional package, with KenLM models of words or of tokens.

With `lm_unit` "word" only words of a lexicon come out, and "<unk>" where `unk_score` allows it: flashlight ends such a word
after the first letters that are no word, so it marks a place rather than a word. Every spelling ends with the word delimiter,
and a frame of nothing but the delimiter is put behind the last one, so that a model which writes no delimiter at the end of a
text loses no word. With "token" any text may come out; the language model, if any, is of tokens such as letters.
"""

import copy
import logging
import os
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple

import numpy as np

try:
    from flashlight.lib.text import decoder as flashlight
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary
except ImportError:
    flashlight = None

from wavtrain import InputError
from wavtrain.recognition.decoding import Clock, Hypothesis, along, as_array, assembled, collapsed
from wavtrain.recognition.lexicons import NOT_WORDS, UNKNOWN, Spelling, refuse_deadly, spellings
from wavtrain.recognition.vocabularies import Vocabulary

NEVER = -1e4  # the log-probability of what is not to be; -inf would make sums that are not numbers
MOST_HOMOGRAPHS = 6  # words that flashlight's trie keeps for one spelling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BeamOptions:
    """The weights are those of the wav2vec 2.0 paper's 4-gram decoding, the thresholds fairseq's."""

    beam_size: int = 50
    beam_size_token: int | None = None  # tokens tried in each frame; None: all
    beam_threshold: float = 25.0
    lm_weight: float = 2.0  # of the language model's log10 probabilities
    word_score: float = -1.0  # for each word of the lexicon
    unk_score: float = -inf  # for each <unk>
    num_hypotheses: int = 1
    lm_path: str | None = None  # ARPA, also gzipped, or KenLM binary
    lexicon_path: str | None = None  # lines of `word` or `word<TAB>t o k e n s`
    lm_unit: str = "word"  # word | token

    def __post_init__(self) -> None:
        if self.lm_unit not in ("word", "token"):
            raise InputError(f"--lm_unit {self.lm_unit}: is word or token")
        for name in ("beam_size", "num_hypotheses", "beam_threshold", "beam_size_token"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name} {value}: give a number above 0")
        if np.isnan([self.word_score, self.unk_score]).any():
            raise InputError("--word_score, --unk_score: nan is no score: give a number, or -inf for never")
        if self.lm_unit == "token" and self.lexicon_path is not None:
            raise InputError("--lexicon_path: a lexicon goes with --lm_unit word, not with token")
        if self.lm_unit == "word" and self.lexicon_path is None and self.lm_path is None:
            raise InputError("--lm_path: the words of --lm_unit word come from a language model or a --lexicon_path; without "
                             "both, --lm_unit token lets the beam search spell freely")


class Candidate(NamedTuple):
    """A hypothesis and the parts of its score."""

    hypothesis: Hypothesis
    acoustic_score: float  # natural log-probability of its path
    lm_score: float  # log10 probability, not weighted


class BeamDecoder:
    """A vocabulary, a language model and a lexicon, loaded once."""

    def __init__(self, vocabulary: Vocabulary, options: BeamOptions) -> None:
        if flashlight is None:
            raise InputError("--decoder beam needs flashlight-text: pip install -r requirements-decoding.txt")
        self.vocabulary, self.options = vocabulary, options
        self._never = sorted(vocabulary.specials - {vocabulary.blank})
        if options.lm_unit == "token":
            self._units = list(vocabulary.tokens)
            self._lm = _language_model(options.lm_path, self._units, "tokens")
        else:
            lexicon = spellings(vocabulary, options.lexicon_path, options.lm_path)
            self._units = [*lexicon, UNKNOWN]
            self._lm = _language_model(options.lm_path, self._units, "words")
            self._trie = self._trie_of(lexicon)
        self._search = self._search_with(options)

    def with_weights(self, lm_weight: float, word_score: float) -> "BeamDecoder":
        """The same decoder with other weights; language model and lexicon are shared."""
        other = copy.copy(self)
        other.options = replace(self.options, lm_weight=lm_weight, word_score=word_score)
        other._search = other._search_with(other.options)
        return other

    def decode(self, log_probs: np.ndarray, seconds_per_frame: float, start: float = 0.0) -> list[Hypothesis]:
        """The `num_hypotheses` best texts for log-probabilities (frames, tokens), best first."""
        return [candidate.hypothesis for candidate in self.candidates(log_probs, seconds_per_frame, start)]

    def candidates(self, log_probs: np.ndarray, seconds_per_frame: float, start: float = 0.0) -> list[Candidate]:
        """As `decode`, with the parts of the scores."""
        log_probs = np.maximum(as_array(log_probs), NEVER)
        assert log_probs.shape[1] == len(self.vocabulary.tokens)
        assert not np.isnan(log_probs).any()
        searched = log_probs.copy()
        searched[:, self._never] = NEVER
        if self.options.lm_unit == "word":
            ending = np.full((1, searched.shape[1]), NEVER, np.float32)
            ending[0, self.vocabulary.delimiter] = 0.0
            searched = np.concatenate([searched, ending])
        results = self._search.decode(searched.ctypes.data, *searched.shape)  # an address: `searched` is to outlive the call
        best: dict[str, Candidate] = {}
        for result in results:
            candidate = self._candidate(result, log_probs, Clock(seconds_per_frame, start))
            best.setdefault(candidate.hypothesis.text, candidate)
            if len(best) == self.options.num_hypotheses:
                break
        return list(best.values())

    def _candidate(self, result: Any, log_probs: np.ndarray, clock: Clock) -> Candidate:
        path = np.array(result.tokens[1 : len(log_probs) + 1], dtype=np.int64)  # flashlight adds one before and after
        if self.options.lm_unit == "token":
            said = along(path, log_probs, self.vocabulary, clock)
        else:
            runs = collapsed(path, log_probs, self.vocabulary.blank)
            runs = type(runs)(*(each[runs.tokens != self.vocabulary.delimiter] for each in runs))
            marks = [frame for frame, word in enumerate(result.words[1:-1]) if word >= 0]  # where a word was complete
            places = np.searchsorted(runs.firsts, marks, side="right").tolist()
            words = [(self._units[result.words[mark + 1]], slice(before, after))
                     for mark, before, after in zip(marks, [0, *places], places, strict=False)
                     if after > before]  # a letter of several frames can be several <unk>
            said = assembled(" ".join(word for word, _ in words), words, path, log_probs, runs, clock)
        rest = result.score - result.emittingModelScore  # what is no acoustic score; the frame put behind has none either
        return Candidate(said._replace(score=said.score + rest), said.score, result.lmScore)

    def _trie_of(self, lexicon: dict[str, list[Spelling]]) -> Any:
        trie = flashlight.Trie(len(self.vocabulary.tokens), self.vocabulary.delimiter)
        begin = self._lm.start(False)
        scores = [self._lm.score(begin, place)[1] for place in range(len(lexicon))]
        homographs: Counter[Spelling] = Counter()
        for place in sorted(range(len(lexicon)), key=lambda place: -scores[place]):  # likely ones first
            for spelling in lexicon[self._units[place]]:
                homographs[spelling] += 1
                if homographs[spelling] <= MOST_HOMOGRAPHS:
                    trie.insert(spelling, place, scores[place])
        too_many = sum(max(count - MOST_HOMOGRAPHS, 0) for count in homographs.values())
        if too_many:
            logger.warning("lexicon: %d words share their spelling with %d likelier ones and are left out", too_many,
                           MOST_HOMOGRAPHS)
        trie.smear(flashlight.SmearingMode.MAX)
        return trie

    def _search_with(self, options: BeamOptions) -> Any:
        vocabulary = self.vocabulary
        settings = {"beam_size": options.beam_size, "beam_size_token": options.beam_size_token or len(vocabulary.tokens),
                    "beam_threshold": options.beam_threshold, "lm_weight": options.lm_weight, "sil_score": 0.0,
                    "log_add": False, "criterion_type": flashlight.CriterionType.CTC}
        if options.lm_unit == "token":
            silence = vocabulary.blank if vocabulary.delimiter is None else vocabulary.delimiter
            settings = flashlight.LexiconFreeDecoderOptions(**settings)
            return flashlight.LexiconFreeDecoder(settings, self._lm, silence, vocabulary.blank, [])
        settings = flashlight.LexiconDecoderOptions(**settings, word_score=options.word_score, unk_score=options.unk_score)
        return flashlight.LexiconDecoder(settings, self._trie, self._lm, vocabulary.delimiter, vocabulary.blank,
                                         self._units.index(UNKNOWN), [], False)


def _language_model(path: str | None, units: list[str], kind: str) -> Any:
    if path is None:
        return flashlight.ZeroLM()
    if not os.path.isfile(path):
        raise InputError(f"--lm_path {path}: there is no such file")
    dictionary = Dictionary()
    for unit in dict.fromkeys([*units, UNKNOWN]):
        dictionary.add_entry(unit)

    def use(path: str) -> None:
        model = KenLM(path, dictionary)
        begin = state = model.start(False)
        for place in range(dictionary.index_size()):  # each word as the first, and after those before it
            model.score(begin, place)
            state, _ = model.score(state, place)

    try:
        refuse_deadly(path, use)
        model = KenLM(path, dictionary)
    except (RuntimeError, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        reason = "".join(character if character.isprintable() else " " for character in str(error).splitlines()[-1])
        raise InputError(f"--lm_path {path}: is no language model that KenLM can load ({reason[:200].strip()})") from error
    begin = model.start(False)
    unknown = model.score(begin, dictionary.get_index(UNKNOWN))[1]
    if all(model.score(begin, place)[1] == unknown for place, unit in enumerate(units) if unit not in NOT_WORDS):
        raise InputError(f"--lm_path {path}: knows none of the {kind} to be decoded: is it of --lm_unit {kind[:-1]}, in the "
                         "same case?")
    return model
