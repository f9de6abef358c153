"""Choosing the next token: temperature, top-k, top-p and min-p as functions from logits to logits, and the draw.

Each filter sets the logits outside its support to minus infinity. Their order is that of Transformers: temperature,
top-k, top-p, min-p. The draw takes one uniform number a token, from a counter and the request's own seed, so what a
request gets does not depend on which others share its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. These defaults draw from the model's own distribution."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens that together reach this probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one; 0 keeps all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}, must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}, must be 0 (off) to 1")


def scale(logits: Float[Tensor, "batch vocab"], temperature: Float[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
    r"""$z_v / T$: below 1 sharpens, above 1 flattens. Rows of temperature 0 (greedy) are left as they are."""
    return logits / torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
    """Keep the `k` largest logits of a row (all where k is 0), and what ties with the smallest of them."""
    vocab = logits.shape[-1]
    k = torch.where(k > 0, k, vocab).clamp(max=vocab)
    largest = logits.topk(int(k.max()), dim=-1).values
    threshold = largest.gather(-1, (k - 1).unsqueeze(-1))
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: Float[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
    r"""Keep the smallest set of most likely tokens with $\sum_{v \in S} \pi_v \ge p$ (all where p is 1).

    Nucleus sampling: Holtzman et al., arXiv 1904.09751, equation 3. The most likely token always stays.
    """
    ordered, index = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    p = p.unsqueeze(-1)
    dropped = (before >= p) & (p < 1)
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], min_p: Float[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
    r"""Keep tokens with $\pi_v \ge p_{\min} \max_u \pi_u$, that is $z_v \ge \max_u z_u + \ln p_{\min}$.

    Nguyen et al., arXiv 2407.01082, section 3: many tokens pass where the model is unsure, few where it is certain.
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + min_p.log().unsqueeze(-1), -torch.inf)


def uniform(seed: int, counter: int) -> float:
    """Number in [0, 1) of 53 bits, a hash of (seed, counter): the same on every device, without state.

    Two rounds of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014, figure 15), the seed mixed before the counter is added.
    """
    return (_mix(_mix(seed) + counter * 0x9E3779B97F4A7C15) >> 11) / 2**53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def draw(logits: Float[Tensor, "batch vocab"], u: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    r"""The token $v$ whose share of $[0, 1)$, laid out in the order of the vocabulary, holds $u$: inverse of
    $F(v) = \sum_{w \le v} \mathrm{softmax}(z)_w$. A token of probability 0 is never drawn."""
    cdf = logits.softmax(-1).to(u.dtype).cumsum(-1)
    total = cdf[:, -1]
    point = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, point.unsqueeze(-1), right=True).squeeze(-1)


def sample(
    logits: Float[Tensor, "batch vocab"], settings: Sequence[Sampling], uniforms: Sequence[float]
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    r"""One token a row, and its $\log \mathrm{softmax}(z / T)$ in fp32 nats.

    The log-probability is of the distribution before top-k, top-p and min-p (which reinforcement learning refuses), and
    with T = 1 for greedy rows.
    """
    logits = logits.float()
    # Nothing but MPS lacks float64; in float32 the sums over a vocabulary are good to about 1e-6.
    wide = torch.float32 if logits.is_mps else torch.float64

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    temperature = column([row.temperature for row in settings])
    logits = scale(logits, temperature)
    kept = logits
    if any(row.top_k for row in settings):
        kept = keep_top_k(kept, column([row.top_k for row in settings], torch.int64))
    if any(row.top_p < 1 for row in settings):
        kept = keep_top_p(kept, column([row.top_p for row in settings]))
    if any(row.min_p for row in settings):
        kept = keep_min_p(kept, column([row.min_p for row in settings]))
    tokens = logits.argmax(-1)
    if any(row.temperature for row in settings):
        tokens = torch.where(temperature > 0, draw(kept, column(list(uniforms), wide)), tokens)
    return tokens, logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
