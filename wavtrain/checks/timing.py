"""Time and memory of a few micro-batches, forward and backward, which leave no trace in the run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from wavtrain import InputError
from wavtrain.batching import MicroBatch, planned_lengths
from wavtrain.engine import is_sharded
from wavtrain.places import Place
from wavtrain.planned_run import PlannedRun
from wavtrain.speech.waveforms import SAMPLING_RATE

MAX_SECONDS = 5.0  # for micro-batches after the longest
MAX_SECONDS_OF_LONGEST = 20.0  # on a CPU, where a model too large for it would keep everyone waiting
LONG = 60 * SAMPLING_RATE
BYTES_OF_MOMENTS = 8  # that Adam keeps for each weight
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # what torch says beside its own exception

Loss = Callable[[dict[str, Tensor]], Tensor]  # a forward pass


class Timing(NamedTuple):
    """What one process needs."""

    seconds: float  # forward and backward of a second that the model computes, padding included, over the whole run
    loading: float  # decoding and masking of the same, in one loader
    memory: int | None  # None: the longest micro-batch was not tried


def timed_micro_batches(run: PlannedRun, loss_of: Loss) -> Timing | None:
    """The longest first, so that memory that does not suffice shows at once. None where it would tell nothing of the run."""
    if run.options.torch_compile or is_sharded(run.accelerator):
        return None
    costs = run.sizes.computed * (1 + run.sizes.longest / LONG)  # attention grows with a clip
    order = np.argsort(costs[: run.num_met], kind="stable")
    longest, typical = order[-1], order[[len(order) * part // 4 for part in (2, 1, 3)]]
    try:
        run.model.to(run.accelerator.device)
        with _without_trace(run), _room_for_moments(run), run.accelerator.autocast():
            probe = _probe(run, loss_of) if run.accelerator.device.type == "cpu" else (0.0, 0.0)
            if probe[0] * run.sizes.computed[longest] / SAMPLING_RATE > MAX_SECONDS_OF_LONGEST:
                return Timing(*probe, None)
            _timed(run, run.plan.clips_of(longest), loss_of)
            return _typical(run, typical, loss_of)
    except InputError:  # a damaged clip, which ends the run if it comes to it
        return None
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in NO_MEMORY):
            raise InputError(_too_large(run, longest)) from error
        raise


def _probe(run: PlannedRun, loss_of: Loss) -> tuple[float, float]:
    """The shortest clip alone, twice, as the very first pass takes longer."""
    clip = np.array([run.speech.num_samples.argmin()])
    _timed(run, clip, loss_of)
    return _per_second([_timed(run, clip, loss_of)], int(planned_lengths(run.speech.num_samples[clip], run.speech.budget)[0]))


def _typical(run: PlannedRun, batches: np.ndarray, loss_of: Loss) -> Timing:
    """While the encoder learns, and where it begins frozen, that as well."""
    times = np.zeros(2)
    for is_frozen, share in ((False, 1 - run.frozen), (True, run.frozen)):
        if share:
            _freeze(run, is_frozen)
            times += share * np.array(_of_some(run, batches, loss_of))
    memory = torch.cuda.max_memory_allocated() if run.accelerator.device.type == "cuda" else _resident(run)
    return Timing(*times.tolist(), memory)


def _freeze(run: PlannedRun, is_frozen: bool) -> None:
    if run.frozen:
        run.model.encoder_is_frozen = is_frozen


def _of_some(run: PlannedRun, batches: np.ndarray, loss_of: Loss) -> tuple[float, float]:
    began, measured = time.perf_counter(), []
    while len(measured) < len(batches) and time.perf_counter() - began < MAX_SECONDS:
        measured.append(_timed(run, run.plan.clips_of(batches[len(measured)]), loss_of))
    return _per_second(measured, int(run.sizes.computed[batches[: len(measured)]].sum()))


def _per_second(measured: list[tuple[float, float]], num_samples: int) -> tuple[float, float]:
    seconds, loading = np.sum(measured, axis=0) / (num_samples / SAMPLING_RATE)
    return float(seconds), float(loading)


def _timed(run: PlannedRun, clips: np.ndarray, loss_of: Loss) -> tuple[float, float]:
    """Seconds of a micro-batch of these clips, forward and backward, and of loading it."""
    began = time.perf_counter()
    loaded = run.speech[Place(1, 0, 0, 1, MicroBatch(0, clips, True))]
    ready = time.perf_counter()
    torch.manual_seed(loaded.seed)
    (loss_of(loaded.inputs) / max(loaded.targets, 1)).backward()
    if run.accelerator.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - ready, ready - began


@contextmanager
def _without_trace(run: PlannedRun) -> Iterator[None]:
    """Gradients, buffers (batch norms have running means) and random states are as they were. An encoder that never learns
    is frozen meanwhile."""
    buffers, device = [buffer.clone() for buffer in run.model.buffers()], run.accelerator.device
    forked = {"devices": []} if device.type == "cpu" else {"devices": [device.index or 0], "device_type": device.type}
    _freeze(run, run.frozen == 1)
    with torch.random.fork_rng(**forked):
        try:
            yield
        finally:
            _freeze(run, False)
            run.model.zero_grad(set_to_none=True)
            for buffer, before in zip(run.model.buffers(), buffers, strict=True):
                buffer.detach().copy_(before)
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _room_for_moments(run: PlannedRun) -> Iterator[None]:
    """On a GPU, what Adam will keep is there already while the longest micro-batch is tried."""
    if run.accelerator.device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    room = torch.empty(BYTES_OF_MOMENTS * run.weights(only_learning=True), dtype=torch.uint8, device="cuda")
    yield
    del room


def _resident(run: PlannedRun) -> int:
    """On a CPU freed memory stays with the process (engine.keep_freed_memory), so this is its peak."""
    return psutil.Process().memory_info().rss + BYTES_OF_MOMENTS * run.weights(only_learning=True)


def _too_large(run: PlannedRun, batch: int) -> str:
    """The flag that decides the size of a micro-batch, and what else saves memory."""
    options = run.options
    num_clips, seconds, device = len(run.plan.clips_of(batch)), run.sizes.longest[batch] / SAMPLING_RATE, run.accelerator.device
    flag, value = (("max_batch_duration_in_seconds", f"{options.max_batch_duration_in_seconds:g}")
                   if options.max_batch_duration_in_seconds else
                   ("per_device_train_batch_size", options.per_device_train_batch_size or 8))
    others = [*(() if options.gradient_checkpointing else ("--gradient_checkpointing",)),
              *(("--mixed_precision bf16",) if device.type != "cpu" else ())]
    return (f"--{flag} {value}: the longest micro-batch ({num_clips} x {seconds:.1f} s) does not fit into the memory of "
            f"{device}: lower it, and raise --gradient_accumulation_steps by as much"
            + (f"; memory is saved by {' and '.join(others)} as well" if others else ""))
