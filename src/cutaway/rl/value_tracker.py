r"""What a prompt has earned so far: SPO's baseline without a group and without a value model.

For every prompt $x$ a Beta distribution over its success, $\hat v_x = \alpha_x / (\alpha_x + \beta_x)$ (Xu & Ding,
arXiv 2509.13232, section 3.1). Rewards are in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_REMEMBERED = 0.96
"""Largest forgetting factor: a memory of 25 answers."""


@dataclass
class Belief:
    """What is known of one prompt, and the last answer it got."""

    alpha: float
    beta: float
    ids: list[int] = field(default_factory=list)
    """Prompt and answer as tokens; empty before the first visit."""
    own: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the policy that wrote it, a token, as the trainer computes them; 0 for tokens that are not its own."""

    @property
    def value(self) -> float:
        r"""$\hat v_x$."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def answers(self) -> float:
        """How many answers the belief is worth."""
        return self.alpha + self.beta


@dataclass(frozen=True)
class Visit:
    """A prompt that was answered: its reward, NaN where it could not be judged, and the answer."""

    id: str
    reward: float
    drift: float | None
    r"""$D_x$: how far the policy has moved on the prompt's *previous* answer, in nats a token; None without one."""
    ids: Sequence[int]
    own: Sequence[bool]
    logprobs: Sequence[float]


class Tracker(Protocol):
    """Both trackers below."""

    def value(self, prompt: str) -> float: ...

    def previous(self, prompt: str) -> Belief | None: ...

    def update(self, visits: Sequence[Visit]) -> None: ...

    def metrics(self) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def forgetting(drift: float, half: float = 0.06, least: float = 0.875, most: float = MOST_REMEMBERED) -> float:
    r"""$\rho = \mathrm{clip}\bigl(2^{-D / D_{half}},\ \rho_{min},\ \rho_{max}\bigr)$ (section 3.1; authors' recipe).

    The further the policy has moved since it last answered a prompt, the less its old rewards say. A belief remembers
    about $1 / (1 - \rho)$ answers: 8 to 25 with these bounds.
    """
    return min(max(math.exp2(-drift / half), least), most)


def drift_of(before: Sequence[float], now: Sequence[float], own: Sequence[bool]) -> float:
    r"""$D = \mathrm{mean}_t\,|\log\pi_{prev}(o_t) - \log\pi_{now}(o_t)|$ over the policy's own tokens of one answer."""
    gaps = [abs(a - b) for a, b, mine in zip(before, now, own, strict=True) if mine]
    return sum(gaps) / len(gaps) if gaps else 0.0


