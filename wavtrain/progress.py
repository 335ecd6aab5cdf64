"""How far long work is: a bar in a terminal, whole lines now and then in a log. Neither asks the device for anything."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

FIRST_LINE, BETWEEN_LINES, LONGEST_SILENCE = 3.0, 30.0, 600.0  # seconds; a long run has a line for each 2 % of its time so far
SHARE_BETWEEN_LINES = 0.02
DELAY_IN_SECONDS = 0.5  # what is said before the work begins comes before its bar


def progress_bar(total: int | None, unit: str, title: str, done: int = 0, disable: bool = False,
                 passes: bool = False) -> "tqdm[Any] | Lines":
    """On standard error, with the rate so far and the time left, in which what was `done` before does not count.

    One that `passes` leaves nothing behind.
    """
    if disable or sys.stderr.isatty():
        return tqdm(total=total, initial=done, disable=disable, unit=f" {unit}", desc=title, file=sys.stderr, leave=not passes,
                    delay=DELAY_IN_SECONDS, mininterval=0.2, dynamic_ncols=True, smoothing=0)
    return Lines(total, unit, title, done, passes)


def followed(work: Iterable[Any], total: int, unit: str, title: str, disable: bool) -> Iterator[Any]:
    """The same items, with a bar below that of the work they are part of."""
    with progress_bar(total, unit, title, disable=disable, passes=True) as bar:
        for each in work:
            yield each
            bar.update()


def pass_over(bar: "tqdm[Any] | Lines", count: int) -> None:
    """So many are done already, and took no time."""
    bar.initial += count
    bar.update(count)


class Heard:
    """Hours of speech done with, and how fast, in words."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.monotonic()

    def add(self, seconds: float) -> str:
        """With so much more."""
        self.seconds += seconds
        return f"{self.seconds / 3600:.2f} h, {self.seconds / max(time.monotonic() - self._since, 1e-9):,.0f} audio-s/s"


class Lines:
    """What is used here of a tqdm, for a log file."""

    def __init__(self, total: int | None, unit: str, title: str, done: int, passes: bool) -> None:
        self.total, self.n, self.initial, self.postfix = total, done, done, ""
        self._unit, self._title, self._passes, self._since = unit, title, passes, time.monotonic()
        self._last, self._said = self._since - (0 if passes else BETWEEN_LINES - FIRST_LINE), (-1, "")

    def update(self, count: int = 1) -> None:
        """Done with so many more; a line if it is time for one."""
        self.n += count
        now = time.monotonic()
        if now - self._last >= min(max(BETWEEN_LINES, SHARE_BETWEEN_LINES * (now - self._since)), LONGEST_SILENCE):
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """The end of the next line."""
        self.postfix = text

    def close(self) -> None:
        """The last line. A second call does nothing."""
        if not self._passes and self._said[0] != self.n:
            self._say()

    def _say(self) -> None:
        postfix = self.postfix if self.postfix != self._said[1] else ""  # values are told once
        self._last, self._said = time.monotonic(), (self.n, self.postfix)
        print(self._line(self._last - self._since) + (f", {postfix}" if postfix else ""), file=sys.stderr, flush=True)

    def _line(self, elapsed: float) -> str:
        line, done = f"{self._title}: {self.n:,}", self.n - self.initial
        line += f" of {self.total:,} {self._unit} ({self.n / self.total:.0%})" if self.total else f" {self._unit}"
        line += f", {tqdm.format_interval(elapsed)} so far"
        if self.total and done > 0 and self.n < self.total:
            line += f", {tqdm.format_interval(elapsed * (self.total - self.n) / done)} left"
        return line

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
