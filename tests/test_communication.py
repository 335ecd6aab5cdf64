"""The model of benchmarks/communication.py against sums done by hand."""

import argparse
import sys

import numpy as np
import pytest
from conftest import ROOT

from wavtrain.batching import BatchBudget

sys.path.insert(0, str(ROOT / "benchmarks"))
import communication

BASE = communication.RECIPES["BASE"]


def numbers(**changed):
    parser = argparse.ArgumentParser()
    communication.add_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), "achieved": 1.0, "latencies": [0, 0], **changed})


@pytest.mark.parametrize(("num_gpus", "network", "seconds"), [
    (8, 10, 2 * 7 / 8 * 9e9 / 450e9),  # one node: the network does not matter
    (16, 10, 2 * 15 / 16 * 9e9 / 10e9),
    (16, 1000, 2 * 15 / 16 * 9e9 / 450e9),  # the slower of the two decides
])
def test_the_bytes_of_an_all_reduce(num_gpus, network, seconds):
    assert communication.all_reduce_seconds(9e9, num_gpus, network, numbers()) == pytest.approx(seconds)
    halved = communication.all_reduce_seconds(9e9, num_gpus, network, numbers(achieved=0.5))
    assert halved == pytest.approx(2 * seconds)


def test_the_hops_of_an_all_reduce():
    """A byte is one bucket: 14 hops in a node of 8, and 2 x 3 between 8 nodes."""
    seconds = communication.all_reduce_seconds(1, 64, 400, numbers(latencies=[1, 100]))
    assert seconds == pytest.approx(614e-6, rel=1e-4)
    three_buckets = communication.all_reduce_seconds(3 * communication.BUCKET, 64, 1e9, numbers(latencies=[1, 100], nvlink=1e9))
    assert three_buckets == pytest.approx(3 * 614e-6, rel=1e-4)


def test_sharding_moves_as_much_as_ddp_if_weights_travel_in_half_precision():
    sharded = communication.sharded_seconds(BASE, 64, 400, numbers())
    assert sharded == pytest.approx(communication.all_reduce_seconds(4 * BASE.parameters, 64, 400, numbers()))


def test_an_update_waits_for_its_longest_micro_batch():
    """Clips of 3 and 1: the process with 3 decides, and the mean is 2. Equal ones wait for nobody."""
    assert communication.waiting(np.array([3, 1]) * 16_000, BatchBudget(1), True, 2, 1) == 1.5
    assert communication.waiting(np.full(20, 16_000), BatchBudget(1), True, 2, 1) == 1.0
    assert communication.waiting(np.array([3, 3, 1, 1]) * 16_000, BatchBudget(2), True, 2, 1) == 1.5


def test_a_row_by_hand():
    """700 s of speech on each of 8 GPUs, in 8 micro-batches: 46 GFLOP a second at 276.5 TFLOP/s; 1.48 ms for 380 MB."""
    row = communication.row(BASE, 8, numbers(networks=[400]))
    assert row[:3] == ["8", "8 x 87.5", "116.5"]
    assert row[4:7] == ["1.5", f"{2 * 7 / 8 * 380e6 / 450e9 * 1.5 * 0.35 * 790e12 / 46e9:.0f}", "100%"]
