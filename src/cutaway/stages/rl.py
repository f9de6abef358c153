"""What the RL stages share: from prompts to the loop, in the order it happens.

The algorithm is a row of `rl/algorithms.py`, the rollouts are `rl/source.py`, the whole loss is `rl/update.py`
`make_step`, the equations are `objectives/`.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.optim import Optimizer

from cutaway.errors import UserError
from cutaway.generation.engine import Engine
from cutaway.model.reward import RewardModel
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.rl import PPOSettings, RLSettings
from cutaway.rl.algorithms import Algorithm, coincidences
from cutaway.rl.drift import Drift
from cutaway.rl.environment import Episode, Limits, PolicySampler, ToolboxOf, check_environments, play
from cutaway.rl.horizon import fix_steps
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Players
from cutaway.rl.policy import ActorCritic, Reference, value_model
from cutaway.rl.prompts import Prompt
from cutaway.rl.served import ServedPolicy
from cutaway.rl.setup import accumulation_of, idle, make_rewards, make_tracker, read_both, resolve, turns_of
from cutaway.rl.source import RolloutSource
from cutaway.rl.troubles import Troubles
from cutaway.rl.update import divisor_of, make_step
from cutaway.stages import shared
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.card import write_card
from cutaway.training.curves import draw_curves
from cutaway.training.derive import Rule
from cutaway.training.distributed import joined_ranks
from cutaway.training.loop import Job, fit
from cutaway.training.metrics import matmul_rate
from cutaway.training.network import Network
from cutaway.training.preparation import optimizers_of
from cutaway.verifiers.record import judge

log = logging.getLogger("cutaway")


def train(stage: str, recipe: Recipe, run: RunSettings, toolbox_of: ToolboxOf = lambda record: None) -> Path:
    """Run an RL stage; gives back the run directory. `toolbox_of` are the environments of records that have one."""
    started = time.monotonic()
    out = shared.prepare_out(run)
    settings, row, rules = resolve(getattr(recipe, stage))
    if not run.data:
        raise UserError("--data is missing: the prompts")
    with joined_ranks() as ranks:
        model, tokenizer = shared.start_model(run, settings)
        if stage == "agent" and not tokenizer.is_native:
            raise UserError(
                f"{run.init}: its chat template is not Cutaway's, and tool turns are written in that format"
            )
        network = shared.build_network(model, settings, ranks)
        if settings.prompts_per_rollout % ranks.world:
            raise UserError(f"prompts_per_rollout {settings.prompts_per_rollout} is no multiple of {ranks.world} ranks")
        training, heldout = read_both(settings, run, tokenizer)
        check_environments([*training, *heldout], toolbox_of)
        critic = make_critic(network, row)
        actor = ActorCritic(model, settings.temperature, critic)
        network.local = network.module = actor
        players = Players(
            network,
            actor,
            make_sampler(network, tokenizer, settings, out),
            tokenizer,
            make_rewards(settings, tokenizer, ranks),
            Reference(model) if row.needs_reference else None,
            make_tracker(settings, row),
            toolbox_of,
            Limits(settings.max_new_tokens, settings.row_length, turns_of(settings)),
        )
        meter, drift, troubles = Meter(ranks), Drift(ranks, settings.target_kl), Troubles()
        accumulation, weigh = accumulation_of(settings, network), divisor_of(row, settings)
        overrun = drift.overrun if settings.target_kl else None
        source = RolloutSource(players, training, row, settings, meter, accumulation, overrun)
        step = make_step(players, row, settings, weigh, meter, drift, out)
        evaluate = make_evaluation(players, heldout, source) if heldout else None
        optimizers = make_optimizers(network, critic, settings)
        if not run.resume:
            source.begin(settings.offline_samples)
        settings, more = fix_steps(settings, source, step, len(heldout), ranks, started)
        rules += more
        recipe = dataclasses.replace(shared.with_shape(recipe, model), **{stage: settings})
        if ranks.first:
            for line in (*rules, *idle(settings, row), *coincidences(row, source.updates, source.size)):
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
            normalizer=weigh,
            flops_per_token=model.flops_per_token(settings.row_length),
            matmul_rate=matmul_rate(ranks.device, network.dtype),
            evaluate=evaluate,
            scaler=torch.amp.GradScaler(ranks.device.type) if network.dtype == torch.float16 else None,
            started=started,
            begin=lambda: shared.write_description(out, stage, model, tokenizer, recipe, run),
            companions={} if critic is None else {"critic": critic},
            report=lambda: finished(meter.report(), source, troubles),
            at_boundary=source.used_up,
        )
        torch.manual_seed(settings.seed)
        fit(job, run.resume)
        if ranks.first:
            draw_curves(out, out / "curves.png")
            write_card(out)
    return out


def make_sampler(network: Network, tokenizer: Tokenizer, settings: RLSettings, out: Path) -> PolicySampler:
    """The engine here, on a copy of the weights, or a server that is handed them."""
    if settings.sampler_url:
        at, dialect = settings.sampler_url, settings.sampler_dialect
        return ServedPolicy(network.model, tokenizer, out / "served", at, network.ranks, settings.slots, dialect)
    return Engine(network.model, tokenizer, settings.slots, settings.row_length, network.dtype, frozen=True)


def make_critic(network: Network, row: Algorithm) -> RewardModel | None:
    """PPO's value model, on the device."""
    return value_model(network.model).to(network.ranks.device) if row.advantage == "gae" else None


