"""Processes that answer calls: whatever happens to a call or a process, the caller hears of it and none stays behind."""

import os
import signal
import time
from multiprocessing import active_children

import pytest

from wavtrain.workers import WorkerDiedError, Workers


def test_answers_are_those_of_their_questions_and_know_what_the_parent_knew():
    known = {"factor": 3}
    with Workers(lambda number: number * known["factor"], 3) as workers:
        assert len(active_children()) == 3
        futures = [workers.submit(number) for number in range(50)]
        assert [future.result() for future in futures] == [number * 3 for number in range(50)]
    assert not active_children()


def test_an_error_is_raised_where_the_call_was_made_with_its_own_traceback():
    with Workers(lambda number: 1 // number, 1) as workers:
        with pytest.raises(ZeroDivisionError) as error:
            workers.submit(0).result()
        assert "1 // number" in str(error.value.__cause__)
        assert workers.submit(1).result() == 1


def test_a_dead_worker_is_told_to_its_caller_alone():
    def answer(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with Workers(answer, 2) as workers:
        assert [workers.submit(number).result() for number in (1, 2)] == [1, 2]
        with pytest.raises(WorkerDiedError):
            workers.submit(3).result()
    assert not active_children()


@pytest.mark.parametrize("num_bytes", [10, 3_000_000], ids=["small", "larger than a pipe"])
def test_leaving_early_waits_for_nothing(num_bytes):
    start = time.monotonic()
    with Workers(lambda data: time.sleep(0.1 if len(data) < 5 else 60), 2) as workers:
        first = workers.submit(b"one")
        for _ in range(6):
            workers.submit(b"x" * num_bytes)
        first.result()
    assert not active_children()
    assert time.monotonic() - start < 20
