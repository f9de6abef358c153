"""Ranks: what each knows of the others, and how they share gradients, or weights too. Launched by `torchrun`.

What a host knows goes from processor to processor (gloo), what a GPU has computed from GPU to GPU (NCCL): a number that
went through a GPU would wait until this had done all that it was asked for before.
"""

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.recipe.base import ShardSettings, TrainSettings
from cutaway.recipe.files import read_toml
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.precision import pick_device


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs, evaluates aloud and writes."""
        return self.rank == 0

    def sum_all(self, values: list[float]) -> list[float]:
        """Sum of each number over all ranks, in one exchange."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank: anything that JSON holds, floating-point numbers to the bit."""
        if self.world == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.sum_all([float(len(text) * (r == self.rank)) for r in range(self.world)])]
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(text)] = text
        found = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(found, own)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(found, sizes, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes, so that all act alike."""
        return self.sum_all([float(flag)])[0] > 0

    def broadcast(self, value: float) -> float:
        """The first rank's number, on every rank."""
        return self.sum_all([value if self.first else 0.0])[0]

    def barrier(self) -> None:
        """Wait for all."""
        self.sum_all([0.0])


def start_ranks() -> Ranks:
    """Join the group that `torchrun` describes in the environment; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        # The others wait while the first rank tokenises, which can take longer than the default of ten minutes.
        timeout = datetime.timedelta(hours=4)
        store = _fresh_store(timeout)
        where: dict[str, Any] = {} if store is None else {"store": store, "rank": rank, "world_size": world}
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout, **where)
    return Ranks(rank, world, device)


def _fresh_store(timeout: datetime.timedelta) -> Any:
    """Where the ranks of a restart find each other; None for torch's own way.

    torchrun's store outlives the processes, and in it are still the addresses of those that died: the new ones would
    call them and fail (pytorch issue 135712). So each restart has keys of its own.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not attempt or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = dist.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"restart-{attempt}", shared)  # type: ignore[attr-defined]


def stop_ranks(ranks: Ranks) -> None:
    """Leave the group."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The group, for as long as a stage runs."""
    ranks = start_ranks()
    try:
        yield ranks
    finally:
        stop_ranks(ranks)


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The module to train through: gradients of a backward pass through its forward are averaged over ranks.

    Calling the bare model instead would train every rank on its own data alone, silently.
    """
    if ranks.world == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def to_be_sharded(settings: TrainSettings) -> bool:
    """Whether ranks are to hold parts of the weights."""
    return isinstance(settings, ShardSettings) and settings.sharding == "on"


def check_sharding(config: ModelConfig, dtype: torch.dtype) -> None:
    """Refuse, before any work, what `shard` cannot do."""
    if dtype == torch.float16:
        raise UserError("sharding is not possible in fp16, whose loss scaling needs whole gradients: use bf16 or fp32")
    if config.num_experts:
        raise UserError("sharding splits rows of matrices, not stacks of experts: leave --sharding off")


def shard(model: CausalLM, ranks: Ranks) -> None:
    """Leave every rank 1/world of the rows of each weight, and so of its gradient and of the optimizer's state (FSDP2).

    A layer's weights are gathered when it is about to compute, forward and backward, and dropped after it; gradients
    are averaged over ranks on their way back to their rows. Weights are sent in fp32, so that one process computes the
    same from them. Zhao et al., "PyTorch FSDP", arXiv 2304.11277.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Said for the outermost too, or an evaluation, which no backward pass follows, would leave its weights gathered.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def launch() -> list[str] | None:
    """The id that `torchrun` gives to all processes of a job, and the command; None without `torchrun`."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if job is None else [job, *sys.argv[1:]]


def restarted(out: str) -> bool:
    """Whether `torchrun --max-restarts` started this process again after one was lost, and there is a checkpoint.

    The run in `out` then names this launch in its recipe.toml. The number of restarts would not do: each node counts
    those alone that its own processes caused.
    """
    now = launch()
    # Where no `--rdzv-id` names it a job is called "none", as the next one would be.
    if now is None or (now[0] == "none" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"):
        return False
    recipe = Path(out) / "recipe.toml"
    begun = recipe.is_file() and read_toml(str(recipe)).get("made", {}).get("torchrun") == now
    return begun and bool(Checkpoints(Path(out), 1).steps())
