"""Which clips are left out, why, and what is said of the others; by counting frames, without a model."""

import datasets
import numpy as np
import pytest

from wavtrain import InputError
from wavtrain.recognition.transcribed_clips import REMEDIES, labels_needed, survey, texts_of
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import build_vocabulary
from wavtrain.speech.prepared_directory import features

LETTERS = build_vocabulary(["ab c"], "letters")
PHONES = build_vocabulary(["ah b"], "phones")
RULES = TextRules(remove_punctuation=True, digits="reject")
MANY = 99


def clips_of(*texts):
    rows = len(texts)
    columns = {name: [None] * rows for name in ("audio", "speaker", "language", "corpus")}
    columns |= {"utterance_id": [f"clip{row}" for row in range(rows)], "num_samples": [16_000] * rows, "text": list(texts)}
    return datasets.Dataset.from_dict(columns, features=features())


def frames(*counts):
    return np.array(counts, dtype=np.int64)


def reasons(found):
    return {each["source"]: (each["reason"], each["detail"]) for each in found.rejected}


@pytest.mark.parametrize(("text", "needed"), [("abc", 3), ("aab", 4), ("aaa", 5), ("a a", 3), ("", 0), ("xyz", 5), ("axb", 3)])
def test_labels_need_a_frame_each_and_repeats_a_blank_between(text, needed):
    """What is not in the vocabulary is one token, so neighbours of it repeat."""
    assert labels_needed(LETTERS.encode(text)) == needed


@pytest.mark.parametrize(("text", "unit", "needed"), [("abc", "letters", 3), ("aab", "letters", 4), ("a a", "letters", 3),
                                                      ("ah ah b", "phones", 4)])
def test_labels_may_fill_the_frames_but_not_more(text, unit, needed):
    vocabulary, rules = LETTERS if unit == "letters" else PHONES, TextRules(unit=unit)
    clips = clips_of(text, text)
    found = survey(clips, rules, vocabulary, frames(needed, needed - 1), np.zeros(2, dtype=bool))
    assert found.usable.tolist() == [0]
    assert reasons(found) == {"clip1": ("more_labels_than_frames", f"{needed} > {needed - 1}")}


def test_every_clip_left_out_has_its_reason():
    clips = clips_of("a", None, "?!", "a 1", "b", "abc", "c", "\u0661 a", "a b")
    found = survey(clips, RULES, LETTERS, frames(9, 9, 9, 9, 0, 2, 9, 9, 3), np.arange(9) == 6)
    assert found.usable.tolist() == [0, 8]
    assert found.usable.dtype == np.int64
    assert reasons(found) == {
        "clip1": ("no_text", "None"), "clip2": ("empty_transcript", "'?!'"), "clip3": ("digits", "'a 1'"),
        "clip4": ("shorter_than_a_frame", "'b'"), "clip5": ("more_labels_than_frames", "3 > 2"),
        "clip6": ("longer_than_a_batch", "9 frames"), "clip7": ("digits", "'\u0661 a'")}
    assert {reason for reason, _ in reasons(found).values()} == set(REMEDIES)
    lines = found.summary("train")
    assert f"note: 2 clips of train are left out: digits ({REMEDIES['digits']})" in lines
    assert len(lines) == 6


def test_validation_is_stricter_with_nothing_but_what_cannot_be_scored():
    """Digits, long labels and long clips count as errors there, if they are not recognised."""
    found = survey(clips_of("a 1", "abcabc", None, "...", "b"), RULES, LETTERS, frames(9, 1, 9, 9, 0))
    assert found.usable.tolist() == [0, 1]
    assert {source: reason for source, (reason, _) in reasons(found).items()} == {
        "clip2": "no_text", "clip3": "empty_transcript", "clip4": "shorter_than_a_frame"}


def test_unknown_letters_are_counted_where_they_are_used():
    found = survey(clips_of("axx", "a\u0301y", "z" * 9, None), TextRules(unicode_form="NFD"), LETTERS, frames(9, 9, 1, 9),
                   np.zeros(4, dtype=bool))
    assert found.unknown == {"x": 2, "\u0301": 1, "y": 1}
    assert found.summary("dev")[-1] == ("note: 4 letters of dev are not in the vocabulary and cannot be recognised: "
                                        "'x' 2, '\u0301' 1, 'y' 1")


def test_a_script_that_is_all_unknown_is_not_listed_to_the_end():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 25)))
    (line,) = survey(clips_of(text), TextRules(), LETTERS, frames(MANY)).summary("validation")
    assert line.startswith("note: 25 letters")
    assert line.endswith(" and 5 more")
    assert line.count("' 1") == 20


def test_nothing_usable_is_refused_in_one_line():
    for is_too_long, part in ((np.zeros(2, dtype=bool), "training"), (None, "validation")):
        with pytest.raises(InputError) as caught:
            survey(clips_of(None, "!"), RULES, LETTERS, frames(9, 9), is_too_long)
        assert f"--dataset_name: none of the 2 {part} clips can be used: clip0 is the first: no_text" in str(caught.value)
        assert "--text_column_name" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_texts_for_a_vocabulary_are_those_that_are_allowed():
    texts = list(texts_of(clips_of("A, b!", None, "a 1", "...", " c  a "), TextRules(
        text_case="lower", remove_punctuation=True, digits="reject")))
    assert texts == ["a b", "c a"]


def test_more_rows_than_are_read_at_once(monkeypatch):
    """In pieces, in their order."""
    monkeypatch.setattr("wavtrain.recognition.transcribed_clips.ROWS_AT_ONCE", 3)
    clips = clips_of(*"abcabca").select([6, 5, 4, 3, 2, 1, 0])
    assert list(texts_of(clips.flatten_indices(), TextRules())) == list("acbacba")
    found = survey(clips.flatten_indices(), TextRules(), LETTERS, np.arange(7), np.zeros(7, dtype=bool))
    assert found.usable.tolist() == [1, 2, 3, 4, 5, 6]
