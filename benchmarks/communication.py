"""A model of what many GPUs lose by exchanging gradients and by waiting for each other; docs/scaling.md has what it leaves out.

    python benchmarks/bench_scaling.py --model_of_communication
"""

import argparse
import math
from typing import Any, NamedTuple

import numpy as np
from side_by_side import SAMPLING_RATE, durations

BUCKET = 25 * 2**20  # bytes that DDP exchanges at once
BACKWARD = 2 / 3  # of the time of a micro-batch


class Recipe(NamedTuple):
    """A published pretraining, and how fast a GPU is hoped to do it."""

    parameters: float
    num_layers: int
    hours_per_update: float
    micro_batch: float  # seconds, of one GPU
    crop: float
    gflop: float  # per audio-second, forward and backward
    mfu: float  # an aim; not measured


RECIPES = {"BASE": Recipe(95.0e6, 12, 64 * 87.5 / 3600, 87.5, 15.625, 46, 0.35),
           "LARGE": Recipe(317.4e6, 24, 128 * 75 / 3600, 75, 20, 123, 0.45)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All the numbers that the tables stand on."""
    group = parser.add_argument_group("model of communication")
    group.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512], metavar="N")
    group.add_argument("--gpus_per_node", type=int, default=8, metavar="N", help="%(default)s")
    group.add_argument("--hours_per_update", type=float, metavar="H", help="of speech (the recipe's: 1.56 BASE, 2.67 LARGE)")
    group.add_argument("--micro_batch", type=float, metavar="S", help="seconds at most, of one GPU (87.5 BASE, 75 LARGE)")
    group.add_argument("--peak_tflops", type=float, default=790, metavar="P", help="of a GPU, bf16 (%(default)s)")
    group.add_argument("--mfu", type=float, metavar="M", help="share of the peak that is used (0.35 BASE, 0.45 LARGE)")
    group.add_argument("--nvlink", type=float, default=450, metavar="GB/S", help="of a GPU, per direction (%(default)s)")
    group.add_argument("--networks", type=float, nargs="+", default=[400, 12.5], metavar="GB/S",
                       help="of a node, per direction (400 = 8 x 400 Gb/s and 12.5 = 1 x 100 Gb/s)")
    group.add_argument("--achieved", type=float, default=0.8, metavar="SHARE", help="of these speeds (%(default)s)")
    group.add_argument("--latencies", type=float, nargs=2, default=[3.4, 10], metavar="US",
                       help="microseconds of a hop within a node and between nodes (3.4 10)")
    group.add_argument("--gradient_bytes", type=int, default=4, metavar="N", help="of a parameter (%(default)s: fp32)")


def all_reduce_seconds(num_bytes: float, num_gpus: int, network: float, args: argparse.Namespace) -> float:
    """In buckets, through a ring of all GPUs whose slowest link decides; the hops are a ring's in a node, a tree's between."""
    num_nodes = math.ceil(num_gpus / args.gpus_per_node)
    within, between = (each * 1e-6 for each in args.latencies)
    hops = 2 * (min(num_gpus, args.gpus_per_node) - 1) * within + 2 * math.log2(num_nodes) * between
    moved = 2 * (num_gpus - 1) / num_gpus * num_bytes
    return moved / _speed(num_nodes, network, args) + math.ceil(num_bytes / BUCKET) * hops


def sharded_seconds(recipe: Recipe, num_gpus: int, network: float, args: argparse.Namespace) -> float:
    """Of FSDP2 in a micro-batch, a layer at a time, by rings: bf16 weights gathered twice, gradients summed and shared."""
    num_nodes = math.ceil(num_gpus / args.gpus_per_node)
    within, between = (each * 1e-6 for each in args.latencies)
    hops = (num_gpus - num_nodes) * within + (num_nodes - 1) * between
    moved = (2 * 2 + args.gradient_bytes) * recipe.parameters * (num_gpus - 1) / num_gpus
    return moved / _speed(num_nodes, network, args) + 3 * (recipe.num_layers + 1) * hops


def _speed(num_nodes: int, network: float, args: argparse.Namespace) -> float:
    """Bytes per second."""
    return (min(args.nvlink, network) if num_nodes > 1 else args.nvlink) * args.achieved * 1e9


def waiting(num_samples: np.ndarray, budget: Any, is_cropped: bool, num_processes: int, accumulation: int) -> float:
    """The samples of the process that has most of them, by the mean of all, over the updates of a planned epoch."""
    from wavtrain.batching import plan_epoch, planned_lengths

    plan = plan_epoch(num_samples, 0, 0, budget)
    lengths = planned_lengths(num_samples, budget)[plan.order]
    works = np.diff(plan.starts) * (np.minimum if is_cropped else np.maximum).reduceat(lengths, plan.starts[:-1])
    whole = len(works) - len(works) % (num_processes * accumulation)
    of_processes = works[:whole].reshape(-1, accumulation, num_processes).sum(axis=1)
    return float(of_processes.max(axis=1).sum() / of_processes.mean(axis=1).sum())


def waiting_on_librispeech(recipe: Recipe, micro_batch: float, num_gpus: int, accumulation: int) -> float:
    """With as many clips of such lengths as LibriSpeech-960 has."""
    from wavtrain.loading import budget_of

    num_samples = np.round(durations("librispeech", 281_241) * SAMPLING_RATE).astype(np.int64)
    return waiting(num_samples, budget_of(None, micro_batch, recipe.crop), True, num_gpus, accumulation)


def row(recipe: Recipe, num_gpus: int, args: argparse.Namespace) -> list[str]:
    """What an update is made of on so many GPUs, in milliseconds, and the share of it that is computing."""
    seconds = recipe.hours_per_update * 3600 / num_gpus
    accumulation = math.ceil(seconds / recipe.micro_batch - 1e-9)
    milliseconds_per_second = recipe.gflop / (recipe.mfu * args.peak_tflops)
    compute = seconds * milliseconds_per_second
    one = compute / accumulation  # only the last micro-batch's backward pass hides the exchange
    wait = waiting_on_librispeech(recipe, seconds / accumulation, num_gpus, accumulation)
    cells = [f"{num_gpus}", f"{accumulation} x {seconds / accumulation:.1f}", f"{compute:.1f}", f"{wait - 1:.0%}"]
    num_bytes, kept = args.gradient_bytes * recipe.parameters, []
    for network in args.networks:
        needed = 1e3 * all_reduce_seconds(num_bytes, num_gpus, network, args)
        shown = max(needed - BACKWARD * one, needed / math.ceil(num_bytes / BUCKET))  # the last bucket hides behind nothing
        cells += [f"{needed:.1f}", f"{needed / BACKWARD / milliseconds_per_second:.0f}", f"{compute / (compute + shown):.0%}"]
        kept.append(compute / (wait * compute + shown))
    needed = 1e3 * sharded_seconds(recipe, num_gpus, args.networks[0], args)
    shown = accumulation * max(needed - one, needed / (3 * (recipe.num_layers + 1)))
    return [*cells, f"{accumulation * needed:.0f}", f"{compute / (compute + shown):.0%}", f"{kept[0]:.0%}"]


def print_tables(args: argparse.Namespace) -> None:
    """One for each recipe, in Markdown."""
    given = {name: value for name in ("hours_per_update", "micro_batch", "mfu") if (value := getattr(args, name)) is not None}
    header = ["GPUs", "s per GPU", "compute ms", "waiting"]
    for network in args.networks:
        header += [f"DDP {network:g}: ms", "from s", "kept"]
    header += [f"FSDP2 {args.networks[0]:g}: ms", "kept", f"DDP {args.networks[0]:g}, all: kept"]
    for name, recipe in RECIPES.items():
        recipe = recipe._replace(**given)
        megabytes = args.gradient_bytes * recipe.parameters / 1e6
        print(f"{name}: {recipe.parameters / 1e6:.0f} M parameters, {megabytes:.0f} MB of gradients, "
              f"{recipe.hours_per_update:.2f} h per update, MFU {recipe.mfu:.0%} of {args.peak_tflops:g} TFLOP/s\n")
        rows = [header, ["---"] * len(header), *(row(recipe, num_gpus, args) for num_gpus in args.gpus)]
        print("\n".join(f"| {' | '.join(each)} |" for each in rows) + "\n")
