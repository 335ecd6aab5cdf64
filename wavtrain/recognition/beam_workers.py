"""The beam search in processes of its own, beside the model: its results are those of this process, in the same order."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context

import numpy as np

from wavtrain import InputError
from wavtrain.recognition.beam_decoding import BeamDecoder, Candidate
from wavtrain.speech.shards import start_worker

AT_ONCE = 2  # recordings of each process that are searched or wait for it; their log-probabilities are all that memory holds

_decoders: list[BeamDecoder] = []  # of a worker


def candidates_of(
    decoder: BeamDecoder, heard: Iterable[tuple[int, np.ndarray]], seconds_per_frame: float, num_workers: int
) -> Iterator[tuple[int, list[Candidate]]]:
    """(row, candidates) for (row, log-probabilities), searched by so many processes; by this one if there are to be none.

    Processes are forked, so that there is one language model and one lexicon in memory. They use no thread of torch.
    """
    if not num_workers:
        yield from ((row, decoder.candidates(log_probs, seconds_per_frame)) for row, log_probs in heard)
        return
    others = active_children()
    pool = ProcessPoolExecutor(num_workers, get_context("fork"), _start, (decoder,))
    running: deque[tuple[int, Future[list[Candidate]]]] = deque()
    try:
        pool.submit(_is_there).result()  # all are forked now, before the model is at work
        for row, log_probs in heard:
            running.append((row, pool.submit(_search, log_probs, seconds_per_frame)))
            while running and (len(running) > AT_ONCE * num_workers or running[0][1].done()):
                yield _next_of(running)
        while running:
            yield _next_of(running)
    except BrokenProcessPool as error:
        raise InputError("--decoding_num_workers: a process of the beam search died, killed by the system (out of memory?): "
                         "give fewer of them, or a smaller --beam_size") from error
    finally:
        pool.shutdown(wait=not running, cancel_futures=True)
        for worker in active_children() if running else ():  # an error or an interrupt: do not wait for what is searched
            if worker not in others:
                worker.terminate()
                worker.join()


def _next_of(running: deque[tuple[int, Future[list[Candidate]]]]) -> tuple[int, list[Candidate]]:
    row, future = running[0]
    found = future.result()
    running.popleft()
    return row, found


def _start(decoder: BeamDecoder) -> None:
    start_worker([])
    _decoders[:] = [decoder]


def _is_there() -> None:
    pass


def _search(log_probs: np.ndarray, seconds_per_frame: float) -> list[Candidate]:
    (decoder,) = _decoders
    return decoder.candidates(log_probs, seconds_per_frame)
