r"""Learning from pairs of answers, one preferred to the other: DPO and its relatives.

Every function takes log-probabilities that are already summed over an answer's tokens and gives back one loss a pair,
in nats. With $\pi$ the policy, $\pi_{ref}$ the reference, $y_w$ the chosen and $y_l$ the rejected answer to prompt $x$:

$$\Delta_w = \log\frac{\pi(y_w|x)}{\pi_{ref}(y_w|x)}, \qquad \Delta_l = \log\frac{\pi(y_l|x)}{\pi_{ref}(y_l|x)}, \qquad
  h = \Delta_w - \Delta_l$$

A stage averages over pairs. $\beta\Delta$ is the *implicit reward* of an answer (DPO, arXiv 2305.18290, equation 5).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """What the losses need of a batch of pairs; a loss without a reference does not look at `ref_*`."""

    chosen: Float[Tensor, " pairs"]
    """Sum of the log-probabilities of the chosen answer's tokens, under the policy."""
    rejected: Float[Tensor, " pairs"]
    """The same of the rejected answer."""
    ref_chosen: Float[Tensor, " pairs"]
    """Under the reference."""
    ref_rejected: Float[Tensor, " pairs"]
    """Under the reference."""
    chosen_tokens: Float[Tensor, " pairs"]
    """Number of tokens that were summed."""
    rejected_tokens: Float[Tensor, " pairs"]
    """Number of tokens that were summed."""

    @property
    def chosen_ratio(self) -> Float[Tensor, " pairs"]:
        r"""$\Delta_w$."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Float[Tensor, " pairs"]:
        r"""$\Delta_l$."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Tensor, " pairs"]:
        r"""$h$, by how much more the policy prefers the chosen answer than the reference does."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Float[Tensor, " pairs"]:
        r"""$\Delta_w / |y_w| - \Delta_l / |y_l|$: the margin a token."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


