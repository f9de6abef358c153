"""The first half of a rollout: prompts are answered and judged. Each rank plays its share; all know what all earned.

Nothing here looks at weights or tokens' log-probabilities; that is `rl/measuring.py`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cutaway.data.hashing import derive_key
from cutaway.rl.environment import Episode, Limits, PolicySampler, ToolboxOf, play
from cutaway.rl.meter import Meter
from cutaway.rl.policy import ActorCritic, Reference
from cutaway.rl.prompts import Prompt
from cutaway.rl.rewards import Rewards, Scored
from cutaway.rl.value_tracker import Tracker
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.network import Network


@dataclass
class Group:
    """The answers to one prompt."""

    prompt: Prompt
    rewards: list[float] = field(default_factory=list)
    """Of all its answers, on every rank."""
    outcomes: list[float] = field(default_factory=list)
    """What dynamic sampling compares (`rl/rewards.py` `Scored`), likewise."""
    episodes: list[Episode] = field(default_factory=list)
    """On the rank that played them; elsewhere none."""


@dataclass
class Players:
    """Who takes part in a rollout."""

    network: Network
    actor: ActorCritic
    engine: PolicySampler
    tokenizer: Tokenizer
    rewards: Rewards
    reference: Reference | None
    tracker: Tracker | None
    toolbox_of: ToolboxOf
    limits: Limits


def play_groups(
    players: Players, chosen: Sequence[Prompt], size: int, temperature: float, keys: tuple[int, ...], meter: Meter
) -> list[Group]:
    """Let this rank's share of the prompts be answered, `size` times each, judge it, and exchange what was earned.

    An answer draws by `keys`, its prompt's place and its number, so it is the same with any number of ranks.
    """
    ranks, began = players.network.ranks, time.monotonic()
    groups = [Group(prompt) for prompt in chosen]
    for place in range(ranks.rank, len(chosen), ranks.world):
        seeds = [derive_key(*keys, place, number) for number in range(size)]
        groups[place].episodes = [Episode(chosen[place], seed) for seed in seeds]
    mine = [episode for group in groups for episode in group.episodes]
    play(players.engine, players.tokenizer, mine, players.limits, temperature, players.toolbox_of)
    scored = players.rewards.score(mine)
    note(meter, mine, scored, time.monotonic() - began)
    for rank, (totals, outcomes) in enumerate(ranks.gather([scored.totals, scored.outcomes])):
        for number, place in enumerate(range(rank, len(chosen), ranks.world)):
            part = slice(number * size, (number + 1) * size)
            groups[place].rewards, groups[place].outcomes = totals[part], outcomes[part]
    return groups


def note(meter: Meter, episodes: Sequence[Episode], scored: Scored, seconds: float) -> None:
    """Measure what was written and earned."""
    count = len(episodes)
    judged = [value for value in scored.totals if not math.isnan(value)]
    meter.add("reward", sum(judged), len(judged))
    meter.add("reward_square", sum(value * value for value in judged), len(judged))
    for name, values in scored.parts.items():
        finite = [value for value in values if math.isfinite(value)]
        meter.add(f"reward_{name}", sum(finite), len(finite))
    for episode, ok in zip(episodes, scored.solved, strict=True):
        if ok is not None:
            meter.add("success", float(ok))
            if episode.prompt.level:
                meter.add(f"success_level_{episode.prompt.level}", float(ok))
    lengths = [sum(episode.own) for episode in episodes]
    meter.add("response_length", sum(lengths), count)
    meter.add("truncated", sum(episode.truncated for episode in episodes), count)
    meter.add("turns", sum(episode.turns for episode in episodes), count)
    results = [result for episode in episodes for result in episode.results]
    meter.add("tool_errors", sum(not result.ok for result in results), len(results))
    meter.add("empty", sum(episode.empty for episode in episodes), count)
    meter.add("unjudged", scored.unjudged, count)
    meter.add("verifier_raised", scored.raised, count)
    meter.add("rollout_tokens_per_second", sum(lengths) * meter.ranks.world, seconds)  # ranks write side by side
