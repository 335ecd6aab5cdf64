"""Progress: a bar in a terminal, whole lines now and then in a log, nothing where it is not wanted."""

import io
import sys

import pytest
from tqdm import tqdm

from wavtrain import progress
from wavtrain.progress import Heard, Lines, followed, pass_over, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Moves only when it is told to."""
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_log_has_whole_lines_seldom(clock, capsys):
    bar = progress_bar(10_000, "steps", "training", done=1_000)
    for _ in range(9_000):
        clock.now += 0.125
        bar.set_postfix_str(f"loss {bar.n}", refresh=False)
        bar.update()
    bar.close()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 1,024 of 10,000 steps (10%), 00:03 so far, 18:42 left, loss 1023"
    assert lines[1] == "training: 1,264 of 10,000 steps (13%), 00:33 so far, 18:12 left, loss 1263"
    assert lines[-1] == "training: 10,000 of 10,000 steps (100%), 18:45 so far, loss 9999"
    assert len(lines) == 39  # every half minute


def test_a_week_has_few_lines(clock, capsys):
    bar = progress_bar(7 * 24 * 60, "steps", "training")
    for _ in range(7 * 24 * 60):
        clock.now += 60
        bar.update()
    bar.close()
    assert 900 < len(capsys.readouterr().err.splitlines()) < 1200  # one in ten minutes


def test_values_are_told_once(clock, capsys):
    bar = Lines(None, "clips", "preparing", 0, passes=False)
    bar.set_postfix_str("3 h")
    for _ in range(2):
        clock.now += 40
        bar.update()
    with bar:
        pass
    assert capsys.readouterr().err.splitlines() == ["preparing: 1 clips, 00:40 so far, 3 h", "preparing: 2 clips, 01:20 so far"]


def test_what_was_done_before_is_not_in_the_time_left(clock, capsys):
    bar = progress_bar(400, "clips", "preparing")
    pass_over(bar, 200)
    clock.now += 50
    bar.update(100)
    assert capsys.readouterr().err == "preparing: 300 of 400 clips (75%), 00:50 so far, 00:50 left\n"


def test_a_passing_bar_says_something_only_where_it_is_long(clock, capsys):
    def work(seconds: float):
        for number in range(4):
            clock.now += seconds
            yield number

    assert list(followed(work(1), 4, "batches", "validation", disable=False)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""
    assert list(followed(work(20), 4, "batches", "validation", disable=False)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == (
        "validation: 2 of 4 batches (50%), 00:40 so far, 00:40 left\nvalidation: 4 of 4 batches (100%), 01:20 so far\n")
    assert list(followed(work(20), 4, "batches", "validation", disable=True)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "steps", "training", done=4) as bar:
        assert isinstance(bar, tqdm)
        pass_over(bar, 2)
        bar.set_postfix_str("loss 3", refresh=False)
        bar.update(3)
        bar.refresh()
        assert (bar.n, bar.initial, bar.format_dict["rate"]) == (9, 6, None)
        assert "9/10" in sys.stderr.getvalue()
        assert "loss 3" in sys.stderr.getvalue()


def test_hours_and_their_rate(clock):
    heard = Heard()
    clock.now += 10
    assert heard.add(1800) == "0.50 h, 180 audio-s/s"
    clock.now += 10
    assert heard.add(5400) == "2.00 h, 360 audio-s/s"