class ValueTracker:
    r"""SPO's tracker: a belief for each prompt id.

    `start` takes answers that were sampled before training: with $n$ of them, $k$ right, and
    $N_0 = 1 / (1 - \rho_{min})$,

    $$\alpha = N_0 \frac{k + 0.5}{n + 1}, \qquad \beta = N_0 \frac{n - k + 0.5}{n + 1}$$

    A prompt that was not sampled starts at $\alpha = \beta = 0.5$. `update` forgets, then counts:
    $\alpha \leftarrow \rho \alpha + R,\ \beta \leftarrow \rho \beta + (1 - R)$.
    """

    def __init__(self, half: float = 0.06, least: float = 0.875) -> None:
        self.half, self.least = half, least
        self.beliefs: dict[str, Belief] = {}
        self._visited = self._seen = 0

    def value(self, prompt: str) -> float:
        r"""$\hat v_x$, one half for a prompt that nothing is known of."""
        belief = self.beliefs.get(prompt)
        return belief.value if belief is not None else 0.5

    def previous(self, prompt: str) -> Belief | None:
        """The belief of a prompt that has an answer to measure the drift on."""
        belief = self.beliefs.get(prompt)
        return belief if belief is not None and belief.ids else None

    def start(self, prompt: str, rewards: Sequence[float]) -> None:
        """What answers sampled before training earned; those that could not be judged do not count."""
        judged = [reward for reward in rewards if not math.isnan(reward)]
        worth = 1 / (1 - self.least) if judged else 1.0
        right, count = sum(judged), len(judged)
        self.beliefs[prompt] = Belief(worth * (right + 0.5) / (count + 1), worth * (count - right + 0.5) / (count + 1))

    def update(self, visits: Sequence[Visit]) -> None:
        """Take notice of what a rollout earned: forget by each prompt's drift, then count."""
        now: set[str] = set()
        for visit in visits:
            if math.isnan(visit.reward):
                continue
            belief = self.beliefs.setdefault(visit.id, Belief(0.5, 0.5))
            # A belief from before training was made by the policy that answers first, and a prompt's further answers in
            # one rollout are by the policy of its first: nothing has drifted.
            before = bool(belief.ids) and visit.id not in now
            rho = forgetting((visit.drift or 0.0) if before else 0.0, self.half, self.least)
            self._seen, self._visited = self._seen + 1, self._visited + before
            now.add(visit.id)
            belief.alpha = rho * belief.alpha + visit.reward
            belief.beta = rho * belief.beta + 1 - visit.reward
            belief.ids, belief.own, belief.logprobs = list(visit.ids), list(visit.own), list(visit.logprobs)

    def metrics(self) -> dict[str, float]:
        """State of the beliefs, and the share of visits since the last call that found an earlier answer."""
        values = [belief.value for belief in self.beliefs.values()] or [0.5]
        worth = [belief.answers for belief in self.beliefs.values()] or [1.0]
        again = self._visited / max(1, self._seen)
        self._visited = self._seen = 0
        return {
            "tracker_prompts": float(len(self.beliefs)),
            "tracker_value": sum(values) / len(values),
            "tracker_answers": sum(worth) / len(worth),
            "tracker_visited_before": again,
        }

    def state_dict(self) -> dict[str, Any]:
        """As JSON has it; floats are written so that they are read back exactly."""
        return {
            name: [belief.alpha, belief.beta, belief.ids, [int(mine) for mine in belief.own], belief.logprobs]
            for name, belief in self.beliefs.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.beliefs = {
            name: Belief(alpha, beta, list(ids), [bool(mine) for mine in own], list(logprobs))
            for name, (alpha, beta, ids, own, logprobs) in state.items()
        }


class GlobalTracker:
    r"""MiniMind's variant, by the name `tracked_global`: one belief for all prompts.

    $\alpha \leftarrow \rho \alpha + \bar R$ with the mean reward of the batch, and $\rho$ from the difference between
    the mean log-probability of this batch's answers and that of the last batch's, which are answers to *other* prompts:
    it measures how prompts vary as much as how the policy moves. Every prompt gets the same baseline, so a hard prompt
    is punished for being hard. It is here to be compared.
    """

    def __init__(self, half: float = 0.06, least: float = 0.5) -> None:
        self.half, self.least = half, least
        # Half of 1 / (1 - 0.5) each.
        self.alpha = self.beta = 1.0
        self.level: float | None = None

    def value(self, prompt: str) -> float:
        """The same for every prompt."""
        return self.alpha / (self.alpha + self.beta)

    def previous(self, prompt: str) -> Belief | None:
        """Remembers no answers."""
        return None

    def update(self, visits: Sequence[Visit]) -> None:
        """Take notice of what a rollout earned."""
        rewards = [visit.reward for visit in visits if not math.isnan(visit.reward)]
        logprobs = [value for visit in visits for value, mine in zip(visit.logprobs, visit.own, strict=True) if mine]
        if not rewards or not logprobs:
            return
        mean, level = sum(rewards) / len(rewards), sum(logprobs) / len(logprobs)
        drift = abs(level - self.level) if self.level is not None else 0.0
        rho = forgetting(drift, self.half, self.least)
        self.alpha, self.beta, self.level = rho * self.alpha + mean, rho * self.beta + 1 - mean, level

    def metrics(self) -> dict[str, float]:
        """State of the belief."""
        return {"tracker_value": self.value(""), "tracker_answers": self.alpha + self.beta}

    def state_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"alpha": self.alpha, "beta": self.beta, "level": self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.alpha, self.beta, self.level = state["alpha"], state["beta"], state["level"]
