"""scores.json against jiwer and against hand-made examples; sclite's files; the table people read."""

import json
import re
import subprocess
import sys
from urllib.parse import unquote

import jiwer
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain import InputError
from wavtrain.recognition.error_rates import aligned_words
from wavtrain.recognition.scores import (
    NUM_WORST,
    Scored,
    alignment_text,
    main,
    score,
    score_table,
    write_scores,
    write_trn,
)

WORDS = [f"word{number}" for number in range(50)]


def corpus(number: int, speakers: int | None = None, seed: int = 0) -> list[Scored]:
    """Some words of some utterances are heard wrongly, more so of some speakers."""
    generator, found = np.random.default_rng(seed), []
    for place in range(number):
        words = generator.choice(WORDS, size=generator.integers(1, 12)).tolist()
        speaker = f"s{place % speakers}" if speakers else None
        wrong = 0.1 if speakers is None else 0.02 + 0.1 * (place % speakers)
        heard = [str(generator.choice(WORDS)) if generator.random() < wrong else word for word in words]
        found.append(Scored(f"u{place}", " ".join(words), " ".join(heard), speaker, "de" if place % 3 else None))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text(alphabet="ab é", max_size=10)] * 2), min_size=1, max_size=8))
def test_rates_and_counts_are_those_of_jiwer(texts):
    scores = score([Scored(str(number), *pair, None, None) for number, pair in enumerate(texts)])
    references, hypotheses = map(list, zip(*texts, strict=True))
    assert scores["wer"] == jiwer.wer(references, hypotheses)
    assert scores["cer"] == jiwer.cer(references, hypotheses)
    for name, theirs in (("words", jiwer.process_words(references, hypotheses)),
                         ("characters", jiwer.process_characters(references, hypotheses))):
        assert scores[name] == {**{kind: getattr(theirs, kind) for kind in scores[name] if kind != "reference"},
                                "reference": theirs.hits + theirs.substitutions + theirs.deletions}
    assert scores["sentence_error_rate"] == np.mean([one.split() != other.split() for one, other in texts])
    json.dumps(scores, allow_nan=False)


def test_tables_hold_who_is_known():
    utterances = [Scored("1", "a b", "a c", "anna", "de"), Scored("2", "a b c", "a b c", "anna", "en"),
                  Scored("3", "x", "", "bert", "de"), Scored("4", "y", "y", None, None)]
    scores = score(utterances)
    assert scores["num_utterances"] == 4
    assert scores["per_speaker"] == {"anna": {"utterances": 2, "words": 5, "wer": 1 / 5, "cer": 1 / 8},
                                     "bert": {"utterances": 1, "words": 1, "wer": 1.0, "cer": 1.0}}
    assert scores["per_language"] == {"de": {"utterances": 2, "words": 3, "wer": 2 / 3, "cer": 2 / 4},
                                      "en": {"utterances": 1, "words": 3, "wer": 0.0, "cer": 0.0}}
    assert scores["interval_over"] == "utterances"  # of one the speaker is not known


@pytest.mark.parametrize(("speakers", "over"), [(None, "utterances"), (1, "utterances"), (6, "speakers")])
def test_intervals_repeat_and_hold_the_rate(speakers, over):
    utterances = corpus(300, speakers)
    scores = score(utterances, seed=3)
    assert scores["interval_over"] == over
    for rate in ("wer", "cer"):
        low, high = scores[f"{rate}_95_percent_interval"]
        assert 0 < low < scores[rate] < high < 1
        assert score(utterances, seed=3)[f"{rate}_95_percent_interval"] == [low, high]
        assert score(utterances, seed=4)[f"{rate}_95_percent_interval"] != [low, high]


def test_intervals_are_as_wide_as_theory_says():
    """Utterances of ten words, each wrong with 1/10: the rate of 400 of them deviates by sqrt(0.1 0.9 / 4000)."""
    generator = np.random.default_rng(0)
    utterances = [Scored(str(number), "a " * 10, " ".join(generator.choice(["a", "b"], size=10, p=[0.9, 0.1])), None, None)
                  for number in range(400)]
    low, high = score(utterances)["wer_95_percent_interval"]
    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 4000) ** 0.5, rel=0.15)


def test_speakers_make_the_interval_wider_where_they_differ():
    utterances = corpus(300, 6)
    of_speakers, of_utterances = (np.diff(score(scored)["wer_95_percent_interval"])[0]
                                  for scored in (utterances, [each._replace(speaker=None) for each in utterances]))
    assert of_speakers > 2 * of_utterances


