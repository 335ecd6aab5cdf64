"""Transcripts: every rule, several scripts, and that rules applied twice change nothing more."""

import csv
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain import InputError
from wavtrain.recognition.transcripts import CHOICES, TextRules, has_digits, normalised

SPEECH = TextRules(text_case="lower", remove_punctuation=True)
ODD = "aßİIıΣςéẞŉǰΐﬁ½²٣-'’|.,\u0301\u0307\u200b\u200c\u200d\u00ad\ufeff\u202e\ufe0f\0\n\u3000\u00a0\x1c\ud800कि์𝔄👩$´¨…｜"


@pytest.mark.parametrize(("text", "rules", "expected"), [
    (" A\u00a0b\n\tc\u3000d\x1c", TextRules(), "A b c d"),
    ("\ufeffzer\u00ado\u200b wi\u2060dth\0 \u202bעברית\u202c\ud83d", TextRules(), "zero width עברית"),
    ("می\u200cخواهم क्\u200dष", TextRules(), "می\u200cخواهم क्\u200dष"),
    ("a|b ｜", TextRules(), "a b ｜"),
    ("a|b ｜ ﬁn", TextRules(unicode_form="NFKC"), "a b fin"),
    ("u\u0308ber", TextRules(), "über"),
    ("über", TextRules(unicode_form="NFD"), "u\u0308ber"),
    ("u\u0308\u200bber e\u200b\u0301", TextRules(unicode_form="none"), "u\u0308ber e\u0301"),
    ("e\u200b\u0301", TextRules(), "é"),
    ("Straße ẞ", TextRules(text_case="lower"), "straße ß"),
    ("Straße", TextRules(text_case="upper"), "STRASSE"),
    ("İstanbul I\u0307zmir", TextRules(text_case="lower"), "istanbul izmir"),
    ("I\u0307zmir", TextRules(text_case="lower", unicode_form="NFD"), "izmir"),
    ("ΟΔΟΣ", TextRules(text_case="lower"), "οδος"),
    ("ΐ", TextRules(text_case="upper"), "Ϊ\u0301"),
    ("Don’t 'quote' the dogs' rock'n'roll ''twas''", SPEECH, "don't quote the dogs rock'n'roll twas"),
    ("Team-Wettkampf…50%; (ja)—nein_!", SPEECH, "team wettkampf 50 ja nein"),
    ("hm 👩\u200d👩\u200d👧 ❤\ufe0f5€", SPEECH, "hm 5"),
    ("نعم، لا؟ हाँ। かな・カナ", SPEECH, "نعم لا हाँ かな カナ"),
    ("می\u200cخواهم", SPEECH, "می\u200cخواهم"),
    ("qu'e\u0301tait d'É", TextRules(remove_punctuation=True, unicode_form="NFD"), "qu'e\u0301tait d'E\u0301"),
    ("a,b. cÉd e", TextRules(chars_to_ignore=(",.", "E\u0301")), "ab cd e"),
    ("cE\u0301d E", TextRules(chars_to_ignore=("É",), unicode_form="NFD"), "cd E"),
    ("[a]-^b\\", TextRules(chars_to_ignore=("]", "^", "-", "\\", "[")), "ab"),
    ("我\n们", TextRules(chars_to_ignore=(" ",)), "我们"),
    (" h  ə | l oʊ1 , ˈa:", TextRules(unit="phones"), "h ə | l oʊ1 , ˈa:"),
    ("h ə | l oʊ1 , ˈa:", TextRules(unit="phones", remove_punctuation=True), "h ə l oʊ1 ˈa:"),
    ("HH AH0 L", TextRules(unit="phones", text_case="lower", chars_to_ignore=("012",)), "hh ah l"),
    ("", SPEECH, ""), ("?! '", SPEECH, "")])
def test_rules(text, rules, expected):
    assert normalised(text, rules) == expected


@given(st.text(st.one_of(st.sampled_from(ODD), st.characters()), max_size=30), st.data())
@settings(max_examples=300, deadline=None)
def test_twice_is_once(text, data):
    choices = {flag: data.draw(st.sampled_from(values)) for flag, values in CHOICES.items()}
    rules = TextRules(**choices, remove_punctuation=data.draw(st.booleans()))
    once = normalised(text, rules)
    assert normalised(once, rules) == once
    assert once == " ".join(once.split())
    assert rules.unit == "phones" or "|" not in once
    if rules.unicode_form != "none":
        assert unicodedata.is_normalized(rules.unicode_form, once)
    once.encode()  # can be written


@given(st.text(st.characters(categories=("L", "M", "N")), max_size=30))
@settings(deadline=None)
def test_letters_marks_and_numbers_stay(text):
    expected = " ".join(unicodedata.normalize("NFC", text).split())
    assert normalised(text, TextRules()) == expected
    joined = [c for c in expected if c not in "\ufe0e\ufe0f"]
    assert [c for c in normalised(text, TextRules(remove_punctuation=True)) if c not in "\ufe0e\ufe0f"] == joined


def test_digits_of_any_script():
    assert [has_digits(text) for text in ("a 1", "٣", "५", "m²", "①", "二", "Ⅷ", "one")] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("field", CHOICES)
def test_unknown_choices_name_their_flag(field):
    with pytest.raises(InputError, match=f"^--{field} middle: there is {CHOICES[field][0]}, "):
        TextRules(**{field: "middle"})


def texts_of(corpus):
    lines = [line for path in corpus.rglob("metadata.csv") for line in path.read_text("utf-8").splitlines(keepends=True)]
    texts = [row["text"] for row in csv.DictReader(lines)]
    assert len(texts) > 30
    return texts


def test_real_transcripts_keep_their_words(shared_data):
    """LibriSpeech's are already in its own form; LJSpeech's lose punctuation and nothing that is a letter."""
    for text in texts_of(shared_data / "librispeech_en"):
        assert normalised(text, TextRules(remove_punctuation=True)) == text
    for text in texts_of(shared_data / "ljspeech_en"):
        spoken = normalised(text, SPEECH)
        assert set(spoken) <= set("abcdefghijklmnopqrstuvwxyz' 0123456789")
        assert [c for c in spoken if c.isalnum()] == [c for c in text.lower() if c.isalnum()]
