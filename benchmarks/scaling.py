"""The scaling model (`training/scaling.py`) against two processes on this machine; then what it says of 2 to 64 GPUs.

    python benchmarks/scaling.py [--recipes nano,mini] [--batch-tokens 16384] [--seconds 30] [--json OUT]

Two processes with a thread each, over gloo. Measured first, by both at the same time: an all-gather, a reduce-scatter
and an all-reduce of a few bytes and of what the model sends at once, the first two with the copies that FSDP2 makes
beside its own; then FSDP2's own code, by a model of the same depth that is so narrow that little else is left of its
step. A step with DDP and one with FSDP2 then take turns with a forward and backward pass without an exchange and with
an update, from which the model predicts that step: a machine that slows down does so for all of them. The table after
it has no measurement behind it: peaks of data sheets, a share of them that the run is assumed to reach, and the links
named in its heading.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import PlanSettings
from cutaway.stages.rehearsal import DataSize, RandomRows
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks, joined_ranks
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from cutaway.training.plan import find_gpu
from cutaway.training.precision import keep_freed_memory, pick_dtype
from cutaway.training.scaling import (
    ADAMW_BYTES,
    BUCKET,
    ETHERNET,
    INFINIBAND,
    NVLINK,
    PCIE4,
    Device,
    Exchange,
    Exchanges,
    Work,
    efficiency,
    ring,
    step_time,
    work_of,
)
from record_curve import machine

PAIR = 2
"""Processes that measure."""
ROTATED = 8
"""Buffers that are sent in turns, so that they are not in the processor's cache as they would not be in a step."""
ROW_LENGTH = 512
WORLDS = (2, 4, 8, 16, 32, 64)
MFU = PlanSettings.mfu
# The calls of FSDP2, under the names that they have had since torch 2.13 or those before it.
GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="nano,mini")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=6400)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the turns of each kind of step")
    parser.add_argument("--json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch_tokens % (PAIR * arguments.micro_batch_tokens) or arguments.micro_batch_tokens % ROW_LENGTH:
        parser.error(f"the batch must be micro-batches of {PAIR} processes, and these be rows of {ROW_LENGTH} tokens")
    if arguments.worker:
        work(arguments)
        return
    print(f"{machine()}, torch {torch.__version__}")
    result = {name: checked(arguments, name) for name in arguments.recipes.split(",")}
    for name in ("mini", "small"):
        print(table(name, arguments.vocab_size))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def model_of(recipe: str, vocab_size: int) -> CausalLM:
    config, _ = derive_model(load_recipe(recipe).model, vocab_size, ROW_LENGTH, (0, 0))
    return CausalLM(config)


def work_here(arguments: argparse.Namespace, model: CausalLM) -> Work:
    """Of a step of both processes."""
    sizes = {"batch_tokens": arguments.batch_tokens, "micro_batch_tokens": arguments.micro_batch_tokens}
    return work_of(model, **sizes, row_length=ROW_LENGTH, world=PAIR, muon=False)


def checked(arguments: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Measure with two processes, predict, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PAIR)]
        command += [__file__, "--worker", str(out), "--recipes", recipe, "--seconds", str(arguments.seconds)]
        for name in ("batch_tokens", "micro_batch_tokens", "vocab_size"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        # On processors, whatever GPUs there are.
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if sys.platform.startswith("linux"):
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        subprocess.run(command, check=True, env=env)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    lines = {name: Exchange(**found[name]) for name in ("gather", "scatter", "reduce")}
    said = [f"{name} {1e-9 / line.byte:.2f} GB/s and {line.call * 1e6:.0f} us" for name, line in lines.items()]
    print(f"\n{recipe}: {', '.join(said)}; FSDP2's own code {found['hooks'] * 1e6:.0f} us a layer and micro-batch")
    print("| | predicted step | measured | off by | compute | optimizer | sent | a process reaches |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    model = model_of(recipe, arguments.vocab_size)
    for kind in ("ddp", "fsdp"):
        took = found[kind]
        flops = arguments.micro_batch_tokens * model.flops_per_token(ROW_LENGTH) / took["pass"]
        device = Device(flops, ADAMW_BYTES * model.num_parameters() / took["update"], overlap=0.0)
        exchanges = Exchanges(**lines, hooks=found["hooks"])
        predicted = step_time(work_here(arguments, model), device, exchanges, PAIR, sharded=kind == "fsdp")
        took["predicted"] = asdict(predicted) | {"total": predicted.total}
        off = predicted.total / took["step"] - 1
        print(
            f"| {kind.upper()} | {predicted.total:.2f} s | {took['step']:.2f} s | {off:+.0%} "
            f"| {predicted.compute:.2f} s | {predicted.optimizer:.3f} s | {predicted.network:.3f} s "
            f"| {flops / 1e9:.0f} GFLOP/s |",
            flush=True,
        )
    return found


def work(arguments: argparse.Namespace) -> None:
    """One of the two processes: measures what `checked` reads."""
    keep_freed_memory()
    with joined_ranks() as ranks:
        model = model_of(arguments.recipes, arguments.vocab_size)
        exchanges = measure_exchanges(model, ranks)
        found = asdict(replace(exchanges, hooks=measure_hooks(model.config, ranks, exchanges)))
        for kind in ("ddp", "fsdp"):
            found[kind] = measure_step(arguments, model, ranks, sharded=kind == "fsdp")
        if ranks.first:
            Path(arguments.worker).write_text(json.dumps(found), encoding="utf-8")


def measure_exchanges(model: CausalLM, ranks: Ranks) -> Exchanges:
    """Of what the model sends at once: a layer or all that is in none, and a bucket of DDP's."""

    def gather(whole: Tensor, part: Tensor, buffer: Tensor) -> None:
        own = buffer.chunk(ranks.world)[ranks.rank]
        own.copy_(part)
        GATHER(buffer, own)
        whole.copy_(buffer)

    def scatter(whole: Tensor, part: Tensor, buffer: Tensor) -> None:
        buffer.copy_(whole)
        own = torch.empty_like(part)
        SCATTER(own, buffer, op=dist.ReduceOp.AVG)
        part += own

    def reduce(whole: Tensor, part: Tensor, buffer: Tensor) -> None:
        dist.all_reduce(whole)

    def seconds(call: Callable[[Tensor, Tensor, Tensor], None], size: int) -> float:
        part = -(-size // ranks.world)
        sizes = (part * ranks.world, part, part * ranks.world)
        buffers = itertools.cycle([[torch.zeros(one) for one in sizes] for _ in range(ROTATED)])
        return in_turns({"call": lambda: call(*next(buffers))}, ranks, 0.5)["call"]

    def line(call: Callable[[Tensor, Tensor, Tensor], None], sizes: list[int]) -> Exchange:
        """From what a few values take, as steep as what all sizes take together."""
        few = seconds(call, 16)
        together = sum(count * seconds(call, size) for size, count in Counter(sizes).items())
        return Exchange(few, (together - len(sizes) * few) / (4 * sum(sizes)))

    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in model.model.layers]
    groups = [*layers, model.num_parameters() - sum(layers)]
    return Exchanges(line(gather, groups), line(scatter, groups), line(reduce, [min(BUCKET // 4, sum(groups))]))


def measure_hooks(config: ModelConfig, ranks: Ranks, exchanges: Exchanges) -> float:
    """By a model of the same depth: a narrow one's pass with FSDP2, less one without it and less its exchanges."""
    narrow = replace(
        config,
        **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "head_dim"), 64),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1),
    )
    bare, sharded = prepared(narrow, ranks), prepared(narrow, ranks)
    sharded.shard()
    rows = RandomRows(narrow, DataSize(1, 1), 1, 64)
    passes = {"bare": lambda: backward(bare, rows, 1), "sharded": lambda: backward(sharded, rows, 1)}
    took = in_turns(passes, ranks, 3.0)
    done = Work(0, bare.model.num_parameters(), narrow.num_hidden_layers, 1, {})
    sent = step_time(done, Device(1.0, 1.0, 0.0), exchanges, ranks.world, sharded=True).network
    return max(0.0, took["sharded"] - took["bare"] - sent) / (narrow.num_hidden_layers + 1)


def measure_step(arguments: argparse.Namespace, model: CausalLM, ranks: Ranks, sharded: bool) -> dict[str, float]:
    """A step with exchanges, and what it is predicted from: a micro-batch's passes and an update without."""
    bare, network = prepared(model.config, ranks), prepared(model.config, ranks)
    network.shard() if sharded else network.wrap()
    rows = RandomRows(model.config, DataSize(1, 1), arguments.micro_batch_tokens // ROW_LENGTH, ROW_LENGTH)
    alone, together = adamw(bare), adamw(network)
    micro_batches = work_here(arguments, model).micro_batches

    def step() -> None:
        backward(network, rows, micro_batches)
        for optimizer in together:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def update() -> None:
        for optimizer in alone:
            optimizer.step()

    return in_turns({"pass": lambda: backward(bare, rows, 1), "update": update, "step": step}, ranks, arguments.seconds)


def prepared(config: ModelConfig, ranks: Ranks) -> Network:
    model = CausalLM(config)
    initialise(model, 0)
    return Network(model, ranks, pick_dtype("auto", ranks.device))


def adamw(network: Network) -> list[torch.optim.Optimizer]:
    return make_optimizers(network.model, optimizer="adamw", muon_lr=0.0, adam_lr=1e-4, weight_decay=0.1)


def backward(network: Network, rows: RandomRows, micro_batches: int) -> None:
    for number in range(micro_batches):
        with network.synchronised_at(last=number == micro_batches - 1):
            torch.autograd.backward(network.token_losses(next(rows)).mean() / micro_batches)


def in_turns(actions: dict[str, Callable[[], object]], ranks: Ranks, seconds: float) -> dict[str, float]:
    """Median seconds of each, begun by both processes together, after a turn that is not counted."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    began = time.perf_counter()
    while ranks.any(time.perf_counter() - began < seconds or len(next(iter(times.values()))) < 3):
        for name, action in actions.items():
            dist.barrier()
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    return {name: ranks.broadcast(statistics.median(found)) for name, found in times.items()}


def table(recipe: str, vocab_size: int) -> str:
    """Share of N times one device's speed, the batch as on one device and N times as large."""
    model = model_of(recipe, vocab_size)
    lines = [f"\n{recipe}, estimate at {MFU:.0%} of the peak, 524,288 tokens a step | the same on each GPU"]
    lines.append("| cards, links | | " + " | ".join(map(str, WORLDS)) + " |")
    lines.append("| --- | --- |" + " ---: |" * len(WORLDS))
    for name, inside, between, per_node in (
        ("h100", NVLINK, INFINIBAND, 8),
        ("rtx4090", PCIE4, ETHERNET, 4),
    ):
        gpu = find_gpu(name)
        device = Device(gpu.flops * MFU, gpu.bandwidth, overlap=0.8)
        for kind in ("ddp", "fsdp"):
            shares = []
            for world in WORLDS:
                pair = []
                for batch in (524288, 524288 * world):
                    sizes = {"batch_tokens": batch, "micro_batch_tokens": 65536, "row_length": ROW_LENGTH}
                    done = work_of(model, **sizes, world=world, muon=True)
                    alone = step_time(done, device, ring(1, inside, between, per_node), 1)
                    links = ring(world, inside, between, per_node)
                    many = step_time(done, device, links, world, sharded=kind == "fsdp")
                    pair.append(f"{efficiency(alone, many, world):.0%}")
                shares.append(" / ".join(pair))
            lines.append(f"| {gpu.name}, {per_node} a node | {kind.upper()} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
