"""How sure a score is: intervals, the comparison with guessing in words, and paired tests of two models."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

RESAMPLES = 2000
"""Draws of a bootstrap: its 95 % ends then move by less than a twentieth of the interval from seed to seed."""


def wilson(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    r"""Interval for a proportion $\hat p = $ successes / total of $n$ independent trials (95 % for z = 1.96).

    $$\frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}$$

    Wilson, JASA 22 (1927) 209. It stays within 0 and 1 and is right near them, where the normal interval is not.
    (0, 1) without trials.
    """
    if not total:
        return 0.0, 1.0
    p, n = successes / total, float(total)
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    share: float
    low: float
    high: float
    total: int

    @classmethod
    def of(cls, flags: Sequence[bool]) -> "Share":
        """The share of true ones."""
        low, high = wilson(sum(flags), len(flags))
        return cls(sum(flags) / len(flags) if flags else 0.0, low, high, len(flags))


def bootstrap_ratio(
    numerators: Float[np.ndarray, "n"], denominators: Float[np.ndarray, "n"], seed: int = 0
) -> tuple[float, float]:
    r"""95 % percentile interval of $\sum a / \sum b$ over items drawn with replacement (a mean where every $b$ is 1).

    Efron, Annals of Statistics 7 (1979) 1. Items are the unit: tokens of one document are not independent. (nan, nan)
    without items.
    """
    if not len(numerators):
        return math.nan, math.nan
    counts = _resampled_counts(len(numerators), seed)
    ratios = (counts @ numerators.astype(np.float64)) / (counts @ denominators.astype(np.float64))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean(values: Float[np.ndarray, "n"], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of independent items."""
    return bootstrap_ratio(values, np.ones(len(values)), seed)


@functools.lru_cache(maxsize=1)
def _resampled_counts(items: int, seed: int) -> Float[np.ndarray, "draws items"]:
    """How often each item stands in each resample; the same for the same number of items, so that pairs stay pairs."""
    generator = np.random.default_rng(seed)
    rows = [np.bincount(generator.integers(0, items, items), minlength=items) for _ in range(RESAMPLES)]
    return np.stack(rows).astype(np.float64)


def against_chance(low: float, high: float, chance: float, constant: float = 0.0) -> str:
    """A 95 % interval against the `chance` level, in words; `constant` is what always giving one same letter scores."""
    if high < chance:
        return "worse than guessing"
    if low <= chance:
        return "not distinguishable from guessing"
    if low <= constant:
        return "not distinguishable from always giving the same letter"
    return "better than guessing"


def mcnemar(first: Bool[np.ndarray, "n"], second: Bool[np.ndarray, "n"]) -> float:
    r"""Exact two-sided p-value that two models are equally often right, from the items on which they differ.

    With $b$ items that only the first got right, $c$ only the second: under equality $b \sim
    \mathrm{Binomial}(b + c, 1/2)$. McNemar, Psychometrika 12 (1947) 153. 1 where they never differ.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    fewer = min(only_first, only_second)
    # In logarithms: the binomials of thousands of items do not fit a float.
    logs = [
        math.lgamma(differing + 1) - math.lgamma(k + 1) - math.lgamma(differing - k + 1) - differing * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def paired_bootstrap(
    first: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]],
    second: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]],
    seed: int = 0,
) -> tuple[float, float, float]:
    r"""Second minus first of two ratios $\sum a / \sum b$ over the same items: 95 % interval and two-sided p-value.

    p is twice the smaller share of resamples on either side of 0, at least 2 / (draws + 1).
    """
    counts = _resampled_counts(len(first[0]), seed)
    (a, b), (c, d) = first, second
    differences = (counts @ c) / (counts @ d) - (counts @ a) / (counts @ b)
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm, Scandinavian Journal of Statistics 6 (1979) 65), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
