"""What a router of experts is held to besides the next token: even use of the experts, and small logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def load_balancing_loss(
    logits: Float[Tensor, "*layers tokens experts"], top_k: int, mask: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, "*layers"]:
    r"""How unevenly each layer uses its experts: `top_k` when it is even, up to `experts` when `top_k` of them do all.

    $$L = E \sum_{e=1}^{E} f_e P_e, \qquad f_e = \frac1T \sum_t [e \in \mathrm{top}_k(t)], \qquad
      P_e = \frac1T \sum_t \mathrm{softmax}(g_t)_e$$

    $g_t$ are the router's `logits` of token $t$, $E$ the number of experts, $T$ the number of tokens where `mask` is
    true. Only $P$ has a gradient: it lowers the probability of an expert in proportion to the tokens it already gets.
    Switch Transformers, arXiv 2101.03961, equations 4 to 6, with the $k$ choices of a token counted one each as in
    `transformers`, whose value is that of one layer with the tokens of all layers (`logits.flatten(0, -2)`): there an
    expert overused in one layer is made up for by its namesake in another, which shares nothing with it but the index.
    """
    probabilities = torch.softmax(logits.float(), -1)
    chosen = _chosen(probabilities, top_k)
    share = _mean(chosen, mask) * _mean(probabilities, mask)
    return logits.shape[-1] * share.sum(-1)


def router_z_loss(
    logits: Float[Tensor, "*layers tokens experts"], mask: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, "*layers"]:
    r"""Keeps a router's logits near 0, where its softmax is precise.

    $$L_z = \frac1T \sum_t \Bigl(\log \sum_e e^{g_{t,e}}\Bigr)^2$$

    $g$ is `logits`, $T$ the number of tokens where `mask` is true. ST-MoE, arXiv 2202.08906, equation 5.
    """
    return _mean(logits.float().logsumexp(-1).square().unsqueeze(-1), mask).squeeze(-1)


def expert_load(
    logits: Float[Tensor, "*layers tokens experts"], top_k: int, mask: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, "*layers experts"]:
    r"""Tokens of each expert relative to an even share: $f_e E / k$, 1 for all when balanced, 0 for a dead expert."""
    return _mean(_chosen(logits.float(), top_k), mask) * (logits.shape[-1] / top_k)


def _chosen(scores: Tensor, top_k: int) -> Tensor:
    """1 where an expert is among a token's first k, else 0."""
    return F.one_hot(scores.topk(top_k, -1).indices, scores.shape[-1]).sum(-2).to(scores.dtype)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens (the last dimension but one) that the mask leaves."""
    if mask is None:
        return values.mean(-2)
    return (values * mask.unsqueeze(-1)).sum(-2) / mask.sum().clamp(min=1)