def test_an_alignment_as_text():
    alignment, = aligned_words(["the cat sat on the mat here"], ["the bat sat on mat here today"])
    assert alignment_text(alignment).splitlines() == ["REF:  the cat sat on the mat here *****",
                                                      "HYP:  the bat sat on *** mat here today",
                                                      "eval:     S          D            I"]
    empty, = aligned_words([""], [""])
    assert alignment_text(empty) == "REF:\nHYP:\neval:"


def test_the_worst_and_the_most_confused():
    utterances = [Scored("right", "a b", "a b", None, None), Scored("long", "a b c d", "a x c y", None, None),
                  Scored("short", "b d", "x y", None, None), Scored("silent", "a a b", "", None, None),
                  Scored("noise", "", "uh", None, None)]
    scores = score(utterances)
    assert [(each["utterance_id"], each["word_errors"], each["wer"]) for each in scores["worst"]] == [
        ("silent", 3, 1.0), ("short", 2, 1.0), ("long", 2, 0.5), ("noise", 1, 1.0)]
    assert scores["worst"][2]["alignment"] == "REF:  a b c d\nHYP:  a x c y\neval:   S   S"
    assert scores["most_confused"] == {
        "substitutions": [{"reference": "b", "hypothesis": "x", "count": 2}, {"reference": "d", "hypothesis": "y", "count": 2}],
        "deletions": [{"word": "a", "count": 2}, {"word": "b", "count": 1}], "insertions": [{"word": "uh", "count": 1}]}
    assert len(score(corpus(300, 6))["worst"]) == NUM_WORST


def test_nothing_to_score_is_said():
    with pytest.raises(InputError, match="no utterance has a reference"):
        score([])


def test_trn_round_trip(tmp_path):
    """Ids as sclite reads them: what stands in the last brackets, the speaker up to the first dash."""
    names = ["a b", "a_b", "a(b)", "a-b", "a%20b", "ä\u3000b", "unknown"]
    utterances = [Scored(f"{name}-1 ({name})", f"(well) {name}  yes", "" if number else "x", name, None)
                  for number, name in enumerate(names)]
    write_trn(str(tmp_path), [*utterances, Scored("last", "no\nspeaker", "one", None, None)])
    read = {}
    for side in ("reference", "hypothesis"):
        lines = (tmp_path / f"{side}.trn").read_text(encoding="utf-8").splitlines()
        found = [re.fullmatch(r"(?:(.*) )?\(([^\s()-]+)-([^\s()]+)\)", line).groups(default="") for line in lines]
        read[side] = [(text, unquote(speaker), unquote(utterance)) for text, speaker, utterance in found]
    assert read["reference"] == [*((" ".join(each.reference.split()), each.speaker, each.utterance_id) for each in utterances),
                                 ("no speaker", "unknown", "last")]
    assert read["hypothesis"] == [*((each.hypothesis, each.speaker, each.utterance_id) for each in utterances),
                                  ("one", "unknown", "last")]


def test_the_table_of_several_runs(tmp_path):
    scores = score(corpus(300, 6))
    for folder, decoder in (("greedy/test", None), ("beam/test", "beam 50, 4-gram"), ("other", None)):
        write_scores(str(tmp_path / folder), {**scores, **({"decoder": decoder} if decoder else {})})
    assert json.loads((tmp_path / "other/scores.json").read_text(encoding="utf-8")) == scores
    table = score_table([str(tmp_path / name) for name in ("greedy/test", "beam/test", "other")]).splitlines()
    low, high = (f"{100 * bound:.2f}" for bound in scores["wer_95_percent_interval"])
    numbers = f"300 {100 * scores['wer']:.2f} {low} to {high} {100 * scores['cer']:.2f}"
    assert [" ".join(line.split()) for line in table] == [
        "run decoder utterances WER % 95 % interval CER %", f"{tmp_path}/greedy/test {numbers}",
        f"{tmp_path}/beam/test beam 50, 4-gram {numbers}", f"other {numbers}"]
    assert len({line.index("300") for line in table[1:]}) == 1
    command = [sys.executable, "-m", "wavtrain.recognition.scores"]
    ran = subprocess.run([*command, tmp_path / "other"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == score_table([str(tmp_path / "other")]) + "\n"
    ran = subprocess.run([*command, tmp_path / "none"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("content", "message"), [
    (None, "is missing: name the folders"), ('{"wer": 0.1', "is not JSON: decode again"),
    ('{"wer": 0.1}', "does not hold scores"), ("[]", "does not hold scores")])
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(InputError, match=message):
        main([str(tmp_path)])
    for word, message in ((str(tmp_path / "scores.json"), "is missing: name the folders"),
                          ("--help", "name folders with a scores")):
        with pytest.raises(InputError, match=message):
            main([word])
