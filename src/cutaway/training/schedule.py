"""Learning rate as a share of its peak, a function of the step alone."""

import math
from typing import Literal


def learning_rate_factor(
    step: int,
    total: int,
    *,
    kind: Literal["wsd", "cosine"],
    warmup: float,
    decay: float,
    final: float,
) -> float:
    r"""Share of the peak learning rate at `step` (counted from 0) of `total`.

    Warm-up is linear over the first `warmup` share of the steps and never starts at 0. Then

    - `wsd` (warm-up, stable, decay; Hu et al., arXiv 2404.06395, equation 1): 1 until the last `decay` share, then
      linear down to `final`, which beat cosine and exponential decay in Hägele et al., arXiv 2405.18392, section 3;
    - `cosine` (Loshchilov & Hutter, arXiv 1608.03983, equation 5): $f + (1 - f)\,\frac{1 + \cos(\pi u)}{2}$, $u$ the
      share of the steps after warm-up that are done and $f$ `final`.
    """
    warm = max(1, round(warmup * total))
    if step < warm:
        return (step + 1) / (warm + 1)
    if kind == "cosine":
        done = min(1.0, (step - warm) / max(1, total - 1 - warm))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    start = total - max(1, round(decay * total))
    if step < start:
        return 1.0
    return 1 - (1 - final) * min(1.0, (step - start + 1) / max(1, total - start))
