"""Transcripts as they are learned: one spelling, one case, words with single spaces between them.

What is done by default changes no word: the Unicode form, spaces, and characters that nobody sees. Right-to-left text stays
in its logical order; combining marks stay, and so do the joiners that are letters of Persian and Indic scripts.
"""

import re
from dataclasses import dataclass
from functools import cache
from unicodedata import category, normalize

from wavtrain import InputError

CHOICES = {"text_case": ("keep", "lower", "upper"), "unicode_form": ("NFC", "NFD", "NFKC", "none"),
           "digits": ("keep", "reject"), "unit": ("letters", "phones")}
# Controls that are no whitespace, soft hyphen, zero-width space, bidirectional controls, byte order mark, half surrogates.
INVISIBLE = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
                       "\ufeff\ufff9-\ufffb\ud800-\udfff]+")
DOTTED_CAPITAL_I = re.compile("\u0130|I\u0307")
# Quotation marks, and the joiners and variation selectors that emoji leave behind; inside a word they are its letters.
AROUND_WORDS = re.compile("(?<!\\S)['\u200c\u200d\ufe0e\ufe0f]+|['\u200c\u200d\ufe0e\ufe0f]+(?!\\S)|''+")


@dataclass(frozen=True)
class TextRules:
    """Fields are flags. For phones, tokens with spaces between them, punctuation is a phone that consists of nothing else."""

    text_case: str = "keep"
    remove_punctuation: bool = False
    chars_to_ignore: tuple[str, ...] = ()
    unicode_form: str = "NFC"
    digits: str = "keep"
    unit: str = "letters"

    def __post_init__(self) -> None:
        for flag, choices in CHOICES.items():
            if getattr(self, flag) not in choices:
                raise InputError(f"--{flag} {getattr(self, flag)}: there is {', '.join(choices)}")
        object.__setattr__(self, "chars_to_ignore", tuple(self.chars_to_ignore))  # flags and JSON give lists


def normalised(text: str, rules: TextRules) -> str:
    """The text by the rules, which change nothing when they are applied again."""
    text = _in_case(_in_form(INVISIBLE.sub("", text), rules.unicode_form), rules.text_case)
    if rules.unit == "letters":
        text = text.replace("|", " ")  # stands between words in the vocabularies of CTC models
    text = " ".join(text.split())
    if rules.chars_to_ignore:
        text = _ignored(rules.chars_to_ignore, rules.unicode_form).sub("", text)
    if rules.remove_punctuation:
        text = _without_punctuation(text, rules.unit)
    return " ".join(_in_form(text, rules.unicode_form).split())  # a letter and its accent may only now be neighbours


def has_digits(text: str) -> bool:
    """Whether there are digits of any script, raised and encircled ones too; they do not say how they are read."""
    return any(map(str.isdigit, text))


def _in_form(text: str, form: str) -> str:
    return text if form == "none" else normalize(form, text)


def _in_case(text: str, case: str) -> str:
    """By Unicode, whatever the locale. Lower-case of the Turkish dotted capital is a plain i: no stray dot becomes a letter."""
    if case == "lower":
        return DOTTED_CAPITAL_I.sub("i", text).lower()
    return text.upper() if case == "upper" else text


@cache
def _ignored(chars: tuple[str, ...], form: str) -> re.Pattern[str]:
    """Each character given, also of several in one string; an accented letter is one, however the text spells it."""
    each = {_in_form(char, form) for chars_together in chars for char in normalize("NFC", chars_together)}
    return re.compile("|".join(map(re.escape, sorted(each, key=len, reverse=True))))


class _Spaces(dict[int, str | int]):
    """For str.translate: punctuation and symbols become spaces, so that words are not glued together."""

    def __missing__(self, code: int) -> str | int:
        self[code] = " " if category(chr(code))[0] in "PS" else code
        return self[code]


SPACES = _Spaces({ord("'"): "'", ord("\u2019"): "'"})


def _without_punctuation(text: str, unit: str) -> str:
    """LibriSpeech's way: "don't" is one word, "twenty-one" are two; symbols such as % and emoji go as well."""
    if unit == "phones":
        return " ".join(phone for phone in text.split() if any(category(char)[0] not in "PS" for char in phone))
    return AROUND_WORDS.sub(" ", text.translate(SPACES))
