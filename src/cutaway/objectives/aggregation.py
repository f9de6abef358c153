r"""From the tokens' losses to one number: the last column of the table of RL algorithms.

`total` gives the sum over a micro-batch and `divisor` what the micro-batch adds to what sums are divided by. The loop
adds up both over all micro-batches of an update and over all ranks and divides once (`training/loop.py`): the mean is
that of the whole batch, however it was cut up.

| | loss of a batch of $B$ answers | who counts the same |
| --- | --- | --- |
| sequence mean | $\frac{1}{B} \sum_i \frac{1}{\lvert o_i \rvert} \sum_t L_{i,t}$ | answers, long or short |
| token mean | $\frac{1}{\sum_i \lvert o_i \rvert} \sum_i \sum_t L_{i,t}$ | tokens |
| constant | $\frac{1}{B\,L_{max}} \sum_i \sum_t L_{i,t}$ | tokens, and no answer's weight hangs on others' lengths |
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "constant"]


def total(
    per_token: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], aggregation: Aggregation
) -> Float[Tensor, ""]:
    """The sum over a micro-batch: of answers' means over their tokens, or of all tokens. An answer without a token
    that is trained adds 0."""
    per_token = torch.where(mask, per_token, 0.0)
    if aggregation == "sequence_mean":
        return (per_token.sum(1) / mask.sum(1).clamp(min=1)).sum()
    return per_token.sum()


def divisor(mask: Bool[Tensor, "batch seq"], aggregation: Aggregation, answers: int, longest: int) -> int:
    """What the micro-batch adds to the divisor: its number of answers (those without a trained token too), of trained
    tokens, or answers times `longest`, the most tokens that an answer may have."""
    if aggregation == "token_mean":
        return int(mask.sum())
    return answers * (longest if aggregation == "constant" else 1)
