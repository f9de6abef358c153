"""The value model of PPO: what it is trained to, and how well it does."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def value_loss(
    values: Float[Tensor, "batch seq"],
    old_values: Float[Tensor, "batch seq"],
    returns: Float[Tensor, "batch seq"],
    clip: float | None,
) -> Float[Tensor, "batch seq"]:
    r"""Loss of every token (PPO as OpenAI's baselines has it; not in the paper).

    $$L^V_t = \tfrac12 \max\bigl((V_t - G_t)^2,\ (\mathrm{clip}(V_t,\ V^{old}_t \pm c) - G_t)^2\bigr)$$

    $G$ is `returns`, $V^{old}$ what the value model said when the answers were written, $c$ `clip`: a value that has
    moved further than $c$ towards its return gets no gradient. None clips nothing.
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return error / 2


def explained_variance(
    values: Float[Tensor, "batch seq"], returns: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> float:
    r"""$1 - \mathrm{Var}(G - V) / \mathrm{Var}(G)$ over the masked tokens: 1 is perfect, 0 no better than a constant,
    below 0 worse. NaN where the returns do not vary."""
    wanted, error = returns[mask].double(), (returns - values)[mask].double()
    spread = wanted.var(correction=0) if len(wanted) else wanted.new_zeros(())
    return float(1 - error.var(correction=0) / spread) if spread > 0 else float("nan")
