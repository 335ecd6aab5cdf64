"""The n-gram estimate: by hand, as a distribution, and as KenLM reads it."""

import random
from itertools import product

import pytest

from wavtrain import InputError
from wavtrain.recognition.ngrams import BEGIN, END, FALLBACK, UNKNOWN, _counts, _discounts, estimate, main, write_arpa


def sentences(number: int, words: int = 40, seed: int = 0) -> list[list[str]]:
    """Words of which a few are frequent, and which like to follow certain others."""
    generator = random.Random(seed)
    found = []
    for _ in range(number):
        sentence = [int(words * generator.random() ** 3)]
        while generator.random() < 0.85:
            sentence.append((sentence[-1] * 7 + int(words * generator.random() ** 4)) % words)
        found.append([f"w{word}" for word in sentence])
    return found


def test_a_bigram_by_hand():
    """One sentence of two words: every count is 1, its discount 1/2, and below the unigrams are a, b, </s>, <unk>."""
    model = estimate([["a", "b"]], order=2)
    unigram = 0.5 / 3 + 0.5 / 4
    assert model.probabilities[("a",)] == pytest.approx(unigram)
    assert model.probabilities[(UNKNOWN,)] == pytest.approx(0.5 / 4)
    assert model.probabilities[(BEGIN, "a")] == pytest.approx(0.5 + 0.5 * unigram)
    assert model.backoffs[("a",)] == 0.5
    assert model.probability("a", [BEGIN, "a"]) == pytest.approx(0.5 * unigram)
    assert model.probability("never seen", ["b"]) == pytest.approx(0.5 * 0.5 / 4)


def test_shorter_ngrams_count_the_words_before_them():
    """"francisco" is frequent, but only after "san": as a unigram it is worth what a word is that was seen once."""
    model = estimate([["san", "francisco"]] * 9 + [["one", "end"]], order=2)
    assert model.probabilities[("francisco",)] == model.probabilities[("end",)]
    assert estimate([["san", "francisco"]] * 9 + [["one", "end"]], order=1).probabilities[("francisco",)] > 0.2


def test_discounts_of_chen_and_goodman():
    counts = [0] + [1] * 10 + [2] * 5 + [3] * 3 + [4] * 2 + [9] * 4
    assert _discounts(counts) == pytest.approx([0, 1 - 2 * 0.5 * 5 / 10, 2 - 3 * 0.5 * 3 / 5, 3 - 4 * 0.5 * 2 / 3])
    assert _discounts([1] * 10 + [3] * 3) == FALLBACK  # none occurs twice
    assert _discounts([1] * 10 + [2] * 2 + [3] * 9) == FALLBACK  # the discount of 2 would be below 0
    for of_length in _counts(sentences(600), order=3)[1:]:
        assert _discounts(of_length.values()) != FALLBACK  # so the tests below see both kinds


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [2, 600])
def test_every_context_has_a_distribution(order, number):
    model = estimate(sentences(number), order)
    words = [gram[0] for gram in model.probabilities if len(gram) == 1]
    contexts = {gram[:-1] for gram in model.probabilities} | {("w1", "w1"), (UNKNOWN,), ("w3", UNKNOWN, "w3")}
    assert len(contexts) > (2 if order == 1 else 5)
    for context in random.Random(0).sample(sorted(contexts), min(len(contexts), 400)):
        assert sum(model.probability(word, context) for word in words) == pytest.approx(1, abs=1e-9)
    assert BEGIN not in words
    assert {END, UNKNOWN} <= set(words)
    assert 0 < min(model.probabilities.values()) <= max(model.probabilities.values()) < 1


def test_a_longer_order_knows_its_text_better():
    """Held out sentences of the same kind."""
    held_out = sentences(200, seed=1)
    log10 = [sum(map(estimate(sentences(3000), order).log10, held_out)) for order in (1, 2)]
    assert log10[1] > 0.85 * log10[0]


