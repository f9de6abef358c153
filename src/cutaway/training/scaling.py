r"""What a step takes on several devices: pure functions of its work, the devices and the links between them.

    step    = compute + optimizer + what is sent and not hidden behind compute
    compute = FLOPs of the batch / (N x FLOP/s that one device reaches)
    DDP     = all-reduce of the gradients, 4P bytes, during the last micro-batch's backward pass
    FSDP2   = all-gather of the weights, 4P bytes, twice a micro-batch, and reduce-scatter of the gradients once
    Muon    = its iterations / N, and an all-gather of the updates, 2 bytes a value (with FSDP2 of their inputs too)

A ring of $N$ ranks gathers $B$ bytes on all of them (or sums them into parts) in $(N-1)(\frac{B}{N b} + \alpha)$
seconds, $b$ the bandwidth of the slowest link and $\alpha$ the time a message takes however short it is (Thakur et al.,
"Optimization of Collective Communication Operations in MPICH", 2005, section 4). `benchmarks/scaling.py` checks it all.
"""

from dataclasses import dataclass

from cutaway.model.transformer import CausalLM
from cutaway.training.optim import is_matrix, muon_cost

BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at a time."""
ADAMW_BYTES, MUON_BYTES = 28, 20
"""Bytes that an update reads and writes a parameter: weight, gradient and two moments, or one."""


@dataclass(frozen=True)
class Link:
    """A way between two devices."""

    bandwidth: float
    """Bytes a second, one way."""
    latency: float
    """Seconds that the shortest message takes."""


NVLINK = Link(450e9, 10e-6)
"""Of an H100 SXM: 900 GB/s, both ways together (NVIDIA H100 data sheet). Latencies here are a choice."""
PCIE4 = Link(32e9, 10e-6)
"""16 lanes of PCI Express 4.0: 16 GT/s each."""
INFINIBAND = Link(50e9, 20e-6)
"""NDR, 400 Gb/s for each device."""
ETHERNET = Link(3.1e9, 50e-6)
"""25 Gb/s, shared by the devices of a node: a ring crosses it once."""


@dataclass(frozen=True)
class Cluster:
    """Devices, all alike, and what connects them."""

    flops: float
    """FLOP/s that training reaches on one: peak x MFU."""
    memory_bandwidth: float
    """Bytes a second, which bound the optimizer."""
    inside: Link
    """Between the devices of a node."""
    between: Link
    """Between nodes."""
    per_node: int
    overlap: float
    """Share of a backward pass during which the network works beside it; 0 on processors, which do the sending."""

    def ring(self, world: int) -> Link:
        """The slowest link of a ring of so many devices."""
        if world <= self.per_node:
            return self.inside
        slow = (self.inside, self.between)
        return Link(min(link.bandwidth for link in slow), max(link.latency for link in slow))


@dataclass(frozen=True)
class Work:
    """What one optimizer step has to do, over all devices."""

    flops: float
    parameters: int
    layers: int
    micro_batches: int
    """Of one device, one after the other."""
    muon_values: int
    """Parameters that Muon updates, 0 under AdamW."""
    muon_flops: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by cause."""

    compute: float
    optimizer: float
    network: float
    """Sending, hidden or not."""
    exposed: float
    """The part of it that computing waits for."""

    @property
    def total(self) -> float:
        """From one step to the next."""
        return self.compute + self.optimizer + self.exposed


def work_of(
    model: CausalLM, *, batch_tokens: int, micro_batch_tokens: int, row_length: int, world: int, muon: bool
) -> Work:
    """The work of a step of `batch_tokens`, in micro-batches of at most `micro_batch_tokens` on each of the ranks."""
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if is_matrix(name, weight))
    return Work(
        flops=batch_tokens * model.flops_per_token(row_length),
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        micro_batches=max(1, round(batch_tokens / (micro_batch_tokens * world))),
        muon_values=matrices if muon else 0,
        muon_flops=muon_cost(model) if muon else 0,
    )


def pass_round(size: float, world: int, link: Link, messages: int = 1) -> float:
    """Seconds in which a ring gathers `size` bytes on all ranks, or sums them into parts; `messages` after another."""
    return (world - 1) * (size / (world * link.bandwidth) + messages * link.latency)


def step_time(work: Work, cluster: Cluster, world: int, *, sharded: bool = False) -> StepTime:
    """A step on `world` devices with DDP, or `sharded` with FSDP2."""
    link, size = cluster.ring(world), 4 * work.parameters
    compute = work.flops / (world * cluster.flops)
    moved = ADAMW_BYTES * (work.parameters - work.muon_values) + MUON_BYTES * work.muon_values
    optimizer = moved / cluster.memory_bandwidth / (world if sharded else 1)
    optimizer += work.muon_flops / (world * cluster.flops)
    muon = pass_round(2 * work.muon_values, world, link) * (2 if sharded else 1) if work.muon_values else 0.0
    if sharded:
        gathers = 2 * work.micro_batches
        sent = (gathers + 1) * pass_round(size, world, link, work.layers + 1)
        beside = compute
    else:
        sent = 2 * pass_round(size, world, link, -(-size // BUCKET))
        beside = compute / work.micro_batches * 2 / 3
    return StepTime(compute, optimizer, sent + muon, max(0.0, sent - cluster.overlap * beside) + muon)


def efficiency(one: StepTime, many: StepTime, world: int) -> float:
    """Share of `world` times one device's speed that `world` devices reach on the same batch."""
    return one.total / (world * many.total)
