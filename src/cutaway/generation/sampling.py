"""Choosing the next token: penalties, temperature, top-k, top-p and min-p as functions from logits to logits, and the
draw.

Each filter sets the logits outside its support to minus infinity. The order is that of Transformers: penalties,
temperature, top-k, top-p, min-p. The draw takes one uniform number a token, from a counter and the request's own seed,
so what a request gets does not depend on which others share its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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
    repetition_penalty: float = 1.0
    """Tokens of prompt or answer lose: a positive logit is divided by it, a negative one multiplied; 1 is off."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the answer holds; 0 is off."""
    frequency_penalty: float = 0.0
    """The same once for each time that the answer holds the token; 0 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}, must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}, must be 0 (off) to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition_penalty is {self.repetition_penalty}, must be above 0 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}, must be a number (0 is off)")

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def penalise(
    logits: Float[Tensor, "batch vocab"],
    seen: Bool[Tensor, "batch vocab"],
    counts: Float[Tensor, "batch vocab"],
    settings: Sequence[Sampling],
) -> Float[Tensor, "batch vocab"]:
    r"""$z_v \leftarrow z_v / r$ where $z_v > 0$, else $z_v r$, for tokens `seen` in prompt or answer; then
    $z_v \leftarrow z_v - a\,[c_v > 0] - f c_v$ with $c_v$ how often the answer holds $v$ (`counts`).

    $r$ is `repetition_penalty` (Keskar et al., arXiv 1909.05858, section 4.1; as Transformers has it), $a$ and $f$ are
    `presence_penalty` and `frequency_penalty` as OpenAI's API defines them.
    """

    def column(name: str) -> Float[Tensor, "batch 1"]:
        return torch.tensor([[getattr(row, name)] for row in settings], dtype=logits.dtype, device=logits.device)

    repetition = column("repetition_penalty")
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    return logits - column("presence_penalty") * (counts > 0) - column("frequency_penalty") * counts


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


class Drawn(NamedTuple):
    """What `sample` gives back: a token a row, its log-probability, and the most likely tokens with theirs."""

    tokens: Int[Tensor, " batch"]
    logprobs: Float[Tensor, " batch"]
    top_tokens: Int[Tensor, "batch top"]
    top_logprobs: Float[Tensor, "batch top"]


def sample(
    logits: Float[Tensor, "batch vocab"], settings: Sequence[Sampling], uniforms: Sequence[float], top: int = 0
) -> Drawn:
    r"""One token a row, its $\log \mathrm{softmax}(z / T)$ in fp32 nats, and the `top` most likely tokens.

    The log-probabilities are of the distribution before top-k, top-p and min-p (which reinforcement learning refuses),
    and with T = 1 for greedy rows. `logits` come with penalties and constraints applied, so these do count.
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
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    return Drawn(tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), best.indices, best.values)
