"""The beam search in processes of its own, beside the model: its results are those of this process, in the same order."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import numpy as np

from wavtrain import InputError
from wavtrain.recognition.beam_decoding import BeamDecoder, Candidate
from wavtrain.workers import WorkerDiedError, Workers

AT_ONCE = 2  # recordings of each process that are searched or wait for it; their log-probabilities are all that memory holds


def candidates_of(
    decoder: BeamDecoder, heard: Iterable[tuple[int, np.ndarray]], seconds_per_frame: float, num_workers: int
) -> Iterator[tuple[int, list[Candidate]]]:
    """(row, candidates) for (row, log-probabilities), searched by so many processes; by this one if there are to be none.

    Processes are forked, so that there is one language model and one lexicon in memory. They use no thread of torch.
    """
    def search(log_probs: np.ndarray) -> list[Candidate]:
        return decoder.candidates(log_probs, seconds_per_frame)

    if not num_workers:
        yield from ((row, search(log_probs)) for row, log_probs in heard)
        return
    running: deque[tuple[int, Future[list[Candidate]]]] = deque()
    with Workers(search, num_workers) as workers:  # forked now, before the model is at work
        for row, log_probs in heard:
            running.append((row, workers.submit(log_probs)))
            while running and (len(running) > AT_ONCE * num_workers or running[0][1].done()):
                yield _next_of(running)
        while running:
            yield _next_of(running)


def _next_of(running: deque[tuple[int, Future[list[Candidate]]]]) -> tuple[int, list[Candidate]]:
    row, future = running.popleft()
    try:
        return row, future.result()
    except WorkerDiedError as error:
        raise InputError("--decoding_num_workers: a process of the beam search died, killed by the system (out of memory?) "
                         "or by a damaged --lm_path: give fewer of them, a smaller --beam_size, or build it again") from error
