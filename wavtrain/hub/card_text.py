"""What cards are made of: names that do no harm, tables, and a last line that tells whether a person has edited the card."""

import os
import re
from collections.abc import Iterable, Sequence

import xxhash
from huggingface_hub import CardData

from wavtrain.durable_files import write_lines

CARD = "README.md"
SIGNATURE = re.compile(r"\n<!-- written by wavtrain, ([0-9a-f]{16}): an edited card is left as it is -->\s*\Z")
LANGUAGE = re.compile(r"[a-z]{2,3}")  # what the Hub takes for a language


def printable(name: object) -> str:
    """Without what could turn lines or colours."""
    return "".join(c if c.isprintable() else " " for c in str(name))


def shown(name: object) -> str:
    """A name from outside, harmless in Markdown: as it is, or as code without what could end the code or the line."""
    text = printable(name)
    if re.fullmatch(r"\w[\w ./+-]*", text) and "__" not in text:
        return text
    return f"`{text.replace('`', chr(39)).replace('|', '/')[:200]}`"


def hours(number: float) -> str:
    """Three digits at least, whether they are seconds or years."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; cells are text that is harmless."""
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


def languages_for_the_hub(languages: Iterable[str]) -> list[str] | None:
    """Those that are codes, for the metadata of a card; a wrong one would make the Hub refuse the card."""
    codes = {language.lower().replace("_", "-").partition("-")[0] for language in languages}
    return sorted(code for code in codes if LANGUAGE.fullmatch(code)) or None


def signed(metadata: CardData, lines: Iterable[str]) -> str:
    """A whole card."""
    text = "---\n" + metadata.to_yaml() + "\n---\n\n" + "\n".join(lines).strip() + "\n"
    return f"{text}\n<!-- written by wavtrain, {_digest(text)}: an edited card is left as it is -->\n"


def was_edited(card: str) -> bool:
    """Whether it is not, to the letter, what a program like this wrote."""
    card = card.replace("\r\n", "\n")
    signature = SIGNATURE.search(card)
    return signature is None or signature[1] != _digest(card[: signature.start()])


def write_card(folder: str, card: str) -> bool:
    """README.md, unless there is one that a person has edited. Says whether it was written."""
    path = os.path.join(folder, CARD)
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            if was_edited(file.read()):
                return False
    write_lines(path, card.rstrip("\n").split("\n"))
    return True


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "backslashreplace"))
