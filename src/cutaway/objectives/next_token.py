"""Next-token prediction: the objective of pretraining and of supervised fine-tuning."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""Target of a position that is not trained: padding, or somebody else's words."""

MAX_LOGIT_BYTES = 2**30
"""Above this many bytes of fp32 logits the head is computed in chunks and recomputed in the backward pass."""


def token_nll(
    hidden: Float[Tensor, "batch seq hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, "batch seq"],
    z_loss: float = 0.0,
) -> Float[Tensor, "batch seq"]:
    r"""Negative log-likelihood of each target token, in fp32 nats; 0 where the target is `IGNORE`.

    $$\ell_t = \log Z_t - h_t \cdot w_{y_t} + \zeta \log^2 Z_t, \qquad Z_t = \sum_v e^{h_t \cdot w_v}$$

    $h$ is `hidden`, $w$ the rows of `weight`, $y$ `targets`, $\zeta$ `z_loss`. The loss of a stage is the sum of these
    over the number of trained tokens of the whole accumulated batch, never a mean of means: micro-batches with
    different numbers of trained tokens then weigh what they should.

    The z-term (PaLM, arXiv 2204.02311, section 5) keeps $\log Z$ near 0.
    """
    tokens = hidden.shape[0] * hidden.shape[1]
    chunks = -(-tokens * weight.shape[0] * 4 // MAX_LOGIT_BYTES)
    if chunks <= 1:
        return _nll(hidden, weight, targets, z_loss)
    pieces = zip(hidden.flatten(0, 1).chunk(chunks), targets.flatten().chunk(chunks), strict=True)
    parts = [checkpoint(_nll, h, weight, t, z_loss, use_reentrant=False) for h, t in pieces]
    return torch.cat(parts).view(targets.shape)


def _nll(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = F.linear(hidden, weight).float()
    log_z = logits.logsumexp(-1)
    trained = targets != IGNORE
    picked = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss = log_z - picked
    if z_loss:
        loss = loss + z_loss * log_z.square()
    return torch.where(trained, loss, 0.0)
