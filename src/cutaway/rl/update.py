"""The update: from a minibatch to the sum of its loss, and what is measured on the way. `step` is the whole loss.

The equations are in `objectives/`.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cutaway.objectives.aggregation import divisor, total
from cutaway.objectives.kl import kl
from cutaway.objectives.policy import Tokens, clipped, importance_weight
from cutaway.objectives.value import value_loss
from cutaway.recipe.rl import PPOSettings, RLSettings
from cutaway.rl.algorithms import BOUNDED, Algorithm, policy_loss
from cutaway.rl.drift import Drift
from cutaway.rl.dump import token_rows, write_dump
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Players
from cutaway.rl.rollout import Minibatch
from cutaway.rl.setup import turns_of
from cutaway.training.loop import Step
from cutaway.training.precision import autocast
from cutaway.training.progress import print_tokens

NOTHING = 1e-9
"""Divisor of a micro-batch in which no token is trained, so that its gradient is 0 and the run goes on."""


def divisor_of(row: Algorithm, settings: RLSettings) -> Callable[[Minibatch], float]:
    """What a micro-batch adds to what the sums of an update are divided by."""
    longest = settings.max_new_tokens * turns_of(settings)
    return lambda batch: divisor(batch.mask, row.aggregation, batch.answers, longest) or NOTHING


def make_step(
    players: Players,
    row: Algorithm,
    settings: RLSettings,
    weigh: Callable[[Minibatch], float],
    meter: Meter,
    drift: Drift,
    out: Path,
) -> Step:
    """The step of the loop: a minibatch to the sum of its loss, the routers' losses added where the policy has any;
    `weigh` is `divisor_of`."""
    loss_of, network, dumped = policy_loss(row), players.network, [not settings.dump_tokens]
    updates = settings.minibatches * settings.rollout_epochs

    def step(batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        routing = network.routing()
        with autocast(network.ranks.device, network.dtype):
            logprobs, entropy, values = network.module(batch.input_ids, batch.targets, batch.own, routing=routing)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        tokens = Tokens(logprobs, old, batch.advantages, batch.mask)
        per_token = loss_of(tokens)
        if settings.importance_cap:
            per_token = per_token * importance_weight(old, batch.sampler_logprobs, settings.importance_cap)
        if batch.ref_logprobs is not None and row.kl == "loss":
            per_token = per_token + row.beta * kl(logprobs, batch.ref_logprobs, row.kl_estimator)
        loss = total(per_token, batch.mask, row.aggregation)
        if isinstance(settings, PPOSettings) and batch.values is not None and batch.returns is not None:
            errors = value_loss(values, batch.values, batch.returns, settings.value_clip or None)
            loss = loss + settings.value_weight * total(errors, batch.mask, row.aggregation)
            meter.add_masked("value_error", (values - batch.returns).detach().square(), batch.mask)
        with torch.no_grad():
            drift.add(batch, measure_step(meter, row, tokens, entropy, batch, per_token))
        if not dumped[0] and network.ranks.first and batch.answers and (not batch.first or updates == 1):
            dumped[0] = True
            shown = (tokens, entropy, per_token, _clipped(row, tokens))
            rows = token_rows(batch, *shown, players.tokenizer, settings.dump_tokens)
            print_tokens(write_dump(rows, out))
        return network.with_router_losses(loss, routing, batch.rows(), loss.new_tensor(weigh(batch)))

    return step


def measure_step(
    meter: Meter, row: Algorithm, tokens: Tokens, entropy: Tensor, batch: Minibatch, per_token: Tensor
) -> Tensor:
    """What an update shows of the policy; gives back its distance from the policy that answered, a token."""
    mask, logprobs = batch.mask, tokens.logprobs.detach()
    own = batch.own if batch.answers else torch.zeros_like(batch.own)  # what only goes along is measured nowhere
    meter.add_masked("policy_loss", per_token.detach(), mask)
    meter.add_masked("entropy", entropy, own)
    moved = kl(tokens.old_logprobs, logprobs)
    meter.add_masked("kl_old_k3", moved, mask)
    if batch.ref_logprobs is not None:
        meter.add_masked("kl_ref_k1", kl(logprobs, batch.ref_logprobs, "k1"), own)
        meter.add_masked("kl_ref_k3", kl(logprobs, batch.ref_logprobs, "k3"), own)
    meter.add_histogram(tokens.ratio.detach(), mask)
    if row.policy_loss in BOUNDED:
        low, high = clipped(ratio_of(row, tokens), tokens.advantages, row.clip_low, row.clip_high)
        # An answer's ratio counts once, at its first token.
        counted = mask & (mask.cumsum(1) == 1) if row.policy_loss == "gspo" else mask
        meter.add_masked("clip_fraction_low", low.float(), counted)
        meter.add_masked("clip_fraction_high", high.float(), counted)
    if batch.first:
        # The policy has not moved yet, and the old ones may be the sampler's own.
        gap = (logprobs - batch.sampler_logprobs).abs()
        meter.add_masked("sampler_mismatch", gap, own)
    return moved


def ratio_of(row: Algorithm, tokens: Tokens) -> Tensor:
    """What the row clips: an answer's ratio, or a token's."""
    return tokens.sequence_ratio.detach() if row.policy_loss == "gspo" else tokens.ratio.detach()


def _clipped(row: Algorithm, tokens: Tokens) -> Tensor:
    """Tokens whose gradient is clipped away, or in CISPO their weight; none where the row's loss has no bounds."""
    if row.policy_loss not in BOUNDED:
        return torch.zeros_like(tokens.mask)
    low, high = clipped(ratio_of(row, tokens), tokens.advantages, row.clip_low, row.clip_high)
    return (low | high) & tokens.mask
