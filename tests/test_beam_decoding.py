"""The beam search finds what trying every path finds, says only words of the lexicon, and names faults of its files."""

import gzip
import importlib
import os
import re
import signal
import sys
from itertools import product
from math import inf
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from test_decoding import PHONES, certain

from wavtrain import InputError
from wavtrain.recognition.beam_decoding import BeamDecoder, BeamOptions
from wavtrain.recognition.beam_workers import candidates_of
from wavtrain.recognition.decoding import greedy
from wavtrain.recognition.vocabularies import Vocabulary

pytest.importorskip("flashlight.lib.text", reason="needs requirements-decoding.txt")

SMALL = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b"), "letters", blank=0, unknown=3, delimiter=4)
UNIGRAMS = {"ab": -0.7, "ba": -0.9, "aa": -1.1, "</s>": -0.6, "<unk>": -2.0}
BACKOFF, BIGRAMS = -0.2, {("<s>", "ab"): -0.3, ("ab", "ba"): -0.2, ("ba", "</s>"): -0.1, ("aa", "aa"): -0.4}


def write_arpa(path, unigrams=UNIGRAMS, bigrams=BIGRAMS):
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 1}", f"ngram 2={len(bigrams)}", "", "\\1-grams:", f"-99\t<s>\t{BACKOFF}",
             *(f"{score}\t{word}\t{BACKOFF}" for word, score in unigrams.items()),
             "", "\\2-grams:", *(f"{score}\t{first} {second}" for (first, second), score in bigrams.items()), "", "\\end\\", ""]
    path.write_text("\n".join(lines))
    return str(path)


def lm_score(words):
    pairs = zip(["<s>", *words], [*words, "</s>"], strict=True)
    return sum(BIGRAMS.get(pair, BACKOFF + UNIGRAMS[pair[1]]) for pair in pairs)


def random_log_probs(seed, num_frames=7, vocabulary=SMALL):
    generator = np.random.default_rng(seed)
    logits = torch.tensor(generator.standard_normal((num_frames, len(vocabulary.tokens))) * 2, dtype=torch.float32)
    logits[:, 1:4] = -20
    return logits.log_softmax(1).numpy()


def said_along(path):
    """The words of a path of frames, None where one is not of the language model."""
    tokens = [token for place, token in enumerate(path) if token and (place == 0 or path[place - 1] != token)]
    words = [word for word in "".join(SMALL.tokens[token] for token in tokens).split("|") if word]
    return words if all(word in UNIGRAMS for word in words) else None


@pytest.mark.parametrize("seed", range(4))
def test_words_and_scores_are_those_of_every_path_tried(seed, tmp_path):
    log_probs = random_log_probs(seed)
    options = BeamOptions(lm_path=write_arpa(tmp_path / "lm.arpa"), beam_size=5000, beam_threshold=1000.0, lm_weight=0.8,
                          word_score=0.3, num_hypotheses=5)
    best = {}
    for path in product((0, 4, 5, 6), repeat=len(log_probs)):
        words = said_along(path)
        if words is not None:
            acoustic = float(log_probs[np.arange(len(path)), list(path)].sum())
            entry = (acoustic + 0.8 * lm_score(words) + 0.3 * len(words), acoustic, lm_score(words))
            best[" ".join(words)] = max(best.get(" ".join(words), entry), entry)
    found = BeamDecoder(SMALL, options).candidates(log_probs, 0.02)
    expected = sorted(best.items(), key=lambda item: -item[1][0])[:5]
    assert [each.hypothesis.text for each in found] == [text for text, _ in expected]
    numbers = [(each.hypothesis.score, each.acoustic_score, each.lm_score) for each in found]
    assert np.allclose(numbers, [scores for _, scores in expected], atol=1e-4)


