"""Rewards: what an answer earns, as a weighted sum of components that are logged apart.

    --rewards verifier=1 repetition=0.5 my.py:fn=0.2

A component looks at whole episodes and gives one number each; NaN where it cannot judge. An answer that any component
could not judge has no reward: it is counted, named in the log, and not trained on.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cutaway.errors import UserError
from cutaway.rl.custom import is_custom, load_function
from cutaway.rl.environment import NAMED_IN_LOG, Episode
from cutaway.rl.sandbox import check, passes_tests
from cutaway.tokenization.messages import Message
from cutaway.verifiers.record import can_be_judged, judge
from cutaway.verifiers.table import VERIFIERS, Verifier
from cutaway.verifiers.verdict import Verdict

log = logging.getLogger("cutaway")
Component = Callable[[Sequence[Episode]], list[float]]
ScoreDialogues = Callable[[Sequence[Sequence[Message]]], list[float]]
"""A reward model or a judge: dialogues that end with an answer to one number each."""
NEEDS = {"reward_model": "--reward-model DIR", "judge": "--judge-url URL"}
"""Components that are made by a setting of their own."""


@dataclass(frozen=True)
class Reward:
    """One component and its weight."""

    name: str
    weight: float
    component: Component


@dataclass(frozen=True)
class Scored:
    """What a rollout earned."""

    totals: list[float]
    """The weighted sums; NaN where any component could not judge."""
    outcomes: list[float]
    """What the verifier's part of them is, where it counts, else the sums: what dynamic sampling compares."""
    parts: dict[str, list[float]]
    """Each component before its weight."""
    solved: list[bool | None]
    """What the record's verifier says, whatever the rewards are made of; None where it raised, or a record has none."""
    unjudged: int
    raised: int
    """Verifiers that raised, of these."""


def verified(verdicts: Sequence[Verdict]) -> list[float]:
    """1 where the answer holds, 0 where it does not; NaN where the verifier itself raised."""
    return [math.nan if verdict.raised else float(verdict.ok) for verdict in verdicts]


def partial(verdicts: Sequence[Verdict]) -> list[float]:
    """The verifier's score in [0, 1]: credit for an answer that holds in part."""
    return [math.nan if verdict.raised else verdict.score for verdict in verdicts]


def ended(episodes: Sequence[Episode]) -> list[float]:
    """1 where the answer ended by itself and no tag of its format is left over in what the user sees, else 0."""
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    return [
        float(episode.ending == "answered" and not any(tag in episode.text for tag in tags)) for episode in episodes
    ]


def brevity(longest: int) -> Component:
    """Minus the share of `longest` that the answer took: a price for every token."""
    return lambda episodes: [-len(episode.own_ids) / longest for episode in episodes]


def overlong(longest: int, buffer: int) -> Component:
    r"""DAPO's soft penalty (arXiv 2503.14476, equation 13): 0 up to $L_{max} - L_{cache}$ tokens, then falling to -1 at
    $L_{max}$, so that an answer learns to end before it is cut off."""

    def penalty(episodes: Sequence[Episode]) -> list[float]:
        return [max(-1.0, min(0.0, (longest - buffer - len(episode.own_ids)) / buffer)) for episode in episodes]

    return penalty


def repetition(episodes: Sequence[Episode], size: int = 4) -> list[float]:
    """Minus the share of an answer's runs of `size` tokens that occurred in it before: 0 to -1."""
    found = []
    for episode in episodes:
        ids = episode.own_ids
        runs = Counter(tuple(ids[i : i + size]) for i in range(len(ids) - size + 1))
        found.append(-(1 - len(runs) / total) if (total := runs.total()) else 0.0)
    return found


def tool_success(episodes: Sequence[Episode]) -> list[float]:
    """Share of an episode's calls that a tool answered without an error; 0 without calls."""
    return [
        sum(result.ok for result in episode.results) / len(episode.results) if episode.results else 0.0
        for episode in episodes
    ]


def scored_by(score: ScoreDialogues) -> Component:
    """What a reward model or a judge says of the whole dialogue."""
    return lambda episodes: score([[*episode.record["conversations"], *episode.said] for episode in episodes])


