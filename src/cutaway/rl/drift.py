"""When to stop training on a rollout: once the policy is too far from the one that answered."""

from torch import Tensor

from cutaway.rl.rollout import Minibatch
from cutaway.training.distributed import Ranks


class Drift:
    """How far the policy is from the one that answered, over the updates of a rollout, on all ranks."""

    def __init__(self, ranks: Ranks, target: float) -> None:
        self.ranks, self.target, self.sums = ranks, target, [0.0, 0.0]

    def add(self, batch: Minibatch, moved: Tensor) -> None:
        """Take notice of a micro-batch; a rollout's first update begins anew."""
        if not self.target:
            return
        if batch.first:
            self.sums = [0.0, 0.0]
        self.sums = [self.sums[0] + float(moved[batch.mask].sum()), self.sums[1] + float(batch.mask.sum())]

    def overrun(self) -> bool:
        """Whether the last update was made further than `target` nats a token away; asked once an update."""
        moved, count = self.ranks.sum_all(self.sums)
        self.sums = [0.0, 0.0]
        return moved > self.target * max(1.0, count)
