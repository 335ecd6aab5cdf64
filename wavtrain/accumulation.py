"""One exact update from many micro-batches on many processes."""

import math
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from wavtrain import InputError
from wavtrain.zero import clipped_by_zero, is_zero, synchronised_by_zero


def synchronised_if(is_last: bool, accelerator: Accelerator, model: nn.Module) -> AbstractContextManager[None]:
    """Gradients travel between processes once an update, with its last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        return nullcontext()
    if is_zero(model):
        return synchronised_by_zero(model, is_last)
    return nullcontext() if is_last else accelerator.no_sync(model)


def clipped(accelerator: Accelerator, model: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the gradient, where asked for; the norm that it had, of all processes' parts together."""
    if is_zero(model):
        return clipped_by_zero(model, max_norm)
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Agreement:
    """Numbers that all processes must know before the first forward pass of an update: its targets, and whether to stop.

    The targets stay on the device. Whether to stop is read an update late, when it has long arrived, so nobody waits.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._stop = torch.zeros(1, dtype=torch.int64)
        self._arrived: torch.cuda.Event | None = None

    def total(self, num_targets: int, stop: bool) -> tuple[Tensor, bool]:
        """The targets of all processes, at least 1; whether any process asked to stop (by its last call, if there are many)."""
        numbers = torch.tensor([num_targets, int(stop)], pin_memory=self.accelerator.device.type == "cuda")
        numbers = numbers.to(self.accelerator.device, non_blocking=True)  # made there, the copy would wait for the device
        if self.accelerator.num_processes == 1:
            return numbers[0].clamp(min=1), stop
        numbers = self.accelerator.reduce(numbers, "sum")
        if self._arrived is not None:
            self._arrived.synchronize()
        agreed = bool(self._stop)
        self._stop = torch.empty(1, dtype=torch.int64, pin_memory=numbers.is_cuda)
        self._stop.copy_(numbers[1:], non_blocking=True)
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return numbers[0].clamp(min=1), agreed


class FiniteUpdates:
    """Optimizer steps with a gradient that is not finite are skipped, by the fused optimizer itself, on the device."""

    def __init__(self, optimizer: AcceleratedOptimizer, skipped: int, most_in_a_row: int, device: torch.device) -> None:
        self.optimizer, self.most_in_a_row = optimizer, most_in_a_row
        self._skipped = torch.tensor(float(skipped), device=device)
        self._in_a_row = torch.zeros((), device=device)

    def step(self, gradient_norm: Tensor, learning_rate: float) -> None:
        """Update the weights, unless the gradient norm is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        is_bad = (~torch.isfinite(gradient_norm)).float()
        self._skipped += is_bad
        self._in_a_row = (self._in_a_row + 1) * is_bad
        self.optimizer.optimizer.found_inf = is_bad
        self.optimizer.step()
        self.optimizer.zero_grad()

    def skipped(self) -> int:
        """How many updates were skipped; waits for the device. Too many in a row end the run."""
        if int(self._in_a_row) >= self.most_in_a_row:
            raise InputError(f"the last {int(self._in_a_row)} updates all had a gradient that is not finite, so the weights "
                             "stand still: they or the data have gone wrong. Go on from a checkpoint before that with a lower "
                             "--learning_rate, with --max_grad_norm, or with bf16 in place of fp16")
        return int(self._skipped)


class Interruption:
    """SIGTERM and Ctrl-C become a wish that the loop reads; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print("interrupted: the update is finished, then a checkpoint is saved", file=sys.stderr)

    @property
    def requested(self) -> bool:
        """Whether to stop after this update."""
        return self.signal is not None