def make_optimizers(network: Network, critic: RewardModel | None, settings: RLSettings) -> list[Optimizer]:
    """The policy's, and the value model's with a learning rate of its own."""
    optimizers = optimizers_of(network.model, settings, network.dtype)
    if critic is not None and isinstance(settings, PPOSettings):
        own = dataclasses.replace(settings, adam_lr=settings.value_lr, optimizer="adamw")
        optimizers += optimizers_of(critic, own, network.dtype)
    return optimizers


def make_evaluation(
    players: Players, heldout: Sequence[Prompt], source: RolloutSource
) -> Callable[[], dict[str, float]]:
    """Greedy success on held-out prompts, of each level too; every rank answers its share."""
    ranks, levels = players.network.ranks, sorted({prompt.level for prompt in heldout} - {""})

    def evaluate() -> dict[str, float]:
        began = time.monotonic()
        players.engine.refresh()
        episodes = [Episode(prompt, seed=0) for prompt in heldout[ranks.rank :: ranks.world]]
        play(players.engine, players.tokenizer, episodes, players.limits, 0.0, players.toolbox_of)
        verdicts = [(one.prompt.level, judge(one.record, one.said)) for one in episodes]
        flags = [(level, verdict.ok) for level, verdict in verdicts if not verdict.raised]
        sums = [float(sum(ok for _, ok in flags)), float(len(flags))]
        for level in levels:
            chosen = [ok for own, ok in flags if own == level]
            sums += [float(sum(chosen)), float(len(chosen))]
        sums = ranks.sum_all(sums)
        names = ["success", *(f"success_level_{level}" for level in levels)]
        source.idle_s += time.monotonic() - began
        return {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(names) if sums[2 * i + 1]}

    return evaluate


def finished(means: dict[str, float], source: RolloutSource, troubles: Troubles) -> dict[str, float]:
    """The means of a log line, deviations in place of mean squares, and what is counted over the whole run. A known
    trouble is named once."""
    for name, mean in (("reward", "reward"), ("advantage", "advantage_mean")):
        square = means.pop(f"{name}_square", None)
        if square is not None and mean in means:
            means[f"{name}_std"] = math.sqrt(max(0.0, square - means[mean] ** 2))
    if source.ranks.first:
        troubles.look(means)
    return means | {"rollouts": float(source.rollouts), "rollout_tokens": float(source.rollout_tokens)}
