r"""How much better an answer was than expected: the second column of the table of RL algorithms.

A reward of NaN says that an answer could not be judged. It counts in no mean, and its advantage is 0: the answer is
not trained on. Nothing here has a gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_relative(
    rewards: Float[Tensor, "prompts group"], scale: bool = True, epsilon: float = 1e-4
) -> Float[Tensor, "prompts group"]:
    r"""GRPO's advantage: an answer against the others to the same prompt (arXiv 2402.03300, section 4.1.2).

    $$A_i = \frac{R_i - \mu}{\sigma + \epsilon}$$

    $\mu$ and $\sigma$ are mean and standard deviation of the group (with $G - 1$, as TRL has it). Without `scale` the
    difference is not divided: dividing weighs prompts that are nearly always or hardly ever solved more than others
    (Dr. GRPO, arXiv 2503.20783, section 3.1). A group whose answers all earn the same gives 0 throughout: it was
    sampled for nothing.
    """
    centred = rewards - rewards.nanmean(1, keepdim=True)
    if scale:
        centred = centred / (_deviation(rewards) + epsilon)
    return centred.nan_to_num(nan=0.0)


def leave_one_out(rewards: Float[Tensor, "prompts group"]) -> Float[Tensor, "prompts group"]:
    r"""RLOO's advantage: an answer against the mean of the *other* answers (arXiv 2402.14740, equation 8).

    $$A_i = R_i - \frac{1}{G - 1} \sum_{j \ne i} R_j = \frac{G}{G - 1} (R_i - \mu)$$

    The baseline does not depend on the answer it is taken from, so the gradient stays unbiased. 0 where an answer has
    no other beside it that was judged.
    """
    judged = (~rewards.isnan()).sum(1, keepdim=True)
    others = (rewards.nansum(1, keepdim=True) - rewards) / (judged - 1).clamp(min=1)
    return torch.where(judged > 1, rewards - others, 0.0).nan_to_num(nan=0.0)


def batch_baseline(rewards: Float[Tensor, " samples"], epsilon: float = 1e-8) -> Float[Tensor, " samples"]:
    r"""An answer against all answers of the batch, whatever their prompts: $A_i = (R_i - \mu) / (\sigma + \epsilon)$
    (the normalisation of REINFORCE++, arXiv 2501.03262, equation 8)."""
    return normalise(rewards, epsilon)


def tracked(
    rewards: Float[Tensor, " samples"], baselines: Float[Tensor, " samples"], scale: bool = True
) -> Float[Tensor, " samples"]:
    r"""SPO's advantage: an answer against what its own prompt earned so far (arXiv 2509.13232, section 3.2).

    $$A_i = R_i - \hat v(x_i), \qquad \tilde A_i = \frac{A_i - \mu_A}{\sigma_A + 10^{-8}}$$

    $\hat v(x)$, `baselines`, is the tracker's estimate *before* it sees $R_i$ (`rl/value_tracker.py`); $\mu_A$ and
    $\sigma_A$ are of the whole batch. Without `scale` the first form is given back, cut at 5 on both sides as MiniMind
    has it.
    """
    difference = rewards - baselines
    return normalise(difference, 1e-8) if scale else difference.clamp(-5.0, 5.0).nan_to_num(nan=0.0)


def normalise(values: Float[Tensor, " samples"], epsilon: float) -> Float[Tensor, " samples"]:
    r"""$(x - \mu) / (\sigma + \epsilon)$ over the batch, $\sigma$ with $n - 1$; NaN counts nowhere and becomes 0."""
    row = values.unsqueeze(0)
    return ((values - values.nanmean()) / (_deviation(row).squeeze(0) + epsilon)).nan_to_num(nan=0.0)


def _deviation(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows 1"]:
    """Standard deviation of each row over what is not NaN, with n - 1; 0 for a single value."""
    counts = (~values.isnan()).sum(1, keepdim=True)
    squares = (values - values.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def gae(
    rewards: Float[Tensor, "batch seq"],
    values: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    r"""Generalised advantage estimation (arXiv 1506.02438, equations 11 and 16); advantages and returns.

    $$\delta_t = R_t + \gamma V_{t+1} - V_t, \qquad \hat A_t = \delta_t + \gamma \lambda \hat A_{t+1}, \qquad
      G_t = \hat A_t + V_t$$

    $V_t$ is the value of the state in which token $t$ is chosen, $V$ behind the last token is 0. Where `mask` is false
    (prompt, padding, what a tool said) nothing is chosen: such places are passed over with their rewards, the next
    state of a token is that of the next token chosen, and both results are 0 there.
    """
    advantages = torch.zeros_like(values)
    next_value, next_advantage = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(
    values: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    mean: Float[Tensor, ""],
    variance: Float[Tensor, ""],
) -> Float[Tensor, "batch seq"]:
    r"""$(x - \mu) / \sqrt{\sigma^2 + 10^{-8}}$ where `mask` holds, else 0. Mean and variance are given, since they are
    those of all ranks (`moments`); implementation detail 7 of Huang et al., "The 37 implementation details of PPO"."""
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def moments(values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "3"]:
    """Number, sum and sum of squares of the masked values in fp64: sums of ranks can be added."""
    chosen = values[mask].double()
    return torch.stack([mask.sum().double(), chosen.sum(), chosen.square().sum()])
