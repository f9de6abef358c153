r"""How far the policy has moved from a reference: three estimates of $\mathrm{KL}(\pi_\theta \| \pi_{ref})$ from the
tokens that the policy drew (Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html).

With $d_t = \log\pi_\theta(o_t) - \log\pi_{ref}(o_t)$, held within $\pm 20$ so that one token that the reference finds
all but impossible cannot swamp a batch (verl holds it so; the others do not):

| | estimate | |
| --- | --- | --- |
| k1 | $d$ | unbiased, of high variance, may be negative |
| k2 | $d^2 / 2$ | biased, never negative; its gradient is that of the KL itself |
| k3 | $e^{-d} - 1 + d$ | unbiased, of low variance, never negative; what GRPO's paper has in its loss |
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
LARGEST_LOG_RATIO = 20.0


def log_ratio(
    logprobs: Float[Tensor, "batch seq"], ref_logprobs: Float[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """$d_t$, held within its bounds."""
    return (logprobs - ref_logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def kl(
    logprobs: Float[Tensor, "batch seq"], ref_logprobs: Float[Tensor, "batch seq"], estimator: Estimator = "k3"
) -> Float[Tensor, "batch seq"]:
    """The estimate at every token, in nats, with a gradient wherever `logprobs` has one."""
    d = log_ratio(logprobs, ref_logprobs)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    return torch.expm1(-d) + d


def rewards_after_kl(
    rewards: Float[Tensor, "batch seq"],
    logprobs: Float[Tensor, "batch seq"],
    ref_logprobs: Float[Tensor, "batch seq"],
    beta: float,
    estimator: Estimator = "k1",
) -> Float[Tensor, "batch seq"]:
    r"""$R_t - \beta\, \mathrm{kl}_t$: the distance as a cost of each token, so that it is part of what is maximised
    (Ziegler et al., arXiv 1909.08593, equation 2), rather than a term of the loss. Has no gradient."""
    return rewards - beta * kl(logprobs.detach(), ref_logprobs, estimator)
