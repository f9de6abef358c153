"""What RL measures between two log lines: sums with counts of their own, added over ranks when the line is written."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.training.distributed import Ranks

RATIO_EDGES = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)
"""Bounds of the bins of the histogram of ratios."""


class Meter:
    """Means by name, over what all ranks added; a mean of nothing is left out of the line."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add to the sum and the count of a mean; both stay on the device."""
        device = next((value.device for value in (total, count) if isinstance(value, Tensor)), torch.device("cpu"))
        wide = torch.float32 if device.type == "mps" else torch.float64
        pair = torch.stack([torch.as_tensor(value, dtype=wide, device=device).detach() for value in (total, count)])
        self._sums[name] = self._sums[name] + pair.to(self._sums[name].device) if name in self._sums else pair

    def add_masked(self, name: str, values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> None:
        """Add the masked values to a mean over tokens."""
        self.add(name, torch.where(mask, values, 0.0).sum(), mask.sum())

    def add_histogram(self, ratio: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> None:
        """Shares of the tokens whose ratio lies in each bin, as `ratio_FROM_TO`."""
        edges = torch.tensor(RATIO_EDGES, device=ratio.device)
        counts = torch.bincount(torch.bucketize(ratio[mask], edges), minlength=len(RATIO_EDGES) + 1)
        bounds = ("0", *(f"{edge:g}" for edge in RATIO_EDGES), "inf")
        for number in range(len(RATIO_EDGES) + 1):
            self.add(f"ratio_{bounds[number]}_{bounds[number + 1]}", counts[number], mask.sum())

    def kept(self) -> dict[str, Tensor]:
        """What was added so far, for `put_back`."""
        return dict(self._sums)

    def put_back(self, kept: dict[str, Tensor]) -> None:
        """Forget what was added since."""
        self._sums = dict(kept)

    def report(self) -> dict[str, float]:
        """All means over all ranks since the last report, which begins anew."""
        parts = self.ranks.gather({name: pair.tolist() for name, pair in self._sums.items()})
        self._sums = {}
        means = {}
        for name in sorted({name for part in parts for name in part}):
            total, count = (sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True))
            if count:
                means[name] = total / count
        return means
