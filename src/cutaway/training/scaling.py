r"""What a step takes on several devices: pure functions of its work, the devices and the exchanges between them.

    step    = compute + optimizer + what is sent and not hidden behind compute
    compute = FLOPs of the batch / (N x FLOP/s that one device reaches)
    DDP     = all-reduce of the gradients, 4P bytes, during the last micro-batch's backward pass
    FSDP2   = in every micro-batch two all-gathers of the weights and a reduce-scatter of the gradients, 4P bytes each,
              a layer at a time and then the rest
    Muon    = of each shape ceil(matrices / N) iterations, and one all-gather of the updates, 2 bytes a value, filled up
              to as many from every rank (with FSDP2 one a matrix of the iterations' inputs too)

An exchange of $S$ bytes in $n$ calls takes $n \alpha + \beta S$ seconds. In a ring of $N$ ranks, as GPUs form one here,
gathering, or summing into parts, has $\alpha = (N-1) a$ and $\beta = \frac{N-1}{N b}$, $b$ the bandwidth of the slowest
link and $a$ the time that its shortest message takes; an all-reduce is both of these (Thakur et al., "Optimization of
Collective Communication Operations in MPICH", 2005, section 4). Gloo's exchanges are others, its reduce-scatter an
all-reduce of which a part is kept; `benchmarks/scaling.py` measures them and checks it all.
"""

import math
from collections import Counter
from dataclasses import dataclass

from cutaway.model.transformer import CausalLM
from cutaway.training.optim import is_matrix, newton_schulz_flops

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
class Exchange:
    """What one kind of exchange takes, as a straight line."""

    call: float
    """Seconds of each call, however little it sends."""
    byte: float
    """Seconds of each byte of the whole tensor, of which a rank has a part before or after."""

    def seconds(self, size: float, calls: int = 1) -> float:
        """Of so many bytes in so many calls."""
        return calls * self.call + size * self.byte


@dataclass(frozen=True)
class Exchanges:
    """Of the ranks of a run."""

    gather: Exchange
    scatter: Exchange
    """Sums, and leaves each rank its part."""
    reduce: Exchange
    """Sums, and leaves each rank all."""
    hooks: float = 0.0
    """Seconds of FSDP2's own code a group of weights and micro-batch; a GPU's processor does that ahead of it."""


def ring(world: int, inside: Link, between: Link, per_node: int) -> Exchanges:
    """Those of a ring of so many devices, as fast as the slowest of its links: inside nodes, and between them."""
    links = (inside,) if world <= per_node else (inside, between)
    bandwidth, latency = min(link.bandwidth for link in links), max(link.latency for link in links)
    once = Exchange((world - 1) * latency, (world - 1) / (world * bandwidth))
    return Exchanges(once, once, Exchange(2 * once.call, 2 * once.byte))


@dataclass(frozen=True)
class Device:
    """One of those that share the work, all alike."""

    flops: float
    """FLOP/s that training reaches: peak x MFU."""
    memory_bandwidth: float
    """Bytes a second, which bound the optimizer."""
    overlap: float
    """Share of a backward pass during which the network works beside it; 0 on processors, which do the sending."""


@dataclass(frozen=True)
class Work:
    """What one optimizer step has to do, over all devices."""

    flops: float
    parameters: int
    layers: int
    micro_batches: int
    """Of one device, one after the other."""
    matrices: dict[tuple[int, ...], int]
    """How many of each shape Muon updates; none under AdamW."""


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
    matrices: Counter[tuple[int, ...]] = Counter()
    for name, weight in model.named_parameters():
        if muon and is_matrix(name, weight):
            matrices[tuple(weight.shape)] += weight.shape[:-2].numel()
    return Work(
        flops=batch_tokens * model.flops_per_token(row_length),
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        micro_batches=max(1, round(batch_tokens / (micro_batch_tokens * world))),
        matrices=matrices,
    )


def step_time(work: Work, device: Device, exchanges: Exchanges, world: int, *, sharded: bool = False) -> StepTime:
    """A step on `world` devices with DDP, or `sharded` with FSDP2."""
    size, groups = 4 * work.parameters, work.layers + 1
    compute = work.flops / (world * device.flops)
    values = sum(count * math.prod(shape[-2:]) for shape, count in work.matrices.items())
    moved = ADAMW_BYTES * (work.parameters - values) + MUON_BYTES * values
    optimizer = moved / device.memory_bandwidth / (world if sharded else 1)
    muon = 0.0
    for shape, count in work.matrices.items():
        share = math.ceil(count / world)
        optimizer += share * newton_schulz_flops(*shape[-2:]) / device.flops
        muon += exchanges.gather.seconds(2 * world * share * math.prod(shape[-2:]))
    if sharded:
        muon += exchanges.gather.seconds(2 * values, sum(work.matrices.values()))
        once = 2 * exchanges.gather.seconds(size, groups) + exchanges.scatter.seconds(size, groups)
        sent = work.micro_batches * (once + groups * exchanges.hooks)
        beside = compute
    else:
        sent = exchanges.reduce.seconds(size, math.ceil(size / BUCKET))
        beside = compute / work.micro_batches * 2 / 3
    return StepTime(compute, optimizer, sent + muon, max(0.0, sent - device.overlap * beside) + muon)


def efficiency(one: StepTime, many: StepTime, world: int) -> float:
    """Share of `world` times one device's speed that `world` devices reach on the same batch."""
    return one.total / (world * many.total)
