"""The processes and devices a run is on, and how the C library treats its memory."""

import ctypes

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from transformers.utils.logging import disable_progress_bar

from wavtrain import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
ENGINES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def accelerator_for(mixed_precision: str | None) -> Accelerator:
    """As launched; refuses what would fail later, or do nothing."""
    disable_progress_bar()  # of transformers, which draws one for each file it saves
    can_accelerate = torch.accelerator.is_available() and not torch.backends.mps.is_available()  # which has no float64
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of the gradients beside DDP's
    accelerator = Accelerator(cpu=not can_accelerate, mixed_precision=mixed_precision, kwargs_handlers=[views])
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise InputError("--mixed_precision fp16 needs a GPU, on a CPU it would do nothing: give bf16 or no")
    if accelerator.distributed_type not in ENGINES:
        raise InputError(f"{accelerator.distributed_type.value} is not supported yet: launch without it, for DDP")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep large buffers for the next step, rather than return them to the kernel and fault them in again.

    benchmarks/bench_cpu_settings.py measures it. Where there is no mallopt (macOS, musl) nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
