"""The RL algorithms as rows of one table: what differs between them is what their papers say differs.

Five columns: how prompts are drawn, what an answer's advantage is, the policy loss of a token, where the distance to
the reference counts, and how tokens' losses become one number. The mathematics is in `objectives/`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UserError
from cutaway.objectives import advantages, policy
from cutaway.objectives.aggregation import Aggregation
from cutaway.objectives.kl import Estimator
from cutaway.objectives.policy import Tokens
from cutaway.recipe.rl import AdvantageName, KLPlace, PolicyLossName, PromptSampling
from cutaway.rl.custom import is_custom, load_function

PolicyLoss = Callable[[Tokens], Float[Tensor, "batch seq"]]
GroupAdvantage = Callable[[Float[Tensor, "prompts group"]], Float[Tensor, "prompts group"]]


@dataclass(frozen=True)
class Algorithm:
    """A row."""

    name: str
    paper: str
    prompts: PromptSampling = "uniform"
    advantage: AdvantageName | str = "group_relative"
    policy_loss: PolicyLossName | str = "ppo_clip"
    kl: KLPlace = "none"
    kl_estimator: Estimator = "k3"
    beta: float = 0.0
    """Weight of the distance to the reference."""
    aggregation: Aggregation = "token_mean"
    clip_low: float | None = 0.2
    """None: not bounded below (CISPO)."""
    clip_high: float = 0.2
    dual_clip: float | None = None
    mask_truncated: bool = False
    """Answers that were cut off are not trained on."""
    rewards: tuple[str, ...] = ()
    """Components that are added to the rewards of a run, as NAME=WEIGHT, unless it names them itself."""
    group_size: int = 8
    """Answers to a prompt, by default."""

    def with_values(self, **values: Any) -> "Algorithm":
        """The row with the values that are given; None leaves a column as it is."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})

    def __str__(self) -> str:
        """The columns as one readable line."""
        low = "0" if self.clip_low is None else f"{1 - self.clip_low:g}"
        clipped = f" within {low} to {1 + self.clip_high:g}" if self.policy_loss != "reinforce" else ""
        distance = f"{self.kl_estimator} x {self.beta:g} in the {self.kl}" if self.needs_reference else "no reference"
        columns = [f"{self.prompts} prompts", f"advantage {self.advantage}", f"{self.policy_loss}{clipped}", distance]
        return f"{self.name} [{self.paper}]: {', '.join(columns)}, {self.aggregation}"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the reward looks at a reference."""
        return self.kl != "none" and self.beta > 0


_ROWS = (
    Algorithm(
        "ppo",
        "arXiv 1707.06347, 2203.02155",
        advantage="gae",
        kl="reward",
        kl_estimator="k1",
        beta=0.05,
        group_size=1,
    ),
    Algorithm("grpo", "arXiv 2402.03300", kl="loss", beta=0.04, aggregation="sequence_mean"),
    Algorithm("dr_grpo", "arXiv 2503.20783", advantage="group_centred", aggregation="constant"),
    Algorithm(
        "dapo",
        "arXiv 2503.14476",
        prompts="dynamic",
        clip_high=0.28,
        mask_truncated=True,
        rewards=("overlong=1",),
    ),
    Algorithm("cispo", "arXiv 2506.13585, 2510.13786", policy_loss="cispo", clip_low=None, clip_high=4.0),
    Algorithm(
        "gspo", "arXiv 2507.18071", policy_loss="gspo", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4
    ),
    Algorithm(
        "rloo",
        "arXiv 2402.14740",
        advantage="leave_one_out",
        policy_loss="reinforce",
        kl="reward",
        kl_estimator="k1",
        beta=0.05,
        aggregation="constant",
    ),
    Algorithm(
        "spo",
        "arXiv 2509.13232",
        prompts="uncertainty",
        advantage="tracked",
        clip_high=0.28,
        dual_clip=10.0,
        group_size=1,
    ),
    Algorithm(
        "spo_global",
        "MiniMind, October 2025 to March 2026",
        advantage="tracked_global",
        policy_loss="reinforce",
        kl="loss",
        beta=0.02,
        aggregation="sequence_mean",
        group_size=1,
    ),
)
ALGORITHMS = {row.name: row for row in _ROWS}
"""Every row by its name, with the settings of its paper."""

_GROUPED = ("group_relative", "group_centred", "leave_one_out")
_RATIO_FREE = ("reinforce",)
BOUNDED = ("ppo_clip", "cispo", "gspo")
"""Policy losses that bound a ratio."""


def policy_loss(row: Algorithm) -> PolicyLoss:
    """The row's policy loss with its bounds, or a learner's own, whose result is checked for its shape."""
    low, high, name = row.clip_low, row.clip_high, row.policy_loss
    if is_custom(name):
        own = load_function(name)

        def checked(tokens: Tokens) -> Float[Tensor, "batch seq"]:
            return _same_shape(own(tokens), tokens.logprobs, name)

        return checked
    if name == "reinforce":
        return policy.reinforce
    if name == "cispo":
        return lambda tokens: policy.cispo(tokens, low, high)
    if low is None:
        raise UserError(f"clip_low is missing: {name} needs both bounds")
    if name == "gspo":
        return lambda tokens: policy.gspo(tokens, low, high)
    return lambda tokens: policy.ppo_clip(tokens, low, high, row.dual_clip)


def group_advantage(row: Algorithm) -> GroupAdvantage | None:
    """The row's advantage from the rewards of groups, or a learner's own, whose NaN counts as 0; None where it is made
    of other things: a value model (`gae`) or a tracker."""
    name = row.advantage
    if is_custom(name):
        own = load_function(name)
        # An answer that could not be judged makes a plain mean NaN, and one NaN would end the run.
        return lambda rewards: _same_shape(own(rewards), rewards, name).nan_to_num(nan=0.0)
    if name == "group_relative":
        return advantages.group_relative
    if name == "group_centred":
        return lambda rewards: advantages.group_relative(rewards, scale=False)
    if name == "leave_one_out":
        return advantages.leave_one_out
    if name == "batch_baseline":
        return lambda rewards: advantages.batch_baseline(rewards.flatten()).view_as(rewards)
    return None


def _same_shape(value: Any, like: Tensor, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{name} gave back {found}, must be a tensor of shape {list(like.shape)}")
    return value


def check_algorithm(row: Algorithm, group_size: int) -> None:
    """Refuse what no run can have, and try a learner's own functions on small tensors. UserError says what is wrong."""
    if row.advantage in _GROUPED and group_size < 2:
        raise UserError(f"advantage {row.advantage} compares answers to one prompt: group_size must be at least 2")
    if row.prompts == "dynamic" and group_size < 2:
        raise UserError("dynamic prompt sampling keeps prompts whose answers differ: group_size must be at least 2")
    if row.prompts == "uncertainty" and row.advantage != "tracked":
        raise UserError("uncertainty-weighted prompt sampling needs the tracker of --advantage tracked")
    advantage, loss = group_advantage(row), policy_loss(row)
    if advantage is not None:
        advantage(torch.tensor([[1.0] + [0.0] * (group_size - 1)] * 2))
    example = torch.tensor([[-1.0, -2.0, -0.5]])
    loss(Tokens(example.requires_grad_(), example.detach(), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)))


