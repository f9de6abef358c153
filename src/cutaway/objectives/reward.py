"""What a reward model is trained to: scores that order pairs of answers."""

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