@pytest.mark.parametrize("order", [2, 4])
def test_kenlm_reads_the_file_and_agrees(tmp_path, order):
    decoder = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from flashlight.lib.text.dictionary import Dictionary

    model = estimate([*sentences(400), ["größe", "日本"]], order)
    path = str(tmp_path / "lm.arpa")
    write_arpa(path, model)
    words = [gram[0] for gram in model.probabilities if len(gram) == 1]
    dictionary = Dictionary([*words, "never", "seen"])
    kenlm = decoder.KenLM(path, dictionary)
    for sentence in [*sentences(60, seed=2), [], ["größe", "日本"], ["w1", "never", "seen", "w1", "w2"], ["never"]]:
        state, history = kenlm.start(False), [BEGIN]
        for word in sentence:
            state, log10 = kenlm.score(state, dictionary.get_index(word))
            assert 10**log10 == pytest.approx(model.probability(word, history), rel=1e-5)
            history.append(word)
        assert 10 ** kenlm.finish(state)[1] == pytest.approx(model.probability(END, history), rel=1e-5)


def test_the_file_has_every_ngram_once(tmp_path):
    model = estimate(sentences(50), 3)
    write_arpa(str(tmp_path / "lm.arpa"), model)
    text = (tmp_path / "lm.arpa").read_text(encoding="utf-8")
    head, *sections = text.split("\n\n")
    columns = [{line.count("\t") + 1 for line in section.splitlines()[1:]} for section in sections[:3]]
    assert columns == [{3}, {3}, {2}]  # the longest have no weight of a shorter context
    written = [line.split("\t")[1] for section in sections[:3] for line in section.splitlines()[1:]]
    assert sorted(written) == sorted([BEGIN, *map(" ".join, model.probabilities)])
    assert head.splitlines() == ["\\data\\", *(f"ngram {length}={sum(word.count(' ') == length - 1 for word in written)}"
                                              for length in (1, 2, 3))]
    assert text.endswith("\n\n\\end\\\n")


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a b\n\n", encoding="utf-8")
    (tmp_path / "two.txt").write_text("\ufeffa  c\n", encoding="utf-8")
    assert main(["2", "lm.arpa", "one.txt", "two.txt"]) == "lm.arpa: 5 1-grams, 5 2-grams"
    write_arpa("same.arpa", estimate([["a", "b"], ["a", "c"]], 2))
    assert (tmp_path / "lm.arpa").read_bytes() == (tmp_path / "same.arpa").read_bytes()
    assert main(["6", "lm.arpa", "one.txt"]).endswith("1 4-grams")  # no sentence has more


def test_letters(tmp_path):
    (tmp_path / "text.txt").write_text("ab  a\n\nba\n", encoding="utf-8")
    main(["letters", "2", str(tmp_path / "letters.arpa"), str(tmp_path / "text.txt")])
    expected = estimate([["a", "b", "|", "a"], ["b", "a"]], 2)
    write_arpa(str(tmp_path / "expected.arpa"), expected)
    assert (tmp_path / "letters.arpa").read_text() == (tmp_path / "expected.arpa").read_text()


def test_faults_of_the_user(tmp_path):
    text, latin, empty = tmp_path / "tags.txt", tmp_path / "latin.txt", tmp_path / "empty.txt"
    text.write_text("so <unk> that\n")
    latin.write_bytes("größe\n".encode("latin-1"))
    empty.write_text("\n")
    out = str(tmp_path / "lm.arpa")
    for words, message in [
        (["3", out, str(text)], "<unk>, remove it: so <unk> that"), (["3", out, str(latin)], "latin.txt is not UTF-8"),
        (["3", out, str(empty)], "no sentences"), (["3", out, str(tmp_path / "none")], "none: No such file"),
        *((list(each), "ORDER OUT.arpa TEXT") for each in product(["1", "7", "x"], [out], ["a.txt"])),
        (["3", "a.txt", "b.txt"], "ORDER OUT.arpa TEXT"), (["3", out], "ORDER OUT.arpa TEXT"),
    ]:
        with pytest.raises(InputError, match=message):
            main(words)
    assert not (tmp_path / "lm.arpa").exists()
