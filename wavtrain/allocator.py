"""The C library's habit of giving memory back, which makes training on a CPU slow."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let glibc keep large buffers for the next step, rather than return them to the kernel and fault them in again.

    benchmarks/bench_allocator.py measures it. Where there is no mallopt (macOS, musl) nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
