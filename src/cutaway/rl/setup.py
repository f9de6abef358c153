"""From settings to what an RL stage works with: the row of the table, prompts, rewards, trackers."""

import dataclasses
import logging
import math
import os
from typing import Any

from cutaway.data.hashing import derive_key, keyed_order
from cutaway.errors import UserError
from cutaway.model.reward import load_reward_model
from cutaway.recipe.recipe import RunSettings
from cutaway.recipe.rl import AgentSettings, PPOSettings, RLSettings
from cutaway.rl.algorithms import ALGORITHMS, BOUNDED, Algorithm, check_algorithm
from cutaway.rl.prompts import Prompt, read_prompts
from cutaway.rl.rewards import Rewards, ScoreDialogues, split_weight
from cutaway.rl.rollout import side_by_side
from cutaway.rl.scorers import Judge, RewardScorer
from cutaway.rl.value_tracker import GlobalTracker, Tracker, ValueTracker
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import Rule
from cutaway.training.distributed import Ranks
from cutaway.training.network import Network
from cutaway.training.plan import tokens_that_fit
from cutaway.training.precision import device_memory
from cutaway.training.preparation import check_settings

log = logging.getLogger("cutaway")
COLUMNS = {
    "prompt_sampling": "prompts",
    **{name: name for name in ("advantage", "policy_loss", "kl", "kl_estimator", "beta", "aggregation")},
    **{name: name for name in ("clip_low", "clip_high", "dual_clip", "mask_truncated", "group_size")},
}
"""Settings that change a column of the algorithm's row."""
UNUSED = {
    "batch_tokens": None,
    "z_loss": 0,
    "tokens": None,
    "overfit_one_batch": False,
    "dropout": 0,
    "sample_every": 0,
    "scripts": "keep",
    "compile": "off",
}
"""Settings of other stages that mean nothing here, and what they must be: with dropout, what is trained would not be
what answered, and a prompt in another script might not be what its verifier expects."""
AT_LEAST_ONE = (
    *("prompts_per_rollout", "minibatches", "rollout_epochs", "max_new_tokens", "resample_rounds", "slots"),
    "overlong_buffer",
)


def resolve(settings: RLSettings) -> tuple[Any, Algorithm, list[Rule]]:
    """The settings with nothing left open of the algorithm's row, that row, and where its values come from."""
    own = ALGORITHMS[getattr(settings, "algorithm")]  # noqa: B009 (every RL stage has one)
    check_settings(settings)
    for name, nothing in UNUSED.items():
        if getattr(settings, name) not in (None, "auto", nothing):
            raise UserError(f"{name} means nothing to an RL stage: leave it away")
    for name in AT_LEAST_ONE:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, must be at least 1")
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
    if row.advantage == "gae" and row.policy_loss == "gspo":
        raise UserError("policy loss gspo has one ratio an answer, and so no use for what gae credits each token with")
    check_algorithm(row, row.group_size)
    if settings.minibatches > (answers := settings.prompts_per_rollout * row.group_size):
        raise UserError(f"minibatches is {settings.minibatches}, but a rollout has only {answers} answers")
    changes = {name: getattr(row, column) for name, column in COLUMNS.items()}
    settings, more = _with_rewards(dataclasses.replace(settings, **changes), row)
    return settings, row, rules + more


def _with_rewards(settings: RLSettings, row: Algorithm) -> tuple[RLSettings, list[Rule]]:
    """The settings with the rewards that the row adds, and the buffer of the reward `overlong`."""
    named = {split_weight(entry)[0] for entry in settings.rewards}
    added = tuple(entry for entry in row.rewards if split_weight(entry)[0] not in named)
    rules = [Rule("rewards", entry, f"row {row.name}", row.paper) for entry in added]
    settings = dataclasses.replace(settings, rewards=(*settings.rewards, *added))
    if settings.overlong_buffer is None:
        buffer = max(1, round(settings.max_new_tokens * turns_of(settings) / 5))
        settings = dataclasses.replace(settings, overlong_buffer=buffer)
        if "overlong" in {split_weight(entry)[0] for entry in settings.rewards}:
            source = "arXiv 2503.14476, section 3.4: 4096 of 20480"
            rules.append(Rule("overlong_buffer", buffer, "a fifth of the longest answer", source))
    return settings, rules