def dpo(pairs: Pairs, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " pairs"]:
    r"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7).

    $$L = -(1 - \epsilon) \log\sigma(\beta h) - \epsilon \log\sigma(-\beta h)$$

    $\epsilon$ is `label_smoothing`, the share of labels taken to be the wrong way round (cDPO, Mitchell 2023); 0 in the
    paper.
    """
    return _logistic(beta * pairs.margin, label_smoothing)


def robust(pairs: Pairs, beta: float, label_smoothing: float = 0.1) -> Float[Tensor, " pairs"]:
    r"""DPO whose expectation under labels flipped with probability $\epsilon$ is DPO's with true labels
    (Chowdhury et al., arXiv 2403.00409, equation 12); it may be negative.

    $$L = \frac{-(1 - \epsilon) \log\sigma(\beta h) + \epsilon \log\sigma(-\beta h)}{1 - 2 \epsilon}$$
    """
    right, flipped = -F.logsigmoid(beta * pairs.margin), -F.logsigmoid(-beta * pairs.margin)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    r"""$L = \max(0, 1 - \beta h)$: SLiC's loss (arXiv 2305.10425) on DPO's margin (RSO, arXiv 2309.06657, eq. 11)."""
    return torch.relu(1 - beta * pairs.margin)


def ipo(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    r"""Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17).

    $$L = \Bigl(\frac{\Delta_w}{|y_w|} - \frac{\Delta_l}{|y_l|} - \frac{1}{2\beta}\Bigr)^2$$

    $\beta$ is the paper's $\tau$. The paper writes $h$ without the lengths; we follow TRL, which divides by them as the
    authors say they did: a target that does not depend on length cannot be met by sums that do.
    """
    return (pairs.mean_margin - 1 / (2 * beta)).square()


def dpo_norm(pairs: Pairs, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " pairs"]:
    r"""DPO on the margin a token (Tulu 3, arXiv 2411.15124, section 5.1): a longer answer earns nothing by its length.

    $$L = -\log\sigma\Bigl(\beta\Bigl(\frac{\Delta_w}{|y_w|} - \frac{\Delta_l}{|y_l|}\Bigr)\Bigr)$$
    """
    return _logistic(beta * pairs.mean_margin, label_smoothing)


def simpo(pairs: Pairs, beta: float, gamma: float, label_smoothing: float = 0.0) -> Float[Tensor, " pairs"]:
    r"""Simple preference optimisation, without a reference (Meng et al., arXiv 2405.14734, equation 6).

    $$L = -\log\sigma\Bigl(\frac{\beta}{|y_w|}\log\pi(y_w|x) - \frac{\beta}{|y_l|}\log\pi(y_l|x) - \gamma\Bigr)$$

    The paper has $\beta$ of 2 to 2.5 and $\gamma / \beta$ near 0.5.
    """
    difference = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return _logistic(beta * difference - gamma, label_smoothing)


def cpo(pairs: Pairs, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " pairs"]:
    r"""The preference part of contrastive preference optimisation, without a reference (Xu et al., arXiv 2401.08417,
    equation 3): $L = -\log\sigma(\beta \log\pi(y_w|x) - \beta \log\pi(y_l|x))$. A stage adds `chosen_nll`."""
    return _logistic(beta * (pairs.chosen - pairs.rejected), label_smoothing)


def orpo(pairs: Pairs, weight: float) -> Float[Tensor, " pairs"]:
    r"""The odds-ratio part of ORPO, without a reference (Hong et al., arXiv 2403.07691, equations 4, 6 and 7), times
    $\lambda$, the `weight`. A stage adds `chosen_nll`.

    $$L = -\lambda \log\sigma\Bigl(\log\frac{\mathrm{odds}(y_w)}{\mathrm{odds}(y_l)}\Bigr), \qquad
      \mathrm{odds}(y) = \frac{P(y)}{1 - P(y)}, \qquad \log P(y) = \frac{1}{|y|} \log\pi(y|x)$$
    """
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return -weight * F.logsigmoid(log_odds)


def chosen_nll(pairs: Pairs) -> Float[Tensor, " pairs"]:
    r"""$-\log\pi(y_w|x) / |y_w|$: what CPO and ORPO add so that the chosen answer stays likely.

    As in the papers, a mean over an answer's tokens, then over answers; TRL takes the mean over the batch's tokens.
    """
    return -pairs.chosen / pairs.chosen_tokens


def kto(
    ratio: Float[Tensor, " answers"],
    desirable: Bool[Tensor, " answers"],
    kl: Float[Tensor, ""],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " answers"]:
    r"""Kahneman-Tversky optimisation, for answers that are good or bad without a pair (arXiv 2402.01306, equation 8).

    $$L = \lambda_D\,(1 - \sigma(\beta(\Delta - z_0)))\ \text{if desirable, else}\
      \lambda_U\,(1 - \sigma(\beta(z_0 - \Delta)))$$

    $\Delta$ is `ratio`, $z_0$ is `kl`: how far the policy is from the reference, at least 0 and without a gradient,
    estimated from answers under prompts that are not theirs (`kto_kl`). Keep $\lambda_D n_D / \lambda_U n_U$ between 1
    and 4/3.
    """
    good = desirable_weight * (1 - torch.sigmoid(beta * (ratio - kl)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (kl - ratio)))
    return torch.where(desirable, good, bad)


def kto_kl(mismatched_ratio: Float[Tensor, " answers"]) -> Float[Tensor, ""]:
    r"""$z_0 = \max\bigl(0, \mathrm{mean}\,\log\frac{\pi(y'|x)}{\pi_{ref}(y'|x)}\bigr)$ over answers $y'$ to prompts
    other than $x$, without a gradient."""
    return mismatched_ratio.detach().mean().clamp(min=0)


def _logistic(logits: Float[Tensor, " pairs"], label_smoothing: float) -> Float[Tensor, " pairs"]:
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def _log1mexp(x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    r"""$\log(1 - e^x)$ for $x < 0$, precise near 0 and far from it (Mächler 2012, equation 7)."""
    x = x.clamp(max=-1e-7)
    near = torch.log(-torch.expm1(x.clamp(min=-1.0)))
    far = torch.log1p(-torch.exp(x.clamp(max=-0.5)))
    return torch.where(x > -0.6931, near, far)
