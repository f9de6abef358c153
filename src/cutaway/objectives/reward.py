"""What a reward model is trained to: scores that order pairs of answers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bradley_terry(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], centre: float = 0.0
) -> Float[Tensor, " pairs"]:
    r"""Loss a pair, in nats: the negative log-probability that the chosen answer wins (Bradley and Terry 1952; Ouyang
    et al., arXiv 2203.02155, equation 1).

    $$P(w \succ l) = \sigma(r_w - r_l), \qquad L = -\log\sigma(r_w - r_l) + c\,(r_w + r_l)^2$$

    Only differences matter to the first term, so scores may drift together; $c$, `centre`, holds their sum near 0
    (Eisenstein et al., arXiv 2312.09244, equation 2).
    """
    return -F.logsigmoid(chosen - rejected) + centre * (chosen + rejected).square()


def brier(margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    r"""$(1 - \sigma(r_w - r_l))^2$: the squared error of the stated probability (Brier 1950); 0.25 for one that always
    says one half. `margin` is $r_w - r_l$."""
    return torch.sigmoid(-margin).square()


def calibration_gaps(margin: Float[Tensor, " pairs"], bins: int = 10) -> Float[Tensor, "bins pairs"]:
    r"""By how much confidence exceeds correctness, each pair in the bin of its confidence, 0 in the others.

    Confidence is $c = \sigma(|r_w - r_l|)$, between 1/2 and 1; correct is $r_w > r_l$. The expected calibration error
    (Guo et al., arXiv 1706.04599, equation 5) is the sum over bins of the absolute mean over all pairs:

    $$\mathrm{ECE} = \sum_b \Bigl| \frac{1}{n} \sum_{i \in b} (c_i - \mathrm{correct}_i) \Bigr|$$
    """
    confidence = torch.sigmoid(margin.abs())
    place = ((2 * confidence - 1) * bins).long().clamp(max=bins - 1)
    inside = place == torch.arange(bins, device=margin.device).unsqueeze(1)
    return inside * (confidence - (margin > 0).float())
