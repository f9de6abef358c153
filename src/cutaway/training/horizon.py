"""How many steps a run takes: from tokens, epochs or minutes, the last by measuring this machine's speed first."""

import copy
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from cutaway.data.loader import Batch
from cutaway.errors import UserError
from cutaway.recipe.base import TrainSettings
from cutaway.training.distributed import Ranks
from cutaway.training.metrics import synchronise

log = logging.getLogger("cutaway")
Train = TypeVar("Train", bound=TrainSettings)

HORIZONS = ("minutes", "tokens", "steps", "epochs")
Compiled = Literal["on", "layers", "off"]
COMPILE_REPAYS_S = {"cpu": 180.0, "cuda": 45.0}
"""Compiling takes up to a minute on two cores and saves about a third of the time: it pays from about 3 minutes. With
an H200 and 16 cores it took 11 to 16 s, and saves more, because every kernel that is launched waits for the host."""
LAYERS_REPAY_S = 120.0
"""Compiling one layer for all takes less than half of that on a processor."""
WHOLE_REPAYS_S = 1200.0
"""From here the whole model is compiled there too: it is up to 2.4 % faster, and takes 24 to 69 s
longer (`benchmarks/compiling.py`)."""
RESERVE = 0.08
"""Share of the minutes kept back for what the speed measurement does not see: compiling the evaluation, checkpoints,
samples, and a processor that slows down when it is warm (a run of 18 minutes with 3 % took 20)."""


def check_horizon(settings: TrainSettings) -> None:
    """Exactly one of minutes, tokens, steps, epochs must be set, and above 0."""
    given = [name for name in HORIZONS if getattr(settings, name) is not None]
    if len(given) != 1:
        named = " and ".join(given) or "none of them"
        raise UserError(f"the horizon must be set by exactly one of minutes, tokens, steps, epochs, not {named}")
    if not 0 < getattr(settings, given[0]) < math.inf:
        raise UserError(f"{given[0]} is {getattr(settings, given[0])}, must be above 0 and finite")


def fixed_steps(settings: Train, steps: int) -> Train:
    """Settings with the horizon written down as steps, so that a resumed run ends where it would have."""
    return dataclasses.replace(settings, **{**dict.fromkeys(HORIZONS), "steps": steps})  # type: ignore[arg-type]


def should_compile(
    setting: str, device: torch.device, expected_s: float, layers_alike: bool = False
) -> tuple[Compiled, str]:
    """How much to compile, and why in a few words. `layers_alike`: one layer's code would serve all. Where it would
    not, `layers` means the whole model: a run may go on with more processes, or on a GPU."""
    if setting == "layers" and not layers_alike:
        return "on", "layers is for models without experts, on a CPU, in one process"
    if setting in ("on", "layers", "off"):
        return setting, "as set"  # type: ignore[return-value]
    if device.type == "mps":
        return "off", "not on MPS"
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "off", "no C++ compiler (g++) found, which compiling for a CPU needs"
    if expected_s < (LAYERS_REPAY_S if layers_alike else COMPILE_REPAYS_S[device.type]):
        return "off", f"a run of about {expected_s:.0f} s does not repay it"
    how: Compiled = "layers" if layers_alike and expected_s < WHOLE_REPAYS_S else "on"
    return how, f"a run of about {expected_s / 60:.0f} minutes repays it"


def seconds_per_micro_batch(step: Callable[[Batch], object], batch: Batch, device: torch.device, least: int) -> float:
    """Median time of one forward and backward pass."""
    times = micro_batch_times(step, batch, device, least)
    return times[len(times) // 2]


def micro_batch_times(
    step: Callable[[Batch], object], batch: Batch, device: torch.device, least: int, seconds: float = 1.5
) -> list[float]:
    """Times of at least so many forward and backward passes, which take `seconds` together, the shortest first; the
    first call (compilation) is not among them."""
    step(batch)
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        synchronise(device)
        start = time.perf_counter()
        step(batch)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times)


def seconds_per_update(model: nn.Module, make: Callable[[nn.Module], list[Optimizer]], device: torch.device) -> float:
    """Time of one optimizer step, taken on a copy so that nothing of the run changes."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers = make(twin)
    times = []
    for _ in range(5):
        synchronise(device)
        start = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_per_exchange(gradients: int, ranks: Ranks) -> float:
    """Time in which the ranks sum so many gradients, by the first one's clock; 0 alone. A backward pass may hide some
    of it."""
    if ranks.world == 1:
        return 0.0
    values, seconds = torch.zeros(gradients, device=ranks.device), 0.0
    for _ in range(2):  # the first one connects the ranks too
        synchronise(ranks.device)
        start = time.perf_counter()
        dist.all_reduce(values)
        synchronise(ranks.device)
        seconds = time.perf_counter() - start
    return ranks.broadcast(seconds)
