"""What the RL stages share: from prompts to the loop, in the order it happens. `step` is the whole loss.

The algorithm is a row of `rl/algorithms.py`, the rollouts are `rl/source.py`, the equations `objectives/`.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutaway.data.hashing import derive_key, keyed_order
from cutaway.errors import UserError
from cutaway.evals.verified import answer_records
from cutaway.generation.engine import Engine
from cutaway.model.reward import RewardModel, load_reward_model
from cutaway.objectives.aggregation import divisor, total
from cutaway.objectives.kl import kl
from cutaway.objectives.policy import Tokens, clipped, importance_weight
from cutaway.objectives.value import value_loss
from cutaway.recipe import AgentSettings, PPOSettings, Recipe, RLSettings, RunSettings
from cutaway.rl.algorithms import ALGORITHMS, Algorithm, check_algorithm, coincidences, policy_loss
from cutaway.rl.dump import token_rows, write_dump
from cutaway.rl.environment import Limits, ToolboxOf
from cutaway.rl.meter import Meter
from cutaway.rl.policy import ActorCritic, Reference, value_model
from cutaway.rl.prompts import Prompt, read_prompts
from cutaway.rl.rewards import Rewards, ScoreDialogues
from cutaway.rl.rollout import Minibatch
from cutaway.rl.scorers import Judge, RewardScorer
from cutaway.rl.source import Players, RolloutSource
from cutaway.rl.value_tracker import GlobalTracker, Tracker, ValueTracker
from cutaway.stages import shared
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.card import write_card
from cutaway.training.curves import draw_curves
from cutaway.training.derive import Rule
from cutaway.training.distributed import Ranks, joined_ranks
from cutaway.training.horizon import RESERVE
from cutaway.training.loop import Job, Step, fit
from cutaway.training.metrics import matmul_rate, synchronise
from cutaway.training.network import Network
from cutaway.training.precision import autocast
from cutaway.training.preparation import check_settings, optimizers_of
from cutaway.training.progress import print_tokens

log = logging.getLogger("cutaway")
EVALUATIONS, CHECKPOINTS = 5, 10
"""Of a run, where the settings do not say."""
NOTHING = 1e-9
"""Divisor of a micro-batch in which no token is trained, so that its gradient is 0 and the run goes on."""
COLUMNS = {
    "prompt_sampling": "prompts",
    **{name: name for name in ("advantage", "policy_loss", "kl", "kl_estimator", "beta", "aggregation")},
    **{name: name for name in ("clip_low", "clip_high", "dual_clip", "mask_truncated", "group_size")},
}
"""Settings that change a column of the algorithm's row."""
UNUSED = ("batch_tokens", "z_loss", "tokens", "overfit_one_batch")
"""Settings of other stages that mean nothing here."""


