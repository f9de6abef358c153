"""The scaling model: limits that are known, and the numbers of a ring counted by hand."""

import math
from dataclasses import replace

import pytest

from cutaway.training.optim import is_matrix, muon_cost, newton_schulz_flops
from cutaway.training.scaling import (
    ADAMW_BYTES,
    ETHERNET,
    NVLINK,
    Device,
    Exchange,
    Exchanges,
    Link,
    Work,
    efficiency,
    ring,
    step_time,
    work_of,
)
from model_helpers import random_model, tiny_config

WORK = Work(flops=6e15, parameters=25_000_000, layers=8, micro_batches=2, matrices={})
DEVICE = Device(flops=1e14, memory_bandwidth=1e12, overlap=0.0)


def exchanges(world: int, inside: Link = NVLINK) -> Exchanges:
    return ring(world, inside, ETHERNET, per_node=8)


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
    found = ring(world, ETHERNET, ETHERNET, per_node=8)
    assert found.gather.seconds(1e8) == pytest.approx(simulated_ring(1e8, world, ETHERNET))
    assert found.gather == found.scatter
    # Summed into parts, which are then gathered.
    assert found.reduce.seconds(1e8) == pytest.approx(2 * simulated_ring(1e8, world, ETHERNET))


def test_one_device_sends_nothing() -> None:
    for sharded in (False, True):
        alone = step_time(WORK, DEVICE, exchanges(1), 1, sharded=sharded)
        assert (alone.network, alone.exposed) == (0, 0)
        assert alone.total == pytest.approx(60 + ADAMW_BYTES * 25e6 / 1e12)
        assert efficiency(alone, alone, 1) == 1


def test_ddp_sends_the_gradients_twice_and_fsdp_the_weights_too() -> None:
    fast = exchanges(2, Link(1e9, 0.0))
    ddp, fsdp = (step_time(WORK, DEVICE, fast, 2, sharded=sharded) for sharded in (False, True))
    assert ddp.network == pytest.approx(2 * 0.5 * 4 * 25e6 / 1e9)
    # Two micro-batches, in each two gathers and a reduce-scatter.
    assert fsdp.network == pytest.approx(6 * 0.5 * 4 * 25e6 / 1e9)
    assert fsdp.optimizer == pytest.approx(ddp.optimizer / 2)


def test_measured_exchanges_count_by_the_call_and_by_the_byte() -> None:
    found = Exchanges(Exchange(1.0, 1e-8), Exchange(10.0, 1e-7), Exchange(100.0, 1e-6), hooks=1000.0)
    ddp, fsdp = (step_time(WORK, DEVICE, found, 2, sharded=sharded) for sharded in (False, True))
    # 100 MB of gradients are four buckets.
    assert ddp.network == pytest.approx(4 * 100 + 100)
    # Eight layers and the rest, in each of two micro-batches.
    assert fsdp.network == pytest.approx(2 * (9 * (2 * 1 + 10 + 1000) + 2 * 1 + 10))


def test_overlap_hides_what_a_backward_pass_covers() -> None:
    slow = exchanges(2, Link(1e7, 0.0))
    bare = step_time(WORK, DEVICE, slow, 2)
    hidden = step_time(WORK, replace(DEVICE, overlap=0.5), slow, 2)
    assert bare.exposed == bare.network
    assert hidden.exposed == pytest.approx(bare.network - 0.5 * 30 / 2 * 2 / 3)
    assert step_time(WORK, replace(DEVICE, overlap=1.0), exchanges(2), 2).exposed == 0


def test_a_second_node_brings_the_slower_link() -> None:
    assert ring(8, NVLINK, ETHERNET, 8) == ring(8, NVLINK, NVLINK, 8)
    assert ring(9, NVLINK, ETHERNET, 8) == ring(9, ETHERNET, ETHERNET, 8)
    alone = step_time(WORK, DEVICE, exchanges(1), 1)
    shares = [efficiency(alone, step_time(WORK, DEVICE, exchanges(world), world), world) for world in (2, 8, 16, 64)]
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share < 1 for share in shares)


def test_a_matrix_is_not_shared_by_ranks() -> None:
    """Of eight matrices of a shape sixteen ranks take as long as eight; of two, two ranks as long as sixteen."""
    many, few = (1000, 2000), (1000, 500)
    muon = replace(WORK, matrices={many: 8, few: 2})
    memory = (28 * 8e6 + 20 * 17e6) / 1e12
    one, other = newton_schulz_flops(*many) / 1e14, newton_schulz_flops(*few) / 1e14
    for world, optimizer in ((1, 8 * one + 2 * other), (2, 4 * one + other), (3, 3 * one + other), (16, one + other)):
        assert step_time(muon, DEVICE, exchanges(world), world).optimizer == pytest.approx(memory + optimizer)


def test_muon_gathers_a_shape_at_a_time_and_with_fsdp_a_matrix_at_a_time() -> None:
    muon = replace(WORK, matrices={(1000, 2000): 8, (1000, 500): 2})
    found = exchanges(3)

    def more(sharded: bool) -> float:
        with_it, without = (step_time(work, DEVICE, found, 3, sharded=sharded) for work in (muon, WORK))
        return with_it.exposed - without.exposed

    # Three ranks give three of the eight matrices each, and one of the two: nine and three.
    updates = found.gather.seconds(2 * (9 * 2e6 + 3 * 0.5e6), 2)
    assert more(sharded=False) == pytest.approx(updates)
    assert more(sharded=True) == pytest.approx(updates + found.gather.seconds(2 * 17e6, 10))


def test_the_work_of_a_model_is_counted_as_elsewhere() -> None:
    model = random_model(tiny_config())
    sizes = {"batch_tokens": 1024, "micro_batch_tokens": 128, "row_length": 64, "world": 4}
    work = work_of(model, **sizes, muon=True)
    assert work.flops == 1024 * model.flops_per_token(64)
    assert work.micro_batches == 2
    shapes = [tuple(w.shape) for name, w in model.named_parameters() if is_matrix(name, w)]
    assert work.matrices == {shape: shapes.count(shape) for shape in shapes}
    assert sum(count * newton_schulz_flops(*shape) for shape, count in work.matrices.items()) == muon_cost(model)
    assert not work_of(model, **sizes, muon=False).matrices
    assert math.isclose(work.parameters, model.num_parameters())
