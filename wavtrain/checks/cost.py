"""What a run will take: time and memory by what was timed, room on the disk by arithmetic."""

import os
import shutil
from contextlib import suppress

import psutil
import torch
from accelerate import Accelerator

from wavtrain.checks.findings import Checked, file_size, time_span
from wavtrain.checks.run_shape import RunSettings
from wavtrain.checks.timing import BYTES_OF_MOMENTS, Timing
from wavtrain.engine import is_sharded
from wavtrain.loading import loader_processes
from wavtrain.planned_run import PlannedRun
from wavtrain.speech.waveforms import SAMPLING_RATE

BYTES = 4  # of a weight
FULL = 0.9
MUCH_TO_LOSE = 2 * 3600.0  # seconds


def cost_checks(run: PlannedRun, timing: Timing | None) -> Checked:
    """Time and memory where they were measured, and room on the disk."""
    options = run.options
    found = disk_checks(options, run.weights(), run.weights(only_learning=True), run.total_steps)
    disk = found.facts.pop("disk")
    if timing is None:
        why = "--torch_compile" if options.torch_compile else "sharding" if is_sharded(run.accelerator) else "a damaged clip"
        found.facts["takes"] = f"{disk}; time and memory are not measured with {why}"
        return found
    met = run.sizes.computed[: run.num_met]
    rounds = max(1, len(met) / run.accelerator.num_processes / -(-len(met) // run.per_update))  # an epoch may have few
    an_update = timing.seconds * met.mean() / SAMPLING_RATE * rounds
    of_run = an_update * run.total_steps
    memory = f"{file_size(timing.memory)} of memory" if timing.memory else "memory not tried, as it takes long"
    found.facts["takes"] = f"{time_span(of_run)}, {time_span(an_update)} an update (forward and backward alone); "
    found.facts["takes"] += f"{memory}; {disk}"
    found.numbers.update(seconds_per_update=an_update, seconds=of_run)
    if timing.memory:
        found.numbers["memory_bytes"] = timing.memory
        found.add(_memory_checks(timing.memory, run.accelerator))
    workers = options.dataloader_num_workers
    workers = loader_processes(run.accelerator.device) if workers is None else workers
    if timing.loading / max(workers, 1) > timing.seconds:
        times = timing.loading / max(workers, 1) / timing.seconds
        found.warn("loading", f"loading takes {times:.1f} times as long as the model, which will wait for it: "
                   f"--dataloader_num_workers {workers} is too few")
    to_lose = min(options.saving_steps, run.total_steps) * an_update
    if to_lose > MUCH_TO_LOSE:
        found.note("saving", f"--saving_steps {options.saving_steps}: a run that is killed loses up to {time_span(to_lose)}; "
                   f"{max(1, int(3600 / an_update)):,} saves about every hour")
    if run.accelerator.device.type == "cuda" and run.accelerator.mixed_precision == "no":
        found.note("precision", "the GPU computes in float32: --mixed_precision bf16 takes less time and memory")
    if run.accelerator.device.type == "cpu" and run.accelerator.mixed_precision == "bf16":
        found.note("precision", "bf16 is slower than float32 on CPUs that lack amx_bf16 and avx512_bf16 (lscpu): compare the "
                   "time without --mixed_precision")
    return found


def _memory_checks(memory: int, accelerator: Accelerator) -> Checked:
    found, device = Checked(), accelerator.device
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    there = torch.cuda.mem_get_info()[1] if device.type == "cuda" else psutil.virtual_memory().total
    if processes * memory > FULL * there:
        found.warn("memory", f"{file_size(processes * memory)} of {file_size(there)} of memory are needed: lower "
                   "--max_batch_duration_in_seconds or --per_device_train_batch_size, and raise --gradient_accumulation_steps "
                   "by as much; --gradient_checkpointing saves memory as well")
    return found


def disk_checks(options: RunSettings, weights: int, learning: int, total_steps: int) -> Checked:
    """The checkpoints that are kept, one more while it is written, and the model; beside what is free."""
    found = Checked()
    saves = -(-total_steps // options.saving_steps)
    checkpoint = BYTES * weights + BYTES_OF_MOMENTS * learning
    needed = min(saves, options.save_total_limit + 1) * checkpoint + BYTES * weights
    folder = os.path.join(os.path.abspath(options.output_dir), "checkpoints")  # it may be a link to another disk
    needed_more = max(0, needed - _size_of(folder))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    found.facts["disk"] = f"{file_size(needed)} of disk ({file_size(free)} free)"
    found.numbers.update(disk_bytes=needed, free_bytes=free)
    if needed_more > free:
        found.warn("disk", f"checkpoints of {file_size(checkpoint)} need {file_size(needed)} in --output_dir, where "
                   f"{file_size(free)} are free: lower --save_total_limit {options.save_total_limit}, or give another place")
    return found


def _size_of(folder: str) -> int:
    """What a run that is resumed has there already."""
    total = 0
    for path in (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names):
        with suppress(OSError):  # a run at work there drops checkpoints
            total += os.path.getsize(path)
    return total