def train(stage: str, recipe: Recipe, run: RunSettings, toolbox_of: ToolboxOf = lambda record: None) -> Path:
    """Run an RL stage; gives back the run directory. `toolbox_of` are the environments of records that have one."""
    started = time.monotonic()
    out = shared.prepare_out(run)
    settings, row, rules = resolve(getattr(recipe, stage))
    if not run.data:
        raise UserError("--data is missing: the prompts")
    with joined_ranks() as ranks:
        model, tokenizer = shared.start_model(run, settings)
        network = shared.build_network(model, settings, ranks)
        if settings.prompts_per_rollout % ranks.world:
            raise UserError(f"prompts_per_rollout {settings.prompts_per_rollout} is no multiple of {ranks.world} ranks")
        training, heldout = read_both(settings, run, tokenizer)
        critic = make_critic(network, row)
        actor = ActorCritic(model, settings.temperature, critic)
        network.local = network.module = actor
        players = Players(
            network,
            actor,
            Engine(model, tokenizer, settings.slots, settings.row_length, network.dtype, frozen=True),
            tokenizer,
            make_rewards(settings, tokenizer, ranks),
            Reference(model) if row.needs_reference else None,
            make_tracker(settings, row),
            toolbox_of,
            Limits(settings.max_new_tokens, settings.row_length, turns_of(settings)),
        )
        meter, drift = Meter(ranks), Drift(ranks, settings.target_kl)
        accumulation = accumulation_of(settings, ranks)
        overrun = drift.overrun if settings.target_kl else None
        source = RolloutSource(players, training, row, settings, meter, accumulation, overrun)
        step = make_step(players, row, settings, meter, drift, out)
        evaluate = make_evaluation(players, heldout, settings, source) if heldout else None
        optimizers = make_optimizers(network, critic, settings)
        if not run.resume:
            source.begin(settings.offline_samples)
        settings, more = fix_steps(settings, source, step, len(heldout), ranks, started)
        rules += more
        recipe = dataclasses.replace(shared.with_shape(recipe, model), **{stage: settings})
        if ranks.first:
            for line in (*rules, *coincidences(row, source.updates, source.size)):
                log.info("%s: %s", "derived" if isinstance(line, Rule) else "note", line)
            log.info("algorithm: %s", row)
        network.wrap()
        job = Job(
            stage=stage,
            out=out,
            settings=settings,
            total_steps=settings.steps or 0,
            accumulation=accumulation,
            network=network,
            source=source,
            optimizers=optimizers,
            step=step,
            normalizer=lambda batch: (
                divisor(batch.mask, row.aggregation, batch.answers, settings.max_new_tokens) or NOTHING
            ),
            flops_per_token=model.flops_per_token(settings.row_length),
            matmul_rate=matmul_rate(ranks.device, network.dtype),
            evaluate=evaluate,
            scaler=torch.amp.GradScaler(ranks.device.type) if network.dtype == torch.float16 else None,
            started=started,
            begin=lambda: shared.write_description(out, stage, model, tokenizer, recipe, run),
            companions={} if critic is None else {"critic": critic},
            report=lambda: finished(meter.report(), source),
            at_boundary=lambda: source.at_boundary,
        )
        torch.manual_seed(settings.seed)
        fit(job, run.resume)
        if ranks.first:
            draw_curves(out, out / "curves.png")
            write_card(out)
    return out


