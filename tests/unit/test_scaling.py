"""The scaling model: limits that are known, and the numbers of a ring counted by hand."""

import math
from dataclasses import replace

import pytest

from cutaway.training.optim import is_matrix, muon_cost
from cutaway.training.scaling import (
    ADAMW_BYTES,
    ETHERNET,
    NVLINK,
    Cluster,
    Link,
    Work,
    efficiency,
    pass_round,
    step_time,
    work_of,
)
from model_helpers import random_model, tiny_config

WORK = Work(flops=6e15, parameters=25_000_000, layers=8, micro_batches=2, muon_values=0, muon_flops=0)
CLUSTER = Cluster(flops=1e14, memory_bandwidth=1e12, inside=NVLINK, between=ETHERNET, per_node=8, overlap=0.0)


def simulated_ring(size: float, world: int, link: Link) -> float:
    """Every rank hands its part to the next, world - 1 times, one message at a time."""
    held = [{rank} for rank in range(world)]
    seconds = 0.0
    passed = list(range(world))
    while any(len(parts) < world for parts in held):
        passed = [passed[rank - 1] for rank in range(world)]
        for rank, part in enumerate(passed):
            held[rank].add(part)
        seconds += size / world / link.bandwidth + link.latency
    return seconds


@pytest.mark.parametrize("world", [2, 3, 8, 64])
def test_a_ring_takes_what_passing_parts_round_takes(world: int) -> None:
    assert pass_round(1e8, world, ETHERNET) == pytest.approx(simulated_ring(1e8, world, ETHERNET))


def test_one_device_sends_nothing() -> None:
    for sharded in (False, True):
        alone = step_time(WORK, CLUSTER, 1, sharded=sharded)
        assert (alone.network, alone.exposed) == (0, 0)
        assert alone.total == pytest.approx(60 + ADAMW_BYTES * 25e6 / 1e12)
        assert efficiency(alone, alone, 1) == 1


def test_ddp_sends_the_gradients_twice_and_fsdp_the_weights_too() -> None:
    fast = replace(CLUSTER, inside=Link(1e9, 0.0))
    ddp, fsdp = (step_time(WORK, fast, 2, sharded=sharded) for sharded in (False, True))
    assert ddp.network == pytest.approx(2 * 0.5 * 4 * 25e6 / 1e9)
    # Two micro-batches, two gathers each, and one reduce-scatter.
    assert fsdp.network == pytest.approx(5 * 0.5 * 4 * 25e6 / 1e9)
    assert fsdp.optimizer == pytest.approx(ddp.optimizer / 2)


def test_overlap_hides_what_a_backward_pass_covers() -> None:
    slow = replace(CLUSTER, inside=Link(1e7, 0.0))
    bare = step_time(WORK, slow, 2)
    hidden = step_time(WORK, replace(slow, overlap=0.5), 2)
    assert bare.exposed == bare.network
    assert hidden.exposed == pytest.approx(bare.network - 0.5 * 30 / 2 * 2 / 3)
    assert step_time(WORK, replace(CLUSTER, overlap=1.0), 2).exposed == 0


def test_a_second_node_brings_the_slower_link() -> None:
    assert CLUSTER.ring(8) == NVLINK
    assert CLUSTER.ring(9) == ETHERNET
    times = [
        efficiency(step_time(WORK, CLUSTER, 1), step_time(WORK, CLUSTER, world), world) for world in (2, 8, 16, 64)
    ]
    assert times == sorted(times, reverse=True)
    assert all(0 < share < 1 for share in times)


def test_ranks_share_the_iterations_of_muon() -> None:
    muon = replace(WORK, muon_values=20_000_000, muon_flops=1e13)
    one, four = (step_time(muon, CLUSTER, world) for world in (1, 4))
    memory = (28 * 5e6 + 20 * 20e6) / 1e12
    assert one.optimizer == pytest.approx(memory + 0.1)
    assert four.optimizer == pytest.approx(memory + 0.025)
    assert four.exposed - step_time(WORK, CLUSTER, 4).exposed == pytest.approx(pass_round(4e7, 4, NVLINK))


def test_the_work_of_a_model_is_counted_as_elsewhere() -> None:
    model = random_model(tiny_config())
    work = work_of(model, batch_tokens=1024, micro_batch_tokens=128, row_length=64, world=4, muon=True)
    assert work.flops == 1024 * model.flops_per_token(64)
    assert work.micro_batches == 2
    assert work.muon_flops == muon_cost(model)
    assert work.muon_values == sum(w.numel() for name, w in model.named_parameters() if is_matrix(name, w))
    assert math.isclose(work.parameters, model.num_parameters())
