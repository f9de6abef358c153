"""How long an RL run is: whole rollouts, counted in updates; minutes are turned into them by timing the first one."""

import dataclasses
import math
import time
from typing import Any

import torch

from cutaway.rl.source import RolloutSource
from cutaway.training.derive import Rule
from cutaway.training.distributed import Ranks
from cutaway.training.horizon import RESERVE, seconds_per_exchange
from cutaway.training.loop import Step
from cutaway.training.metrics import synchronise

EVALUATIONS, CHECKPOINTS = 5, 10
"""Of a run, where the settings do not say."""


def fix_steps(
    settings: Any, source: RolloutSource, step: Step, heldout: int, ranks: Ranks, started: float
) -> tuple[Any, list[Rule]]:
    """The horizon in updates, whole rollouts of them; minutes are turned into updates by timing the first rollout.

    That rollout is not made for the measurement alone: the run trains on it.
    """
    rules: list[Rule] = []
    if settings.epochs is not None:
        rollouts = max(1, round(settings.epochs * len(source.prompts) / settings.prompts_per_rollout))
        rules.append(
            Rule("steps", rollouts * source.updates, f"{rollouts} rollouts of {source.updates} updates", "epochs")
        )
        settings = dataclasses.replace(settings, epochs=None, steps=rollouts * source.updates)
    elif settings.minutes is not None:
        rollout_s, update_s = time_rollout(source, step)
        weights = source.players.actor.parameters()
        update_s += seconds_per_exchange(sum(weight.numel() for weight in weights if weight.requires_grad), ranks)
        per_rollout = rollout_s + source.updates * update_s
        answers = settings.prompts_per_rollout * (settings.group_size or 1) / ranks.world
        evaluation_s = rollout_s * heldout / ranks.world / answers
        left = (settings.minutes * 60 - (time.monotonic() - started)) * (1 - RESERVE) + rollout_s
        left -= (EVALUATIONS + 1) * evaluation_s
        rollouts = int(ranks.broadcast(float(max(1, int(left / per_rollout)))))
        reason = f"{settings.minutes:g} minutes, {rollout_s:.1f} s a rollout and {update_s:.2f} s an update"
        rules.append(Rule("steps", rollouts * source.updates, reason, "measured here"))
        settings = dataclasses.replace(settings, minutes=None, steps=rollouts * source.updates)
    steps = _whole(settings.steps, source.updates)
    if steps != settings.steps:
        rules.append(Rule("steps", steps, f"whole rollouts of {source.updates} updates", "rule"))
        settings = dataclasses.replace(settings, steps=steps)
    values = {
        "log_every": source.updates,
        "eval_every": _whole(steps / EVALUATIONS, source.updates),
        "save_every": _whole(steps / CHECKPOINTS, source.updates),
        "sample_every": 0,
    }
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    rules += [Rule(name, value, f"of {steps} updates", "choice") for name, value in missing.items()]
    return dataclasses.replace(settings, **missing), rules


def _whole(steps: float, updates: int) -> int:
    """The next whole number of rollouts, in updates."""
    return max(1, math.ceil(steps / updates)) * updates


def time_rollout(source: RolloutSource, step: Step) -> tuple[float, float]:
    """Seconds of a rollout, which stays to be trained on, and of an update, by going through one without the
    optimizer."""
    device = source.ranks.device
    began = time.monotonic()
    source.refill()
    rollout_s, kept = time.monotonic() - began, source.meter.kept()
    seconds = math.inf
    for _ in range(2):  # the first pass may be slower
        began = time.monotonic()
        for batch in source.first_update():
            torch.autograd.backward(step(batch.to(device))[0])
        synchronise(device)
        seconds = min(seconds, time.monotonic() - began)
    source.players.actor.zero_grad(set_to_none=True)
    source.meter.put_back(kept)
    return rollout_s, seconds