def coincidences(row: Algorithm, updates: int, group_size: int) -> list[str]:
    """What a learner should know before comparing: settings that do nothing, and rows that come to the same."""
    notes = []
    if updates == 1 and row.policy_loss not in _RATIO_FREE and not is_custom(row.policy_loss):
        notes.append(
            "one update per rollout: every ratio is 1, nothing is ever clipped, and ppo_clip, cispo and gspo have the "
            "gradient of reinforce; raise minibatches or rollout_epochs to tell them apart"
        )
    if updates > 1 and row.policy_loss in _RATIO_FREE:
        notes.append(f"{updates} updates per rollout without a ratio: later ones train on answers of an older policy")
    same = [
        name
        for name, other in ALGORITHMS.items()
        if name != row.name and _plain(other, updates) == _plain(row, updates)
    ]
    if same:
        notes.append(f"with these settings the gradient is also that of: {', '.join(same)}")
    if row.kl != "none" and row.beta == 0:
        notes.append("beta is 0: the distance to the reference does not count")
    if group_size == 2 and row.advantage == "group_relative":
        notes.append("group_size 2: an advantage is 0 or about 0.7 with a sign, whatever the rewards are")
    if row.advantage == "leave_one_out":
        notes.append(f"leave_one_out is group_centred times {group_size / (group_size - 1):.3g}: a learning rate apart")
    return notes


def _plain(row: Algorithm, updates: int) -> tuple[Any, ...]:
    """What decides the gradient: with one update per rollout every policy loss is `reinforce`, whatever its bounds."""
    distance = (row.kl, row.kl_estimator, row.beta) if row.needs_reference else ()
    columns = (row.prompts, row.advantage, distance, row.aggregation, row.mask_truncated, row.rewards)
    if updates == 1 and not is_custom(row.policy_loss):
        return columns
    return (*columns, row.policy_loss, row.clip_low, row.clip_high, row.dual_clip)


def table(rows: Sequence[Algorithm] = _ROWS) -> str:
    """The table as Markdown: what the documentation shows."""
    head = ("algorithm", "prompts", "advantage", "policy loss", "KL", "aggregation", "group", "besides", "source")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        distance = f"{row.kl_estimator} in the {row.kl}, {row.beta:g}" if row.needs_reference else "none"
        besides = [f"reward {reward}" for reward in row.rewards]
        besides += ["truncated answers left out"] if row.mask_truncated else []
        columns = (row.prompts, row.advantage, _loss_text(row), distance, row.aggregation, str(row.group_size))
        lines.append("| " + " | ".join((row.name, *columns, ", ".join(besides) or "-", row.paper)) + " |")
    return "\n".join(lines) + "\n"


def _loss_text(row: Algorithm) -> str:
    if row.policy_loss in _RATIO_FREE:
        return row.policy_loss
    low = "" if row.clip_low is None else f"-{row.clip_low:g}, "
    dual = "" if row.dual_clip is None else f", dual {row.dual_clip:g}"
    return f"{row.policy_loss} ({low}+{row.clip_high:g}{dual})"


if __name__ == "__main__":
    print(table(), end="")
