"""WER and CER by the interface of Hugging Face's `evaluate`, built from the class: nothing is looked for on the Hub.

A module of its own because `import evaluate` imports every pipeline of transformers, which takes seconds.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import evaluate

from wavtrain.recognition.error_rates import Edits, character_edits, total, word_edits


class ErrorRate(evaluate.Metric):
    """`compute(predictions=..., references=...)`, or `add_batch` and then `compute()`: the rate and its counts."""

    rate_name: str
    edits_of: Callable[..., list[Edits]]

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # evaluate wants one, but in memory it writes nothing there
            super().__init__(keep_in_memory=True, cache_dir=folder)

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=f"{self.rate_name} of a corpus, as jiwer counts it", citation="", features=texts,
            inputs_description="predictions and references: lists of texts, one an utterance")

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        edits = total(type(self).edits_of(list(references), list(predictions)))
        return {self.rate_name: edits.rate, **edits._asdict()}


class WordErrorRate(ErrorRate):
    """`{"wer": ..., "hits": ..., "substitutions": ..., "deletions": ..., "insertions": ...}`"""

    rate_name = "wer"
    edits_of = staticmethod(word_edits)


class CharacterErrorRate(ErrorRate):
    """The same with `cer`."""

    rate_name = "cer"
    edits_of = staticmethod(character_edits)