def make_step(players: Players, row: Algorithm, settings: RLSettings, meter: Meter, drift: "Drift", out: Path) -> Step:
    """The step of the loop: a minibatch to the sum of its loss."""
    loss_of, network, dumped = policy_loss(row), players.network, [not settings.dump_tokens]

    def step(batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(network.ranks.device, network.dtype):
            logprobs, entropy, values = network.module(batch.input_ids, batch.targets, batch.own)
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
        if not dumped[0] and network.ranks.first and (not batch.first or settings.minibatches == 1):
            dumped[0] = True
            rows = token_rows(batch, tokens, per_token, _clipped(row, tokens), players.tokenizer, settings.dump_tokens)
            print_tokens(write_dump(rows, out))
        return loss, {}

    return step


def measure_step(
    meter: Meter, row: Algorithm, tokens: Tokens, entropy: Tensor, batch: Minibatch, per_token: Tensor
) -> Tensor:
    """What an update shows of the policy; gives back its distance from the policy that answered, a token."""
    mask, logprobs = batch.mask, tokens.logprobs.detach()
    meter.add_masked("policy_loss", per_token.detach(), mask)
    meter.add_masked("entropy", entropy, batch.own)
    moved = kl(tokens.old_logprobs, logprobs)
    meter.add_masked("kl_old_k3", moved, mask)
    if batch.ref_logprobs is not None:
        meter.add_masked("kl_ref_k1", kl(logprobs, batch.ref_logprobs, "k1"), batch.own)
        meter.add_masked("kl_ref_k3", kl(logprobs, batch.ref_logprobs, "k3"), batch.own)
    meter.add_histogram(tokens.ratio.detach(), mask)
    if row.policy_loss in ("ppo_clip", "cispo", "gspo"):
        low, high = clipped(ratio_of(row, tokens), tokens.advantages, row.clip_low, row.clip_high)
        meter.add_masked("clip_fraction_low", low.float(), mask)
        meter.add_masked("clip_fraction_high", high.float(), mask)
    if batch.first:
        gap = (tokens.old_logprobs - batch.sampler_logprobs).abs()
        meter.add_masked("sampler_mismatch", gap, batch.own)
    return moved


def ratio_of(row: Algorithm, tokens: Tokens) -> Tensor:
    """What the row clips: an answer's ratio, or a token's."""
    return tokens.sequence_ratio.detach() if row.policy_loss == "gspo" else tokens.ratio.detach()


def _clipped(row: Algorithm, tokens: Tokens) -> Tensor:
    low, high = clipped(ratio_of(row, tokens), tokens.advantages, row.clip_low, row.clip_high)
    return (low | high) & tokens.mask


class Drift:
    """How far the policy is from the one that answered, over the updates of a rollout, on all ranks."""

    def __init__(self, ranks: Ranks, target: float) -> None:
        self.ranks, self.target, self.sums = ranks, target, [0.0, 0.0]

    def add(self, batch: Minibatch, moved: Tensor) -> None:
        """Take notice of a micro-batch; a rollout's first update begins anew."""
        if not self.target:
            return
        if batch.first:
            self.sums = [0.0, 0.0]
        self.sums = [self.sums[0] + float(moved[batch.mask].sum()), self.sums[1] + float(batch.mask.sum())]

    def overrun(self) -> bool:
        """Whether the last update was made further than `target` nats a token away; asked once an update."""
        moved, count = self.ranks.sum_all(self.sums)
        self.sums = [0.0, 0.0]
        return moved > self.target * max(1.0, count)


# Settings


def resolve(settings: RLSettings) -> tuple[Any, Algorithm, list[Rule]]:
    """The settings with nothing left open of the algorithm's row, that row, and where its values come from."""
    own = ALGORITHMS[getattr(settings, "algorithm")]  # noqa: B009 (every RL stage has one)
    check_settings(settings)
    for name in UNUSED:
        if getattr(settings, name):
            raise UserError(f"{name} means nothing to an RL stage: leave it away")
    for name, least in (("prompts_per_rollout", 1), ("minibatches", 1), ("rollout_epochs", 1), ("max_new_tokens", 1)):
        if getattr(settings, name) < least:
            raise UserError(f"{name} is {getattr(settings, name)}, must be at least {least}")
    if not settings.temperature > 0:
        raise UserError(f"temperature is {settings.temperature}, must be above 0: greedy answers teach nothing")
    if settings.row_length <= settings.max_new_tokens:
        raise UserError(
            f"row_length {settings.row_length} leaves no room for a prompt before {settings.max_new_tokens} tokens"
        )
    if not settings.reward_range[0] < settings.reward_range[1]:
        raise UserError(f"reward_range is {settings.reward_range}: the first number must be the smaller one")
    given = {column: getattr(settings, name) for name, column in COLUMNS.items()}
    row = own.with_values(**given)
    rules = []
    for name, column in COLUMNS.items():
        if getattr(settings, name) is None and getattr(row, column) is not None:
            rules.append(Rule(name, getattr(row, column), f"row {own.name}", own.paper))
    if row.advantage == "gae" and not isinstance(settings, PPOSettings):
        raise UserError("advantage gae needs the value model of cutaway ppo")
    if isinstance(settings, PPOSettings) and row.advantage != "gae":
        raise UserError("cutaway ppo has a value model, and so the advantage gae; cutaway grpo has the others")
    check_algorithm(row, row.group_size)
    changes = {name: getattr(row, column) for name, column in COLUMNS.items()}
    return dataclasses.replace(settings, **changes), row, rules


def turns_of(settings: RLSettings) -> int:
    """Most answers of an episode."""
    return settings.turns if isinstance(settings, AgentSettings) else 1


def accumulation_of(settings: RLSettings, ranks: Ranks) -> int:
    """Micro-batches of an update, so that answers of the greatest length would fit one."""
    assert settings.group_size is not None
    answers = settings.prompts_per_rollout * settings.group_size / settings.minibatches / ranks.world
    most = settings.micro_batch_tokens or (16384 if ranks.device.type == "cpu" else 65536)
    return max(1, math.ceil(answers * settings.row_length / most))


def read_both(settings: RLSettings, run: RunSettings, tokenizer: Tokenizer) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and held out: those of --eval-data, or some of the training files, by the seed."""
    longest = settings.row_length - settings.max_new_tokens
    judged = any(entry.split("=")[0] in ("verifier", "partial") for entry in settings.rewards)
    found = read_prompts(run.data, tokenizer, longest, settings.skip_bad, judged=judged)
    log.info("prompts: %d, %d left out since they are over %d tokens", len(found.usable), found.too_long, longest)
    if run.eval_data:
        return found.usable, read_prompts(run.eval_data, tokenizer, longest, settings.skip_bad).usable
    order = keyed_order(len(found.usable), derive_key(settings.seed, 1, len(found.usable)))
    held = {int(i) for i in order[: min(settings.holdout_prompts, len(order) // 2)]}
    heldout = [prompt for i, prompt in enumerate(found.usable) if i in held]
    return [prompt for i, prompt in enumerate(found.usable) if i not in held], heldout if judged else []


def make_rewards(settings: RLSettings, tokenizer: Tokenizer, ranks: Ranks) -> Rewards:
    """The components that the settings name."""
    scorers: dict[str, ScoreDialogues] = {}
    if settings.reward_model:
        scorers["reward_model"] = RewardScorer(load_reward_model(settings.reward_model, ranks.device), tokenizer)
    if settings.judge_url:
        scorers["judge"] = Judge(settings.judge_url, settings.judge_model)
    return Rewards(
        settings.rewards,
        new_tokens=settings.max_new_tokens * turns_of(settings),
        overlong_buffer=settings.overlong_buffer,
        scorers=scorers,
    )


def make_tracker(settings: RLSettings, row: Algorithm) -> Tracker | None:
    """SPO's tracker, or MiniMind's, where the row's advantage is made of one."""
    if row.advantage == "tracked":
        return ValueTracker(settings.drift_half)
    return GlobalTracker(settings.drift_half) if row.advantage == "tracked_global" else None


def make_critic(network: Network, row: Algorithm) -> RewardModel | None:
    """PPO's value model, on the device."""
    return value_model(network.model).to(network.ranks.device) if row.advantage == "gae" else None


def make_optimizers(network: Network, critic: nn.Module | None, settings: RLSettings) -> list[Optimizer]:
    """The policy's, and the value model's with a learning rate of its own."""
    optimizers = optimizers_of(network.model, settings, network.dtype)
    if critic is not None and isinstance(settings, PPOSettings):
        own = dataclasses.replace(settings, adam_lr=settings.value_lr, optimizer="adamw")
        optimizers += optimizers_of(critic, own, network.dtype)
    return optimizers


# Measuring


def make_evaluation(
    players: Players, heldout: Sequence[Prompt], settings: RLSettings, source: RolloutSource
) -> Callable[[], dict[str, float]]:
    """Greedy success on held-out prompts, of each level too; every rank answers its share."""
    ranks, levels = players.network.ranks, sorted({prompt.level for prompt in heldout} - {""})
    mine = [prompt.record for prompt in heldout[ranks.rank :: ranks.world]]
    of_mine = [prompt.level for prompt in heldout[ranks.rank :: ranks.world]]

    def evaluate() -> dict[str, float]:
        began = time.monotonic()
        players.engine.refresh()
        answered = answer_records(players.engine, mine, players.toolbox_of, settings.max_new_tokens)
        flags = [one.ok for one in answered]
        sums = [float(sum(flags)), float(len(flags))]
        for level in levels:
            chosen = [ok for ok, own in zip(flags, of_mine, strict=True) if own == level]
            sums += [float(sum(chosen)), float(len(chosen))]
        sums = ranks.sum_all(sums)
        names = ["success", *(f"success_level_{level}" for level in levels)]
        source.idle_s += time.monotonic() - began
        return {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(names)}

    return evaluate


def finished(means: dict[str, float], source: RolloutSource) -> dict[str, float]:
    """The means of a log line, deviations in place of mean squares, and what is counted over the whole run."""
    for name, mean in (("reward", "reward"), ("advantage", "advantage_mean")):
        square = means.pop(f"{name}_square", None)
        if square is not None and mean in means:
            means[f"{name}_std"] = math.sqrt(max(0.0, square - means[mean] ** 2))
    return means | {"rollouts": float(source.rollouts), "rollout_tokens": float(source.rollout_tokens)}


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