def idle(settings: RLSettings, row: Algorithm) -> list[str]:
    """A sentence for every setting that is not as usual and does nothing beside the others."""
    rows_own, usual = ALGORITHMS[getattr(settings, "algorithm")], type(settings)()  # noqa: B009
    named = {split_weight(entry)[0] for entry in settings.rewards}
    cases = (
        (("beta", "kl_estimator"), row.kl != "none", "kl is none"),
        (("clip_low", "clip_high"), row.policy_loss in BOUNDED, f"{row.policy_loss} clips nothing"),
        (("dual_clip",), row.policy_loss == "ppo_clip", "it is a bound of ppo_clip"),
        (("drift_half", "reward_range"), row.advantage.startswith("tracked"), f"{row.advantage} has no tracker"),
        (("offline_samples",), row.advantage == "tracked", f"{row.advantage} has no tracker for each prompt"),
        (("resample_rounds",), row.prompts == "dynamic", f"prompts are drawn {row.prompts}"),
        (("holdout_tokens",), False, "holdout_prompts says how many prompts are kept out"),
        (("reward_model",), "reward_model" in named, "rewards do not name reward_model"),
        (("judge_url", "judge_model"), "judge" in named, "rewards do not name judge"),
    )
    found = []
    for names, counts, why in cases:
        for name in names:
            expected = getattr(rows_own, COLUMNS[name]) if name in COLUMNS else getattr(usual, name)
            if not counts and getattr(settings, name) != expected:
                found.append(f"{name} {getattr(settings, name)} does nothing: {why}")
    return found


def turns_of(settings: RLSettings) -> int:
    """Most answers of an episode."""
    return settings.turns if isinstance(settings, AgentSettings) else 1


def accumulation_of(settings: RLSettings, network: Network) -> int:
    """Micro-batches of an update, so that answers of the greatest length would fit one. A GPU's may fill half of what
    its memory has room for: the other half is for the engine, the reference and a value model."""
    assert settings.group_size is not None
    ranks, most = network.ranks, settings.micro_batch_tokens or side_by_side(network.ranks.device)
    answers = settings.prompts_per_rollout * settings.group_size / settings.minibatches / ranks.world
    if settings.micro_batch_tokens is None and ranks.device.type != "cpu":
        memory = min(ranks.gather(device_memory(ranks.device))) / 2
        most = tokens_that_fit(network.model, settings.row_length, network.dtype.itemsize, memory)
    return max(1, math.ceil(answers * settings.row_length / most))


def read_both(settings: RLSettings, run: RunSettings, tokenizer: Tokenizer) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and held out: those of --eval-data, or some of the training files, by the seed."""
    longest = settings.row_length - settings.max_new_tokens
    judged = any(split_weight(entry)[0] in ("verifier", "partial") for entry in settings.rewards)
    found = read_prompts(run.data, tokenizer, longest, settings.skip_bad, judged=judged)
    log.info("prompts: %d, %d left out since they are over %d tokens", len(found.usable), found.too_long, longest)
    if run.eval_data:
        return found.usable, read_prompts(run.eval_data, tokenizer, longest, settings.skip_bad).usable
    if not judged:
        return found.usable, []  # nothing says whether an answer to a held-out prompt would be right
    order = keyed_order(len(found.usable), derive_key(settings.seed, 1, len(found.usable)))
    held = {int(i) for i in order[: min(settings.holdout_prompts, len(order) // 2)]}
    heldout = [prompt for i, prompt in enumerate(found.usable) if i in held]
    return [prompt for i, prompt in enumerate(found.usable) if i not in held], heldout


def make_rewards(settings: RLSettings, tokenizer: Tokenizer, ranks: Ranks) -> Rewards:
    """The components that the settings name."""
    assert settings.overlong_buffer is not None
    scorers: dict[str, ScoreDialogues] = {}
    named = {split_weight(entry)[0] for entry in settings.rewards}
    if settings.reward_model and "reward_model" in named:
        model = load_reward_model(settings.reward_model, ranks.device)
        if Tokenizer.load(settings.reward_model).fingerprint != tokenizer.fingerprint:
            raise UserError(f"{settings.reward_model}: the reward model has another tokenizer than the policy")
        scorers["reward_model"] = RewardScorer(model, tokenizer)
    if settings.judge_url and "judge" in named:
        scorers["judge"] = Judge(settings.judge_url, settings.judge_model, os.environ.get("OPENAI_API_KEY"))
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