def test_only_words_of_the_lexicon_come_out(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("ab\nba\tb a |\nbaa b a a\n")
    decoder = BeamDecoder(SMALL, BeamOptions(lexicon_path=str(lexicon), num_hypotheses=10, word_score=1.0))
    seen = set()
    for seed in range(60):
        for said in decoder.decode(random_log_probs(seed, 1 + seed), 0.02):
            words = said.text.split()
            assert [word.text for word in said.words] == words
            assert np.isfinite(said.score)
            assert 0 < said.confidence <= 1
            seen |= set(words)
    assert seen == {"ab", "ba", "baa"}


def test_times_and_confidences_are_those_of_the_letters(tmp_path):
    path = [0, 5, 5, 0, 6, 4, 4, 0, 6, 5, 5]  # "ab ba", whose last word no delimiter follows
    options = BeamOptions(lm_path=write_arpa(tmp_path / "lm.arpa"), lm_weight=0.1, word_score=0.0)
    log_probs = certain(path, 7)
    [said], best_path = BeamDecoder(SMALL, options).decode(log_probs, 0.5, start=1.0), greedy(log_probs, SMALL, 0.5, 1.0)
    assert (said.text, said.words) == ("ab ba", best_path.words)
    assert [word[:3] for word in said.words] == [("ab", 1.5, 3.5), ("ba", 5.0, 6.5)]
    assert said.score == pytest.approx(best_path.score + 0.1 * (-0.3 - 0.2 - 0.1), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_language_model_it_is_no_worse_than_greedy(seed):
    log_probs = random_log_probs(seed, 60)
    decoder = BeamDecoder(SMALL, BeamOptions(lm_unit="token", beam_size=200))
    [said], best_path = decoder.decode(log_probs, 0.02), greedy(log_probs, SMALL, 0.02)
    assert said.score >= best_path.score - 1e-3
    assert (said.text, said.words) == (best_path.text, best_path.words)


def test_special_tokens_never_come_out():
    log_probs = certain([5, 1, 2, 3, 6], 7)
    assert greedy(log_probs, SMALL, 0.02).text == "a<s></s><unk>b"
    [said] = BeamDecoder(SMALL, BeamOptions(lm_unit="token")).decode(log_probs, 0.02)
    assert set(said.text) <= set("ab ")
    assert np.isfinite(said.score)


def test_a_model_of_tokens(tmp_path):
    path = write_arpa(tmp_path / "letters.arpa", {"a": -1.0, "b": -1.0, "|": -1.0, "</s>": -1.0, "<unk>": -3.0},
                      {("a", "b"): -0.1, ("a", "a"): -3.0})
    log_probs = np.log(np.array([[.04, .01, .01, .01, .01, .9, .02], [.9, .01, .01, .01, .01, .05, .01],
                                 [.04, .01, .01, .01, .01, .5, .42]])).astype(np.float32)
    free = BeamDecoder(SMALL, BeamOptions(lm_unit="token", lm_path=path, lm_weight=0.0))
    assert free.decode(log_probs, 0.02)[0].text == "aa"
    best = free.with_weights(1.0, 0.0).candidates(log_probs, 0.02)[0]
    assert best.hypothesis.text == "ab"
    assert best.lm_score == pytest.approx((BACKOFF - 1.0) - 0.1 + (BACKOFF - 1.0))  # <s> a, a b, b </s>


def test_a_model_of_phones(tmp_path):
    path = write_arpa(tmp_path / "lm.arpa", {"k": -1.0, "aː": -1.2, "ts": -1.0, "</s>": -1.0, "<unk>": -3.0},
                      {("k", "aː"): -0.1})
    decoder = BeamDecoder(PHONES, BeamOptions(lm_unit="token", lm_path=path, lm_weight=0.1))
    [said] = decoder.decode(certain([5, 4, 4, 6], 7), 0.01)
    assert said.text == "k aː ts"
    assert said.words[1][:3] == ("aː", 0.01, 0.03)


def test_other_weights_are_a_decoder_of_its_own(tmp_path):
    path = write_arpa(tmp_path / "lm.arpa")
    log_probs = [random_log_probs(seed, 20) for seed in range(8)]
    first = BeamDecoder(SMALL, BeamOptions(lm_path=path, lm_weight=0.0, word_score=0.0))
    second = first.with_weights(3.0, -4.0)
    loaded = BeamDecoder(SMALL, BeamOptions(lm_path=path, lm_weight=3.0, word_score=-4.0))
    before, other, same, after = ([decoder.candidates(each, 0.02) for each in log_probs]
                                  for decoder in (first, second, loaded, first))
    assert other == same != before
    assert after == before


def test_homographs_are_told_apart_by_the_model(tmp_path, caplog):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word}\ta b |\n" for word in ["un", "deux", "trois", "vier", "five", "seis", "ab", "ba"]))
    path = write_arpa(tmp_path / "lm.arpa")
    decoder = BeamDecoder(SMALL, BeamOptions(lexicon_path=str(lexicon), lm_path=path, num_hypotheses=9))
    log_probs = certain([5, 6, 4, 5, 6, 4], 7, probability=0.99)
    found = decoder.candidates(log_probs, 0.02)
    assert found[0].hypothesis.text == "ab ba"
    assert len({each.hypothesis.text for each in found}) == 9
    assert "2 words share their spelling" in caplog.text  # flashlight keeps six; unknown ones have to go


def test_unknown_words_are_allowed_by_their_score(tmp_path):
    path = write_arpa(tmp_path / "lm.arpa")
    log_probs = certain([5, 6, 4, 6, 6, 0, 6, 4], 7, probability=0.99)  # "ab bb"
    for score, unknown in ((-inf, False), (0.0, True)):
        options = BeamOptions(lm_path=path, lm_weight=0.1, word_score=0.0, unk_score=score)
        [said] = BeamDecoder(SMALL, options).decode(log_probs, 0.02)
        assert ("<unk>" in said.text) == unknown
        assert set(said.text.split()) <= {"<unk>", "ab", "ba", "aa"}
        times = [time for word in said.words for time in word[1:3]]
        assert times == sorted(times)


def test_a_zipped_arpa_and_words_that_cannot_be_spelled(tmp_path, caplog):
    write_arpa(tmp_path / "lm.arpa", {**UNIGRAMS, "Ab": -1.0, "être": -1.0})
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
    decoder = BeamDecoder(SMALL, BeamOptions(lm_path=str(tmp_path / "lm.arpa.gz")))
    assert "2 words cannot be spelled and are left out (Ab, être ...); 3 remain" in caplog.text
    assert decoder.decode(certain([5, 6, 4, 6, 5], 7), 0.02)[0].text == "ab ba"


def test_few_frames_and_silence(tmp_path):
    for options in (BeamOptions(lm_path=write_arpa(tmp_path / "lm.arpa")), BeamOptions(lm_unit="token")):
        decoder = BeamDecoder(SMALL, options)
        assert decoder.decode(np.zeros((0, 7)), 0.02)[0].text == ""
        [said] = decoder.decode(certain([0, 0, 0, 0], 7), 0.02)
        assert (said.text, said.words, said.confidence) == ("", (), pytest.approx(0.9))
        some = certain([5, 6, 4], 7)
        some[some < -3] = -np.inf
        assert np.isfinite(decoder.decode(some, 0.02)[0].score)


FAULTS = {
    "truncated": (lambda text: text[: len(text) // 2], "is no language model that KenLM can load"),
    "without_end": (lambda text: text.replace("\\end\\", ""), "is no language model that KenLM can load"),
    "any_text": (lambda text: "A quiet morning.\nab ba\n", "is no language model: it has no"),
    "empty": (lambda text: "", "is no language model: it has no"),
    "upper_case": (lambda text: re.sub(r"\b[ab]{2}\b", lambda word: word[0].upper(), text),
                   r"has no word that the vocabulary can spell \(AB, BA, AA"),
    "binary": (lambda text: "mmap lm http://kheafield.com/code format version 5\n\0" + text, "--lexicon_path, a word a line"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_language_model_are_one_line(fault, tmp_path):
    damage, message = FAULTS[fault]
    path = tmp_path / "lm.arpa"
    write_arpa(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        BeamDecoder(SMALL, BeamOptions(lm_path=str(path)))
    assert re.fullmatch(rf"--lm_path {path}: [^\n]*", str(error.value))


@pytest.mark.parametrize(("settings", "message"), [
    ({"lm_path": "nowhere.arpa"}, "--lm_path nowhere.arpa: .*No such file"),
    ({"lm_path": "nowhere.arpa", "lm_unit": "token"}, "--lm_path nowhere.arpa: there is no such file"),
    ({"lexicon_path": "nowhere.txt"}, "--lexicon_path nowhere.txt: .*No such file"),
    ({}, "--lm_path: the words"),
    ({"lm_unit": "token", "lexicon_path": "words.txt"}, "--lexicon_path: "),
    ({"lm_unit": "letter"}, "--lm_unit letter"),
    ({"lm_unit": "token", "beam_size": 0}, "--beam_size 0"),
])
def test_faults_of_options(settings, message):
    with pytest.raises(InputError, match=message):
        BeamDecoder(SMALL, BeamOptions(**settings))


def test_a_model_of_the_other_unit_and_words_of_phones(tmp_path):
    path, lexicon = write_arpa(tmp_path / "lm.arpa"), tmp_path / "lexicon.txt"
    with pytest.raises(InputError, match="knows none of the tokens"):
        BeamDecoder(SMALL, BeamOptions(lm_path=path, lm_unit="token"))
    lexicon.write_text("bab\n")
    with pytest.raises(InputError, match="knows none of the words"):
        BeamDecoder(SMALL, BeamOptions(lm_path=path, lexicon_path=str(lexicon)))
    with pytest.raises(InputError, match="vocabulary of phones"):
        BeamDecoder(PHONES, BeamOptions(lm_path=path))
    lexicon.write_bytes(b"b\xe4a\n")
    with pytest.raises(InputError, match="UTF-8"):
        BeamDecoder(SMALL, BeamOptions(lexicon_path=str(lexicon)))


def test_without_flashlight_only_the_decoder_is_refused(monkeypatch):
    module = sys.modules[BeamDecoder.__module__]
    for name in [name for name in sys.modules if name.startswith("flashlight")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)  # as an import that fails
    monkeypatch.delitem(sys.modules, module.__name__)
    fresh = importlib.import_module(module.__name__)
    with pytest.raises(InputError, match=r"pip install -r requirements-decoding\.txt"):
        fresh.BeamDecoder(SMALL, fresh.BeamOptions(lm_unit="token"))


def test_any_number_of_workers_finds_the_same_in_the_same_order(tmp_path):
    """The longest come first, so that those behind them are done before."""
    decoder = BeamDecoder(SMALL, BeamOptions(lm_path=write_arpa(tmp_path / "lm.arpa"), num_hypotheses=3))
    heard = [(row, random_log_probs(row, num_frames=300 // (row + 1))) for row in range(12)]
    alone, one, two = (list(candidates_of(decoder, heard, 0.02, num_workers)) for num_workers in (0, 1, 2))
    assert [row for row, _ in alone] == list(range(12))
    assert len({found[0].hypothesis.text for _, found in alone}) > 5
    assert alone == one == two


def test_what_is_heard_ahead_of_the_workers_is_bounded():
    decoder = BeamDecoder(SMALL, BeamOptions(lm_unit="token"))
    taken = []

    def heard():
        for row in range(40):
            taken.append(row)
            yield row, random_log_probs(row, num_frames=50)

    ahead = [len(taken) - done for done, _ in enumerate(candidates_of(decoder, heard(), 0.02, num_workers=2), start=1)]
    assert len(ahead) == 40
    assert max(ahead) <= 4


def test_a_worker_that_dies_is_one_line_and_leaves_none_behind():
    decoder = BeamDecoder(SMALL, BeamOptions(lm_unit="token"))

    def heard():
        yield 0, random_log_probs(0)
        os.kill(active_children()[0].pid, signal.SIGKILL)
        for row in range(1, 1000):
            yield row, random_log_probs(row, num_frames=200)

    with pytest.raises(InputError, match="--decoding_num_workers: a process of the beam search died"):
        list(candidates_of(decoder, heard(), 0.02, num_workers=2))
    assert not active_children()


def test_a_search_that_is_left_early_ends_its_workers():
    decoder = BeamDecoder(SMALL, BeamOptions(lm_unit="token"))
    searched = candidates_of(decoder, ((row, random_log_probs(row)) for row in range(100)), 0.02, num_workers=2)
    assert next(searched)[0] == 0
    assert len(active_children()) == 2
    searched.close()
    assert not active_children()
