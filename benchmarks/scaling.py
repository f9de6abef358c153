"""The scaling model (`training/scaling.py`) against two processes on this machine; then what it says of 2 to 64 GPUs.

    python benchmarks/scaling.py [--recipes nano,mini] [--batch-tokens 16384] [--seconds 30] [--json OUT]

Two processes with a thread each, over gloo. Measured first, by both at the same time: the link (all-reduces of a few
bytes and of 16 MB), the FLOP/s of a forward and backward pass without an exchange, the seconds of an update. From these
the model predicts a step with DDP and with FSDP2, which is then measured. The table after it has no measurement behind
it: peaks of data sheets, a share of them that the run is assumed to reach, and the links named in its heading.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.stages.rehearsal import DataSize, RandomRows
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks, joined_ranks
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from cutaway.training.plan import MFU, find_gpu
from cutaway.training.precision import keep_freed_memory, pick_dtype
from cutaway.training.scaling import (
    ADAMW_BYTES,
    ETHERNET,
    INFINIBAND,
    NVLINK,
    PCIE4,
    Cluster,
    Link,
    efficiency,
    step_time,
    work_of,
)

LARGE = 16 * 2**20
"""Bytes of the all-reduce that the bandwidth is taken from."""
ROW_LENGTH = 512
WORLDS = (2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="nano,mini")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=6400)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement of steps")
    parser.add_argument("--json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    result = {name: checked(arguments, name) for name in arguments.recipes.split(",")}
    for name in ("mini", "small"):
        print(table(name, arguments.vocab_size))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def model_of(recipe: str, vocab_size: int) -> CausalLM:
    config, _ = derive_model(load_recipe(recipe).model, vocab_size, ROW_LENGTH, (0, 0))
    return CausalLM(config)


def checked(arguments: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Measure with two processes, predict, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        command += ["--worker", str(out), "--recipes", recipe, "--seconds", str(arguments.seconds)]
        for name in ("batch_tokens", "micro_batch_tokens", "vocab_size"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if sys.platform.startswith("linux"):
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        subprocess.run(command, check=True, env=env)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    link = Link(**found["link"])
    print(f"\n{recipe}: link {link.bandwidth / 1e9:.2f} GB/s, {link.latency * 1e6:.0f} us; ", end="")
    print(f"a process reaches {found['flops'] / 1e9:.0f} GFLOP/s, its update takes {found['update_s']:.3f} s")
    print("| | predicted step | measured | off by | compute | optimizer | sent |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    model = model_of(recipe, arguments.vocab_size)
    cluster = Cluster(
        flops=found["flops"],
        memory_bandwidth=ADAMW_BYTES * model.num_parameters() / found["update_s"],
        inside=link,
        between=link,
        per_node=2,
        overlap=0.0,
    )
    sizes = {"batch_tokens": arguments.batch_tokens, "micro_batch_tokens": arguments.micro_batch_tokens}
    done = work_of(model, **sizes, row_length=ROW_LENGTH, world=2, muon=False)
    for kind in ("ddp", "fsdp"):
        predicted, measured = step_time(done, cluster, 2, sharded=kind == "fsdp"), found[kind]
        found[f"{kind}_predicted"] = asdict(predicted) | {"total": predicted.total}
        print(
            f"| {kind.upper()} | {predicted.total:.2f} s | {measured:.2f} s | {predicted.total / measured - 1:+.0%} "
            f"| {predicted.compute:.2f} s | {predicted.optimizer:.3f} s | {predicted.network:.3f} s |",
            flush=True,
        )
    return found


def work(arguments: argparse.Namespace) -> None:
    """One of the two processes: measures what `checked` reads."""
    keep_freed_memory()
    with joined_ranks() as ranks:
        dtype = pick_dtype("auto", ranks.device)
        config = model_of(arguments.recipes, arguments.vocab_size).config
        link = measure_link(ranks)
        found: dict[str, Any] = {"link": asdict(link), "dtype": str(dtype)}
        bare = prepared(config, ranks, dtype)
        rows = RandomRows(config, DataSize(1, 1), arguments.micro_batch_tokens // ROW_LENGTH, ROW_LENGTH)
        micro_s = timed(lambda: backward(bare, rows, 1), ranks, arguments.seconds / 2)
        found["flops"] = arguments.micro_batch_tokens * bare.model.flops_per_token(ROW_LENGTH) / micro_s
        optimizers = adamw(bare)
        backward(bare, rows, 1)
        found["update_s"] = timed(lambda: [one.step() for one in optimizers], ranks, 1.0)
        micro_batches = max(1, round(arguments.batch_tokens / (arguments.micro_batch_tokens * ranks.world)))
        for kind in ("ddp", "fsdp"):
            network = prepared(config, ranks, dtype)
            network.shard() if kind == "fsdp" else network.wrap()
            found[kind] = timed(step_of(network, rows, micro_batches), ranks, arguments.seconds)
        if ranks.first:
            Path(arguments.worker).write_text(json.dumps(found), encoding="utf-8")


def prepared(config: ModelConfig, ranks: Ranks, dtype: torch.dtype) -> Network:
    model = CausalLM(config)
    initialise(model, 0)
    return Network(model, ranks, dtype)


def adamw(network: Network) -> list[torch.optim.Optimizer]:
    return make_optimizers(network.model, optimizer="adamw", muon_lr=0.0, adam_lr=1e-4, weight_decay=0.1)


def step_of(network: Network, rows: RandomRows, micro_batches: int) -> Callable[[], None]:
    optimizers = adamw(network)

    def step() -> None:
        backward(network, rows, micro_batches)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def backward(network: Network, rows: RandomRows, micro_batches: int) -> None:
    for number in range(micro_batches):
        with network.synchronised_at(last=number == micro_batches - 1):
            torch.autograd.backward(network.token_losses(next(rows)).mean() / micro_batches)


def measure_link(ranks: Ranks) -> Link:
    """From all-reduces: 2 (N-1) (B / (N b) + a) seconds for B bytes."""
    seconds = {}
    for size in (4, LARGE):
        values = torch.zeros(size // 4)
        times = []
        for _ in range(30):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - start)
        seconds[size] = ranks.broadcast(statistics.median(times))
    rounds = 2 * (ranks.world - 1)
    latency = seconds[4] / rounds
    return Link(LARGE / ranks.world / max(1e-9, seconds[LARGE] / rounds - latency), latency)


def timed(action: Callable[[], object], ranks: Ranks, seconds: float) -> float:
    """Median seconds of an action that both processes begin together, after one that is not counted."""
    action()
    times: list[float] = []
    while ranks.broadcast(float(len(times) < 3 or sum(times) < seconds)):
        dist.barrier()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return ranks.broadcast(statistics.median(times))


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
        cluster = Cluster(gpu.flops * MFU, gpu.bandwidth, inside, between, per_node, overlap=0.8)
        for kind in ("ddp", "fsdp"):
            shares = []
            for world in WORLDS:
                pair = []
                for batch in (524288, 524288 * world):
                    sizes = {"batch_tokens": batch, "micro_batch_tokens": 65536, "row_length": ROW_LENGTH}
                    done = work_of(model, **sizes, world=world, muon=True)
                    alone = step_time(replace(done, micro_batches=1), cluster, 1)
                    many = step_time(done, cluster, world, sharded=kind == "fsdp")
                    pair.append(f"{efficiency(alone, many, world):.0%}")
                shares.append(" / ".join(pair))
            lines.append(f"| {gpu.name}, {per_node} a node | {kind.upper()} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
