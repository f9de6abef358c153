r"""The policy loss of every token: the third column of the table of RL algorithms.

With $\pi_\theta$ the policy in training, $\pi_{old}$ the one that wrote the answers, $o_t$ the tokens and $A$ the
advantages, every function gives back what is minimised at each token, built on

$$r_t = \frac{\pi_\theta(o_t)}{\pi_{old}(o_t)} = e^{\log\pi_\theta(o_t) - \log\pi_{old}(o_t)}$$

`objectives/aggregation.py` turns the tokens' losses into one number. While $r = 1$, which is so for the first update
after each rollout, all of them have the gradient of `reinforce`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """What a policy loss needs to know of a batch of answers."""

    logprobs: Float[Tensor, "batch seq"]
    r"""$\log\pi_\theta(o_t)$, with a gradient, under the sampling distribution."""
    old_logprobs: Float[Tensor, "batch seq"]
    r"""$\log\pi_{old}(o_t)$."""
    advantages: Float[Tensor, "batch seq"]
    """$A$, the same at every token of an answer unless a value model gave each its own."""
    mask: Bool[Tensor, "batch seq"]
    """Tokens that the policy wrote: neither prompt, padding nor what a tool said."""

    @property
    def log_ratio(self) -> Float[Tensor, "batch seq"]:
        r"""$\log r_t$, 0 where the mask is false."""
        return torch.where(self.mask, self.logprobs - self.old_logprobs, 0.0)

    @property
    def ratio(self) -> Float[Tensor, "batch seq"]:
        """$r_t$."""
        return self.log_ratio.exp()

    @property
    def sequence_ratio(self) -> Float[Tensor, "batch 1"]:
        r"""GSPO's $s = \exp\bigl(\frac{1}{|o|} \sum_t \log r_t\bigr)$, the geometric mean of an answer's ratios."""
        lengths = self.mask.sum(1, keepdim=True).clamp(min=1)
        return (self.log_ratio.sum(1, keepdim=True) / lengths).exp()


def reinforce(tokens: Tokens) -> Float[Tensor, "batch seq"]:
    r"""$-A \log\pi_\theta(o_t)$ (Williams 1992): no ratio, nothing clipped. What is trained on must be fresh."""
    return -tokens.advantages * tokens.logprobs


def ppo_clip(tokens: Tokens, low: float, high: float, dual: float | None = None) -> Float[Tensor, "batch seq"]:
    r"""PPO's clipped surrogate (arXiv 1707.06347, equation 7).

    $$L_t = -\min\bigl(r_t A,\ \mathrm{clip}(r_t,\ 1 - \epsilon_{low},\ 1 + \epsilon_{high})\, A\bigr)$$

    $\epsilon_{low}$ and $\epsilon_{high}$ are `low` and `high`: equal in PPO and GRPO, apart in DAPO ("clip-higher",
    arXiv 2503.14476, equation 10), where unlikely tokens get more room to become likely. With $A < 0$ the minimum does
    not bound a large ratio; `dual`, $c > 1 + \epsilon_{high}$, does: $L_t = \min(L_t, -c A)$ (dual clip, arXiv
    1912.09729, equation 5).
    """
    ratio, advantages = tokens.ratio, tokens.advantages
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)


def cispo(tokens: Tokens, low: float | None, high: float) -> Float[Tensor, "batch seq"]:
    r"""CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5).

    $$L_t = -\mathrm{sg}\bigl[\mathrm{clip}(r_t,\ 1 - \epsilon_{low},\ 1 + \epsilon_{high})\bigr]\,
      A \log\pi_\theta(o_t)$$

    The *weight* of a token is clipped and has no gradient (sg), so every token keeps one, where PPO drops those that
    moved too far. `low` None leaves the weight unbounded below, as the paper's experiments did. Here `high` is counted
    from 1 as in the paper; TRL's `epsilon_high` and ScaleRL's are the cap itself, $1 + \epsilon_{high}$.
    """
    floor = None if low is None else 1 - low
    weight = tokens.ratio.detach().clamp(min=floor, max=1 + high)
    return -weight * tokens.advantages * tokens.logprobs


def gspo(tokens: Tokens, low: float, high: float) -> Float[Tensor, "batch seq"]:
    r"""GSPO: one ratio an answer, clipped as a whole (arXiv 2507.18071, equations 5 and 7).

    $$L_t = -\min\bigl(s A,\ \mathrm{clip}(s,\ 1 - \epsilon_{low},\ 1 + \epsilon_{high})\, A\bigr), \qquad
      s = \Bigl(\frac{\pi_\theta(o)}{\pi_{old}(o)}\Bigr)^{1 / |o|}$$

    A mean over tokens hardly moves, so its bounds are of the order of $10^{-4}$. With an advantage of its own for each
    token the paper's GSPO-token (equation 14) has the same value, and each token's gradient its own weight; where an
    answer has one advantage, as here, the two are the same.
    """
    ratio, advantages = tokens.sequence_ratio, tokens.advantages
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def importance_weight(
    old_logprobs: Float[Tensor, "batch seq"], sampler_logprobs: Float[Tensor, "batch seq"], cap: float
) -> Float[Tensor, "batch seq"]:
    r"""$\min(\pi_{old}(o_t) / \pi_{sampler}(o_t),\ C)$: what a token's loss is multiplied by where another engine, or
    other arithmetic, wrote the answer than the one that trains (truncated importance sampling, Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training"). $C$ is `cap`."""
    return (old_logprobs - sampler_logprobs).exp().clamp(max=cap).detach()


def clipped(
    ratio: Float[Tensor, "batch _"], advantages: Float[Tensor, "batch seq"], low: float | None, high: float
) -> tuple[Bool[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Tokens whose gradient the clipping takes away (in CISPO: whose weight it cuts): those that became too unlikely,
    and should become more so, and those that became too likely. The ratio is a token's or an answer's."""
    below = (ratio < 1 - low) if low is not None else torch.zeros_like(ratio, dtype=torch.bool)
    return below & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
