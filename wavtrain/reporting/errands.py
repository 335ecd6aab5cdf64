"""Calls done one after the other in a thread: one that fails or hangs is left behind, and nobody waits for it."""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from wavtrain import arguments

STARTING, ENDING = 60.0, 60.0  # seconds that a run waits for what it reports to, at most: for its start, for its end
TRIED_AGAIN_AFTER = (10.0, 60.0, 300.0)  # seconds: a server may be restarted
MOST_WAITING = 1000  # calls; a tracker that takes none of so many hangs
farewells: list[Callable[[object], object]] = []  # get the exit code where a process ends past what sys.exit would still do

logger = logging.getLogger(__name__)


class Errands:
    """The first call of all is a start: it is not tried again. What fails later is, and then ends all errands."""

    def __init__(self, name: str, start: Callable[[], object]) -> None:
        self.name, self.is_over = name, False
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._started, self._hurries = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(start,), name=name, daemon=True)
        self._thread.start()

    def wait_for_start(self, deadline: float) -> None:
        """Until time.monotonic() says so, at most."""
        if not self._started.wait(max(deadline - time.monotonic(), 0)):
            logger.warning("%s is slow to start: the run goes on, what it gets meanwhile is kept for it", self.name)

    def send(self, call: Callable[[], object]) -> None:
        """To be done when all before it is done."""
        if self.is_over:
            return
        if self._calls.qsize() < MOST_WAITING:
            self._calls.put(call)
        else:
            self.is_over = True
            logger.warning("%s hangs and is left out from here on", self.name)

    def hurry(self, last: Callable[[], object]) -> None:
        """The last call, and no more patience with what fails."""
        self.send(last)
        self._calls.put(None)
        self._hurries.set()

    def wait_for_end(self, deadline: float) -> None:
        """Until time.monotonic() says so; what is not done then is given up, and does not keep the process from ending."""
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            if not self.is_over:
                logger.warning("%s did not end in time and is left behind; metrics.jsonl has every number", self.name)
            self.is_over = True
            arguments.leave = _end_at_once

    def _work(self, start: Callable[[], object]) -> None:
        is_good = self._done(start, ())
        self._started.set()
        while is_good and not self.is_over and (call := self._calls.get()) is not None:
            is_good = self._done(call, TRIED_AGAIN_AFTER)
        self.is_over = True

    def _done(self, call: Callable[[], object], again_after: tuple[float, ...]) -> bool:
        for seconds in (*again_after, None):
            try:
                call()
                return True
            except BaseException as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            if seconds is None or self._hurries.is_set():
                break
            logger.warning("%s failed, and is tried again in %g s: %s", self.name, seconds, what)
            self._hurries.wait(seconds)
        logger.warning("%s failed and is left out from here on: %s", self.name, what)
        return False


def _end_at_once(code: object) -> NoReturn:
    """Without the farewells of libraries, which may wait for a network that is gone."""
    for farewell in farewells:
        farewell(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
