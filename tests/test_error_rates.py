"""Edit counts: those of jiwer, whatever the texts; they add; evaluate's interface says the same."""

import multiprocessing
import tempfile
from typing import Any

import evaluate
import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain.recognition.error_rates import AT_ONCE, Edits, aligned_words, character_edits, total, word_edits
from wavtrain.recognition.evaluate_metrics import CharacterErrorRate, WordErrorRate

TEXTS = st.text(alphabet="ab é日\t ", max_size=12)
CORPORA = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(CORPORA)
def test_counts_and_rates_are_those_of_jiwer_over_the_corpus(corpus):
    references, hypotheses = map(list, zip(*corpus, strict=True))
    for edits_of, process, rate in ((word_edits, jiwer.process_words, jiwer.wer),
                                    (character_edits, jiwer.process_characters, jiwer.cer)):
        edits, theirs = total(edits_of(references, hypotheses)), process(references, hypotheses)
        assert edits == (theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)
        assert edits.rate == rate(references, hypotheses)
        assert edits.length == sum(map(len, theirs.references))


@settings(max_examples=100, deadline=None)
@given(CORPORA, st.integers(0, 12), st.integers(0, 12))
def test_counts_add_over_any_partition(corpus, one, other):
    references, hypotheses = map(list, zip(*corpus, strict=True))
    first, second = sorted((one, other))
    partition = slice(first), slice(first, second), slice(second, None)
    for edits_of in (word_edits, character_edits):
        whole = edits_of(references, hypotheses)
        parts = [edits_of(references[part], hypotheses[part]) for part in partition]
        assert [edits for part in parts for edits in part] == whole
        assert total(total(part) for part in parts) == total(whole)


def test_more_utterances_than_go_to_jiwer_at_once():
    references = [f"w{number} w{number % 7}" for number in range(2 * AT_ONCE + 5)]
    hypotheses = [f"w{number} w{number % 5}" for number in range(2 * AT_ONCE + 5)]
    edits = word_edits(references, hypotheses)
    assert len(edits) == len(references)
    assert total(edits).rate == jiwer.wer(references, hypotheses)


def test_of_an_empty_reference_every_insertion_is_an_error():
    assert [edits.rate for edits in word_edits(["", "", "a b"], ["", "a b", ""])] == [0.0, 2.0, 1.0]
    assert word_edits([], []) == character_edits([], []) == aligned_words([], []) == []
    assert total([]) == Edits(0, 0, 0, 0)


def test_every_hypothesis_has_its_reference():
    with pytest.raises(AssertionError, match="1 references for 2 hypotheses"):
        word_edits(["a"], ["a", "b"])


@pytest.mark.parametrize(("metric", "rate"), [(WordErrorRate, jiwer.wer), (CharacterErrorRate, jiwer.cer)])
def test_the_interface_of_evaluate(metric, rate):
    references, hypotheses = ["the cat sat", "on a mat", "", "today"], ["a cat sat", "on mat", "oh", ""]
    metric = metric()
    at_once = metric.compute(predictions=hypotheses, references=references)
    for part in (slice(0, 3), slice(3, 4)):
        metric.add_batch(predictions=hypotheses[part], references=references[part])
    assert metric.compute() == at_once
    assert at_once[metric.rate_name] == rate(references, hypotheses)
    edits_of = {"wer": word_edits, "cer": character_edits}[metric.rate_name]
    assert {**at_once, metric.rate_name: None} == {metric.rate_name: None, **total(edits_of(references, hypotheses))._asdict()}


def _add_wait_compute(barrier: Any, answers: Any, spoken: int) -> None:
    metric = WordErrorRate()
    metric.add_batch(predictions=["a " * spoken], references=["a b c d"])
    barrier.wait()  # both have added, none has computed
    answers.put((spoken, metric.compute()["deletions"]))


def test_two_processes_compute_side_by_side_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2, timeout=60), context.Queue()
    processes = [context.Process(target=_add_wait_compute, args=(barrier, answers, spoken)) for spoken in (1, 3)]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in processes) == [(1, 3), (3, 1)]
    for process in processes:
        process.join()
    assert list(tmp_path.iterdir()) == []
