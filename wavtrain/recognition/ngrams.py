"""A small n-gram language model from texts: interpolated modified Kneser-Ney, as an ARPA file.

`python -m wavtrain.recognition.ngrams [letters] ORDER OUT.arpa TEXT [TEXT ...]`, where each line of a text is a sentence,
normalised like the transcripts: run_ctc_finetuning.py leaves them in training_text.txt. With `letters` the units are letters
and the word delimiter, for `--lm_unit token`, which spells words that no text has. All n-grams are held in memory (a million
words: 0.8 GB): for large corpora KenLM's `lmplz` is the tool.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import write_lines

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts of counts of 0, 1, 2, 3 and more, where too few n-grams were seen; those of lmplz
ORDERS = range(2, 7)  # what KenLM reads, as it is usually built
IMPOSSIBLE = -99  # log10 of the probability of <s>, which is never predicted

Gram = tuple[str, ...]


class NgramModel(NamedTuple):
    """Probabilities of the last word of an n-gram after its others, and the weight of shorter contexts after each context."""

    order: int
    probabilities: dict[Gram, float]
    backoffs: dict[Gram, float]

    def probability(self, word: str, history: Sequence[str]) -> float:
        """Of the word after the words before it, which begin with <s>."""
        word = word if (word,) in self.probabilities else UNKNOWN
        gram = (*history[max(len(history) - self.order + 1, 0) :], word)
        weight = 1.0
        while gram not in self.probabilities:
            weight *= self.backoffs.get(gram[:-1], 1.0)
            gram = gram[1:]
        return weight * self.probabilities[gram]

    def log10(self, sentence: Sequence[str]) -> float:
        """Of the whole sentence, its end included."""
        words = (BEGIN, *sentence, END)
        return sum(math.log10(self.probability(words[place], words[:place])) for place in range(1, len(words)))


def estimate(sentences: Iterable[Sequence[str]], order: int) -> NgramModel:
    """Every n-gram of the sentences is kept. The probabilities of all words, </s> and <unk> after a context sum to 1."""
    counts = _counts(sentences, order)
    probabilities: dict[Gram, float] = {(): 1 / len(counts[0])}  # below the unigrams every word is as likely
    backoffs: dict[Gram, float] = {}
    for of_length in counts:
        discounts = _discounts(of_length.values())
        totals, saved = defaultdict(int), defaultdict(float)
        for gram, count in of_length.items():
            totals[gram[:-1]] += count
            saved[gram[:-1]] += discounts[min(count, 3)]
        for context, count in totals.items():
            backoffs[context] = saved[context] / count
        for gram, count in of_length.items():
            own = (count - discounts[min(count, 3)]) / totals[gram[:-1]]
            probabilities[gram] = own + backoffs[gram[:-1]] * probabilities[gram[1:]]
    del probabilities[()], backoffs[()]
    return NgramModel(len(counts), probabilities, backoffs)


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """By length. The longest n-grams count as often as they occur, as do those that begin a sentence; shorter ones count
    once for each word that was seen before them: that is what makes it Kneser-Ney."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        if not {BEGIN, END, UNKNOWN}.isdisjoint(sentence):
            raise InputError(f"a text has the word {BEGIN}, {END} or {UNKNOWN}, remove it: {' '.join(sentence)}")
        words = (BEGIN, *sentence, END)
        for length, of_length in enumerate(counts, 1):
            of_length.update(words[place : place + length] for place in range(len(words) - length + 1))
    if not counts[0]:
        raise InputError("the texts for a language model have no sentences")
    for shorter, longer in pairwise(counts):
        at_begin = {gram: count for gram, count in shorter.items() if gram[0] == BEGIN}
        shorter.clear()
        shorter.update(gram[1:] for gram in longer)
        shorter.update(at_begin)
    del counts[0][(BEGIN,)]
    counts[0][(UNKNOWN,)] = 0
    return [of_length for of_length in counts if of_length]  # no sentence may be as long as the order


def _discounts(counts: Iterable[int]) -> Sequence[float]:
    """Of Chen and Goodman, for counts of 0, 1, 2, 3 and more, from how many n-grams occur once, twice, ..."""
    times = Counter(count for count in counts if count <= 4)
    if not all(times[count] for count in (1, 2, 3)):
        return FALLBACK
    share = times[1] / (times[1] + 2 * times[2])
    found = [0.0, *(count - (count + 1) * share * times[count + 1] / times[count] for count in (1, 2, 3))]
    is_sound = all(0 < found[count] <= count for count in (1, 2, 3))
    return found if is_sound else FALLBACK


def write_arpa(path: str, model: NgramModel) -> None:
    """The text format that KenLM, SRILM and flashlight read; log10 of everything."""
    write_lines(path, _arpa(model))


def _arpa(model: NgramModel) -> Iterator[str]:
    grams: list[list[Gram]] = [[] for _ in range(model.order)]
    grams[0].append((BEGIN,))
    for gram in model.probabilities:
        grams[len(gram) - 1].append(gram)
    yield "\\data\\"
    yield from (f"ngram {length}={len(of_length)}" for length, of_length in enumerate(grams, 1))
    for length, of_length in enumerate(grams, 1):
        yield f"\n\\{length}-grams:"
        for gram in sorted(of_length):
            own = IMPOSSIBLE if gram == (BEGIN,) else math.log10(model.probabilities[gram])
            backoff = f"\t{math.log10(model.backoffs.get(gram, 1.0)):.7g}" if length < model.order else ""
            yield f"{own:.7g}\t{' '.join(gram)}{backoff}"
    yield "\n\\end\\"


def read_sentences(paths: Sequence[str]) -> Iterator[list[str]]:
    """The words of each line that has any."""
    for path in paths:
        try:
            with open(path, encoding="utf-8-sig") as file:
                yield from (words for line in file if (words := line.split()))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}: name files of text with a sentence a line") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8: convert it, for example with iconv -t UTF-8") from error


def letters_of(words: Sequence[str]) -> list[str]:
    """As a CTC model writes them, with its delimiter between words."""
    return list("|".join(words))


def main(words: Sequence[str]) -> str:
    """Perhaps `letters`; the order, the file to write, the files to read."""
    is_of_letters = words[:1] == ["letters"]
    words = words[is_of_letters:]
    if len(words) < 3 or words[0] not in map(str, ORDERS) or not words[1].endswith(".arpa"):
        raise InputError("say python -m wavtrain.recognition.ngrams [letters] ORDER OUT.arpa TEXT [TEXT ...] with an ORDER of "
                         "2 to 6")
    order, path, *texts = words
    sentences = read_sentences(texts)
    model = estimate(map(letters_of, sentences) if is_of_letters else sentences, int(order))
    write_arpa(path, model)
    sizes = Counter(map(len, model.probabilities))
    return f"{path}: " + ", ".join(f"{sizes[length]:,} {length}-grams" for length in sorted(sizes))


if __name__ == "__main__":
    run_as_script(lambda: print(main(sys.argv[1:])))
