"""Hypotheses against references -> scores.json, and the files that sclite reads.

`python -m wavtrain.recognition.scores DIR [DIR ...]` shows the scores of several runs side by side.
"""

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import read_json, write_json, write_lines
from wavtrain.recognition.error_rates import Alignment, Edits, aligned_words, character_edits, total

NUM_RESAMPLES = 1000
NUM_WORST = 20
NUM_CONFUSED = 20


class Scored(NamedTuple):
    """An utterance that can be scored: both texts are normalised by the same rules."""

    utterance_id: str
    reference: str
    hypothesis: str
    speaker: str | None
    language: str | None


def score(utterances: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """All that scores.json says. Rates are fractions; the seed is that of the intervals."""
    if not utterances:
        raise InputError("no utterance has a reference text: there is nothing to score")
    texts = [each.reference for each in utterances], [each.hypothesis for each in utterances]
    alignments, characters = aligned_words(*texts), character_edits(*texts)
    words = [alignment.edits for alignment in alignments]
    is_by_speaker = None not in (speakers := {each.speaker for each in utterances}) and len(speakers) > 1
    units = [each.speaker if is_by_speaker else number for number, each in enumerate(utterances)]
    wer_interval, cer_interval = _intervals(units, words, characters, seed)
    of_all, of_all_characters = total(words), total(characters)
    return {
        "wer": of_all.rate,
        "cer": of_all_characters.rate,
        "wer_95_percent_interval": wer_interval,
        "cer_95_percent_interval": cer_interval,
        "interval_over": "speakers" if is_by_speaker else "utterances",
        "interval_resamples": NUM_RESAMPLES,
        "sentence_error_rate": sum(edits.errors > 0 for edits in words) / len(words),
        "num_utterances": len(utterances),
        "words": {**of_all._asdict(), "reference": of_all.length},
        "characters": {**of_all_characters._asdict(), "reference": of_all_characters.length},
        "per_speaker": _table([each.speaker for each in utterances], words, characters),
        "per_language": _table([each.language for each in utterances], words, characters),
        "worst": _worst(utterances, alignments),
        "most_confused": _most_confused(alignments),
    }


def _intervals(units: Sequence[Any], words: list[Edits], characters: list[Edits], seed: int) -> list[list[float]]:
    """Where 95 % of the rates, of words and of characters, lie if the units are drawn anew, with replacement."""
    _, unit_of = np.unique(np.array(units), return_inverse=True)
    counts = np.zeros((unit_of.max() + 1, 4), dtype=np.int64)  # (units, errors and length of words and of characters)
    np.add.at(counts, unit_of, [(word.errors, word.length, character.errors, character.length)
                                for word, character in zip(words, characters, strict=True)])
    generator, size = np.random.default_rng(seed), len(counts)
    drawn = np.stack([counts[generator.integers(size, size=size)].sum(0) for _ in range(NUM_RESAMPLES)])
    rates = drawn[:, ::2] / np.maximum(drawn[:, 1::2], 1)  # (resamples, words and characters)
    return np.percentile(rates, (2.5, 97.5), axis=0).T.tolist()


def _table(groups: Sequence[str | None], words: list[Edits], characters: list[Edits]) -> dict[str, dict[str, Any]]:
    """One line for each speaker or language that is known."""
    members = defaultdict(list)
    for number, group in enumerate(groups):
        members[group].append(number)
    table = {}
    for group in sorted(members.keys() - {None}):
        of_words, of_characters = (total(edits[number] for number in members[group]) for edits in (words, characters))
        table[group] = {"utterances": len(members[group]), "words": of_words.length,
                        "wer": of_words.rate, "cer": of_characters.rate}
    return table


def _worst(utterances: Sequence[Scored], alignments: list[Alignment]) -> list[dict[str, Any]]:
    """The utterances with most wrong words; of as many, those with the higher rate first."""
    edits = [alignment.edits for alignment in alignments]
    order = sorted(range(len(edits)), key=lambda number: (-edits[number].errors, -edits[number].rate))
    return [{"utterance_id": utterances[number].utterance_id, "word_errors": edits[number].errors,
             "wer": edits[number].rate, "alignment": alignment_text(alignments[number])}
            for number in order[:NUM_WORST] if edits[number].errors]


def alignment_text(alignment: Alignment) -> str:
    """Three lines: the words of both sides under one another, and S, D or I under those that differ."""
    columns = []
    for kind, reference, hypothesis in _pairs(alignment):
        width = max(len(reference), len(hypothesis))
        mark = "" if kind == "equal" else kind[0].upper()
        columns.append([(reference or "*" * width).ljust(width), (hypothesis or "*" * width).ljust(width), mark.ljust(width)])
    lines = zip(("REF: ", "HYP: ", "eval:"), *columns, strict=True)
    return "\n".join(" ".join(line).rstrip() for line in lines)


def _pairs(alignment: Alignment) -> Iterable[tuple[str, str, str]]:
    """equal | substitute | delete | insert, the word of the reference, the word of the hypothesis ("" where there is none)."""
    for chunk in alignment.chunks:
        reference = alignment.reference[chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis = alignment.hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        missing = [""] * max(len(reference), len(hypothesis))
        for pair in zip(reference or missing, hypothesis or missing, strict=True):
            yield (chunk.type, *pair)


def _most_confused(alignments: list[Alignment]) -> dict[str, list[dict[str, Any]]]:
    """The pairs (deletions and insertions: the words) that occur most often; as frequent ones by the alphabet."""
    counts = Counter(pair for alignment in alignments for pair in _pairs(alignment))
    order = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return {
        "substitutions": [{"reference": said, "hypothesis": heard, "count": count}
                          for (kind, said, heard), count in order if kind == "substitute"][:NUM_CONFUSED],
        "deletions": [{"word": said, "count": count} for (kind, said, _), count in order if kind == "delete"][:NUM_CONFUSED],
        "insertions": [{"word": heard, "count": count} for (kind, _, heard), count in order if kind == "insert"][:NUM_CONFUSED],
    }


def write_scores(folder: str, scores: dict[str, Any]) -> None:
    """As a whole or not at all."""
    write_json(os.path.join(folder, "scores.json"), scores, indent=2)


def write_trn(folder: str, utterances: Sequence[Scored]) -> None:
    """reference.trn and hypothesis.trn: `sclite -r reference.trn trn -h hypothesis.trn trn -i spu_id -s -e utf-8`"""
    ids = [f"({_sclite_name(each.speaker or 'unknown', '-')}-{_sclite_name(each.utterance_id)})" for each in utterances]
    for name, texts in (("reference", [each.reference for each in utterances]),
                        ("hypothesis", [each.hypothesis for each in utterances])):
        lines = [" ".join([*text.split(), utterance]) for text, utterance in zip(texts, ids, strict=True)]
        write_lines(os.path.join(folder, f"{name}.trn"), lines)


def _sclite_name(name: str, more: str = "") -> str:
    """What sclite takes for a sign becomes %XX, as in addresses, so that different names stay different."""
    return re.sub(rf"[\s()%{more}]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def score_table(folders: Sequence[str]) -> str:
    """The scores.json of several folders, one a line."""
    rows = [("run", "decoder", "utterances", "WER %", "95 % interval", "CER %")]
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        scores = _read_scores(folder)
        rates = scores["wer"], *scores["wer_95_percent_interval"], scores["cer"]
        wer, low, high, cer = (f"{100 * rate:.2f}" for rate in rates)
        rows.append((name if names.count(name) == 1 else os.path.normpath(folder), str(scores.get("decoder", "")),
                     f"{scores['num_utterances']:,}", wer, f"{low} to {high}", cer))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def how_decoded(decoding: dict[str, Any]) -> str:
    """In a few words, for tables."""
    if decoding["decoder"] == "greedy":
        return "greedy"
    parts = [f"beam {decoding['beam_size']}"]
    if decoding["lm_path"]:
        parts.append(f"{decoding['lm_path']} (weight {decoding['lm_weight']:g}, word {decoding['word_score']:g})")
    if decoding["rescoring_lm"]:
        parts.append(f"{decoding['rescoring_lm']} (weight {decoding['rescoring_weight']:g})")
    return ", ".join(parts)


def _read_scores(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "scores.json")
    try:
        scores = read_json(path) if os.path.isdir(folder) else None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: decode again, or leave {folder} out") from error
    if scores is None:
        raise InputError(f"{path} is missing: name the folders in which decoding left its scores")
    if not isinstance(scores, dict) or not {"wer", "cer", "wer_95_percent_interval", "num_utterances"} <= scores.keys():
        raise InputError(f"{path} does not hold scores: decode again, or leave {folder} out")
    return scores


def main(words: Sequence[str]) -> str:
    """All words are folders."""
    if not words or any(word.startswith("-") for word in words):
        raise InputError("name folders with a scores.json: python -m wavtrain.recognition.scores DIR [DIR ...]")
    return score_table(words)


if __name__ == "__main__":
    run_as_script(lambda: print(main(sys.argv[1:])))
