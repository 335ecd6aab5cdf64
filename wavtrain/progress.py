"""A progress bar with rate and time left: a bar in a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
DELAY_IN_SECONDS = 0.5  # what is said before the work begins comes before its bar


def progress_bar(total: int | None, unit: str, title: str, done: int = 0, disable: bool = False) -> tqdm:
    """A tqdm on standard error; where that is no terminal it prints whole lines, seldom. `done` is not in the rate."""
    is_terminal = sys.stderr.isatty()
    seldom = SECONDS_BETWEEN_LINES
    return tqdm(total=total, initial=done, disable=disable, unit=f" {unit}", desc=title,
                file=sys.stderr if is_terminal else _Lines(), delay=DELAY_IN_SECONDS if is_terminal else 0,
                mininterval=0.2 if is_terminal else seldom, maxinterval=seldom, dynamic_ncols=is_terminal, smoothing=0.1)


class _Lines:
    """Standard error with tqdm's carriage returns made line ends."""

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
