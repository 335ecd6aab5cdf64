"""Processes that answer calls beside this one: forked, so that they have what it has, and gone when it is or no longer asks."""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import connection, get_context, parent_process
from queue import SimpleQueue
from typing import Any


class WorkerDiedError(Exception):
    """The process that had the call was killed, by the system or by what it ran."""


class Workers:
    """So many processes that each answer one call at a time; leaving the `with` block ends them, whatever they are at.

    ProcessPoolExecutor does not let go of calls half sent on Python 3.10, and says of no call that it was the one that killed.
    """

    def __init__(self, answer: Callable[[Any], Any], num_workers: int):
        context = get_context("fork")
        self.idle: SimpleQueue[connection.Connection] = SimpleQueue()
        self.processes = []
        for _ in range(num_workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(answer, there), daemon=True)
            process.start()
            there.close()  # before the next fork, so that its end is the worker's alone and closes with it
            self.processes.append(process)
            self.idle.put(here)
        self.threads = ThreadPoolExecutor(num_workers)

    def submit(self, question: Any) -> Future[Any]:
        return self.threads.submit(self._ask, question)

    def _ask(self, question: Any) -> Any:
        worker = self.idle.get()
        try:
            worker.send(question)
            answer, trace = worker.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError from error
        finally:
            self.idle.put(worker)
        if trace:
            raise answer from RuntimeError(f"in a worker process:\n{trace}")
        return answer

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        self.threads.shutdown(cancel_futures=True)


def _serve(answer: Callable[[Any], Any], caller: connection.Connection) -> None:
    """Answer until ended: with the parent, or by it. Ctrl-C is the parent's, and decoders' chatter stays off the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        question = caller.recv()
        try:
            reply = answer(question), ""
        except Exception as error:  # raised again where the call was made
            reply = error, traceback.format_exc()
        caller.send(reply)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)
