"""From a recipe's few settings to a run in full: speed measured, sizes derived, the number of steps fixed.

The order matters: the horizon in tokens, for minutes from a rough speed, gives the batch, the batch the learning rates;
then the network is compiled for exactly these shapes and, where the horizon is in minutes, timed for the number of
steps.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from cutaway.data.loader import Batch
from cutaway.errors import UserError
from cutaway.recipe.base import TrainSettings
from cutaway.training.derive import Rule, derive_batch, derive_intervals, derive_optimizer
from cutaway.training.distributed import to_be_sharded
from cutaway.training.horizon import (
    RESERVE,
    Compiled,
    check_horizon,
    fixed_steps,
    micro_batch_times,
    seconds_per_exchange,
    seconds_per_update,
    should_compile,
)
from cutaway.training.loop import Step
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from cutaway.training.plan import evaluation_seconds, steps_within, tokens_that_fit
from cutaway.training.precision import DTYPE_NAMES, device_memory

log = logging.getLogger("cutaway")


class Stream(Protocol):
    """What a preparation needs of a batch source."""

    @property
    def tokens_per_epoch(self) -> int: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


@dataclass
class Plan:
    """A run in full."""

    settings: TrainSettings
    """Nothing is left to derive."""
    rows: int
    """Rows of a micro-batch on one rank."""
    accumulation: int
    """Micro-batches of a step on one rank."""
    per_epoch: int
    """Useful tokens in one pass over the data."""
    rules: list[Rule] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        assert self.settings.steps is not None
        return self.settings.steps


PROBE_TOKENS = 4096
"""Tokens of the micro-batch on which the uncompiled speed is measured."""
COMPILED_SPEED = 1.5
"""About how much faster the compiled network is; only the batch size hangs on it."""
AT_LEAST_ONE = (
    "row_length",
    "batch_tokens",
    "micro_batch_tokens",
    "eval_every",
    "log_every",
    "save_every",
    "workers",
    "keep_checkpoints",
)
SHARES = ("warmup_fraction", "decay_fraction", "final_lr_fraction")
NOT_NEGATIVE = (
    *("muon_lr", "adam_lr", "weight_decay", "max_grad_norm", "z_loss", "holdout_tokens", "sample_every"),
    *("skip_bad", "price_per_hour", "dump_tokens", "seed"),
)


def check_settings(settings: TrainSettings) -> None:
    """Refuse values that no run can have, before any data is read."""
    check_horizon(settings)
    limits = (
        (AT_LEAST_ONE, 1.0, math.inf, "at least 1"),
        (SHARES, 0.0, 1.0, "between 0 and 1"),
        (NOT_NEGATIVE, 0.0, math.inf, "0 or more"),
    )
    for names, least, most, words in limits:
        for name in names:
            value = getattr(settings, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} is {value}, must be {words}")


def prepare(
    network: Network,
    source: Callable[[int], Stream],
    step: Step,
    settings: TrainSettings,
    *,
    heldout_tokens: int,
    peak: float,
    started: float,
) -> Plan:
    """Derive all that the settings leave open; compiles the network where that pays.

    `source(rows)` gives micro-batches of that many rows, `step` their loss; `peak` is the share of a new model's
    learning rates, `started` the clock when the stage began.
    """
    check_settings(settings)
    ranks, device = network.ranks, network.ranks.device
    settings = dataclasses.replace(settings, precision=DTYPE_NAMES[network.dtype])
    stream = source(1)
    per_epoch = stream.tokens_per_epoch
    stream.close()

    def budget_s() -> float:
        """Time left, by the first rank's clock: horizons that differ by a second could round to different batches.
        Where reading and compiling took all of it one step is made even so."""
        assert settings.minutes is not None
        return ranks.broadcast((settings.minutes * 60 - (time.monotonic() - started)) * (1 - RESERVE))

    # A rough horizon, from the uncompiled speed, is enough for the batch, which is a power of two.
    rough = 0.0
    if settings.minutes is not None or settings.compile == "auto":
        probe = _Probe(network, source, step, max(1, PROBE_TOKENS // settings.row_length))
        rough = ranks.broadcast(probe.seconds_per_token(least=1))
    horizon = horizon_tokens(settings, per_epoch)
    if settings.minutes is not None:
        horizon = max(1.0, budget_s() * ranks.world / rough * COMPILED_SPEED)
    memory = min(ranks.gather(device_memory(device)))
    fits = tokens_that_fit(network.model, settings.row_length, network.dtype.itemsize, memory)
    settings, rules = derive_batch(settings, horizon, device.type, fits)
    rows, accumulation = split_batch(settings, ranks.world)
    expected_s = settings.minutes * 60 if settings.minutes is not None else horizon * rough / ranks.world
    settings = dataclasses.replace(settings, compile=_compile(network, settings.compile, expected_s))
    settings, more = derive_optimizer(settings, network.model, peak, horizon)
    plan = Plan(settings, rows, accumulation, per_epoch, rules + more)
    if settings.steps is None:
        _fix_steps(plan, network, _Probe(network, source, step, rows), horizon, heldout_tokens, budget_s)
    plan.settings, more = derive_intervals(plan.settings, plan.steps)
    plan.rules += more
    return plan


def optimizers_of(model: nn.Module, settings: TrainSettings, dtype: torch.dtype) -> list[Optimizer]:
    """The optimizers that resolved settings name; Muon iterates in fp32 where the whole run is fp32."""
    assert settings.adam_lr is not None and settings.weight_decay is not None
    return make_optimizers(
        model,
        optimizer="muon" if settings.optimizer == "muon" else "adamw",
        muon_lr=settings.muon_lr or 0.0,
        adam_lr=settings.adam_lr,
        weight_decay=settings.weight_decay,
        muon_dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16,
    )


class _Probe:
    """One real micro-batch, to time forward and backward passes on; the weights do not change."""

    def __init__(self, network: Network, source: Callable[[int], Stream], step: Step, rows: int) -> None:
        self.network, self.loss = network, step
        stream = source(rows)
        batch = next(stream)
        stream.close()
        self.useful = batch.useful_tokens()
        self.useful_share = self.useful / batch.input_ids.numel()
        self.batch = batch.to(network.ranks.device)

    def seconds_per_token(self, least: int, seconds: float = 1.5) -> float:
        """Seconds for one useful token on one rank, measured `least` times and for so long. A quarter of the passes
        were faster: what else the machine does can only add to them."""
        times = micro_batch_times(self._forward_backward, self.batch, self.network.ranks.device, least, seconds)
        return times[len(times) // 4] / self.useful

    def _forward_backward(self, batch: Batch) -> None:
        torch.autograd.backward(self.loss(batch)[0])
        self.network.model.zero_grad(set_to_none=True)


def _compile(network: Network, setting: str, expected_s: float) -> Compiled:
    """Compile where that pays, as the first rank sees it."""
    ranks = network.ranks
    how, why = should_compile(setting, ranks.device, ranks.broadcast(expected_s), network.layers_alike)
    if ranks.first:
        log.info("compile: %s (%s)", how, why)
    if how != "off":
        network.compile(how)
    return how


def horizon_tokens(settings: TrainSettings, per_epoch: int) -> float:
    """Tokens of the whole run, where they do not depend on its speed."""
    if settings.tokens is not None:
        return float(settings.tokens)
    if settings.epochs is not None:
        return settings.epochs * per_epoch
    return float((settings.steps or 0) * (settings.batch_tokens or 16384))


def split_batch(settings: TrainSettings, world: int) -> tuple[int, int]:
    """Rows of a micro-batch and micro-batches of a step on each rank, for the batch as near as it can be met."""
    assert settings.batch_tokens is not None and settings.micro_batch_tokens is not None
    rows = settings.batch_tokens // settings.row_length
    if rows < world:
        size = f"batch_tokens {settings.batch_tokens}"
        raise UserError(f"{size} is less than one row of {settings.row_length} tokens on each of {world} ranks")
    micro = max(1, min(settings.micro_batch_tokens // settings.row_length, rows // world))
    return micro, max(1, round(rows / (micro * world)))


def _fix_steps(
    plan: Plan,
    network: Network,
    probe: _Probe,
    horizon: float,
    heldout_tokens: int,
    budget_s: Callable[[], float],
) -> None:
    """Turn the horizon into steps, which a resumed run keeps."""
    settings, ranks = plan.settings, network.ranks
    per_rank = plan.accumulation * plan.rows * settings.row_length * probe.useful_share
    if settings.minutes is not None:
        # The whole plan hangs on it, so it may take a fiftieth of the time, up to ten seconds.
        per_token = ranks.broadcast(probe.seconds_per_token(3, min(10.0, max(1.5, settings.minutes * 60 / 50))))
        update_s = seconds_per_update(
            network.model, lambda twin: optimizers_of(twin, settings, network.dtype), ranks.device
        )
        gradients = sum(weight.numel() for weight in network.model.parameters() if weight.requires_grad)
        exchange_s = seconds_per_exchange(gradients, ranks)
        if to_be_sharded(settings):  # two gathers and a scatter a micro-batch, each of them half of a sum
            exchange_s *= 1.5 * plan.accumulation
        step_s = per_rank * per_token + update_s + exchange_s
        evaluation_s = evaluation_seconds(heldout_tokens, per_token) / ranks.world
        left = budget_s()
        steps = steps_within(left, step_s, evaluation_s, settings.eval_every)
        if left < step_s and ranks.first:
            log.warning("minutes = %g: reading and preparing took nearly all of it; one step is made", settings.minutes)
        reason = f"{settings.minutes:g} minutes at {1 / per_token:,.0f} tokens/s a rank and {update_s:.2f} s an update"
        if ranks.world > 1:
            reason += f", {exchange_s:.2f} s a step to send gradients"
    else:
        steps = round(horizon / (per_rank * ranks.world))
        reason = f"{horizon / 1e6:.3g}M tokens, {per_rank * ranks.world:,.0f} useful ones a step"
    steps = int(ranks.broadcast(max(1, steps)))
    plan.rules.append(Rule("steps", steps, reason, "measured here"))
    plan.settings = fixed_steps(settings, steps)