class Rewards:
    """The components of a stage."""

    def __init__(
        self,
        wanted: Sequence[str],
        *,
        new_tokens: int,
        overlong_buffer: int,
        scorers: Mapping[str, ScoreDialogues] | None = None,
        verifiers: Mapping[str, Verifier] = VERIFIERS,
    ) -> None:
        """`wanted` is a list of `NAME=WEIGHT`, the weight 1 where it is left out. `scorers` are further components by
        name, such as a reward model. UserError for a name that is not known, or stands there twice: what is logged
        under one name must be one component."""
        self.verifiers = verifiers
        simple: dict[str, Component] = {
            "format": ended,
            "length": brevity(new_tokens),
            "overlong": overlong(new_tokens, overlong_buffer),
            "repetition": repetition,
            "tools": tool_success,
            "code": passes_tests,
        }
        simple |= {name: scored_by(score) for name, score in (scorers or {}).items()}
        self.judges: dict[str, float] = {}
        self.rewards: list[Reward] = []
        known = ("verifier", "partial", *simple)
        seen: set[str] = set()
        for entry in wanted:
            name, weight = split_weight(entry)
            called = name.rpartition(":")[2] if is_custom(name) else name
            if called in seen or (is_custom(name) and called in known):
                raise UserError(f"rewards has two named {called}: a name stands for one component")
            seen.add(called)
            if name in ("verifier", "partial"):
                self.judges[name] = weight
            elif is_custom(name):
                self.rewards.append(Reward(called, weight, load_function(name)))
            elif name in simple:
                if name == "code":
                    check()
                self.rewards.append(Reward(name, weight, simple[name]))
            elif name in NEEDS:
                raise UserError(f"reward {name} needs {NEEDS[name]}")
            else:
                raise UserError(f"no reward '{name}' (known: {', '.join((*known, *NEEDS))}, or file.py:function)")
        if not self.rewards and not self.judges:
            raise UserError("rewards is empty: name at least one, such as verifier")

    def score(self, episodes: Sequence[Episode]) -> Scored:
        """What each episode earned. A component that raises, or gives back something else than one number each, has
        judged none of them."""
        verdicts = [self._verdict(episode) for episode in episodes]
        parts = {name: (verified if name == "verifier" else partial)(verdicts) for name in self.judges}
        weights = dict(self.judges)
        for reward in self.rewards:
            parts[reward.name], weights[reward.name] = _guarded(reward, episodes), reward.weight

        def weighed(names: Sequence[str]) -> list[float]:
            sums = [sum(weights[name] * parts[name][i] for name in names) for i in range(len(episodes))]
            return [value if math.isfinite(value) else math.nan for value in sums]

        totals = weighed([*parts])
        outcomes = weighed(counted) if (counted := [name for name in self.judges if weights[name]]) else totals
        unjudged = [i for i, value in enumerate(totals) if math.isnan(value)]
        for i in unjudged[:NAMED_IN_LOG]:
            bad = ", ".join(name for name, values in parts.items() if not math.isfinite(values[i]))
            log.warning("%s: no reward (%s: %s)", episodes[i].prompt.id, bad, verdicts[i].reason)
        solved = [
            verdict.ok if can_be_judged(episode.record) and not verdict.raised else None
            for episode, verdict in zip(episodes, verdicts, strict=True)
        ]
        return Scored(totals, outcomes, parts, solved, len(unjudged), sum(verdict.raised for verdict in verdicts))

    def _verdict(self, episode: Episode) -> Verdict:
        if not can_be_judged(episode.record):
            return Verdict(False, "the record has no verifier", 0.0, raised="verifier" in self.judges)
        return judge(episode.record, episode.said, self.verifiers)


def split_weight(entry: str) -> tuple[str, float]:
    """Name and weight of `NAME=WEIGHT`, or of a name alone; an `=` that no number follows is part of the name."""
    name, equals, text = entry.rpartition("=")
    try:
        weight = float(text) if equals else 1.0
    except ValueError:
        return entry, 1.0
    if not math.isfinite(weight):
        raise UserError(f"rewards: the weight of {name} is {text}, must be a number")
    return (name if equals else entry), weight


def _guarded(reward: Reward, episodes: Sequence[Episode]) -> list[float]:
    try:
        values = [float(value) for value in reward.component(episodes)]
        if len(values) != len(episodes):
            raise ValueError(f"{len(values)} rewards for {len(episodes)} answers")
        return values
    except Exception as error:
        log.warning("reward %s raised %s: %s", reward.name, type(error).__name__, str(error)[:200])
        return [math.nan] * len(episodes)
