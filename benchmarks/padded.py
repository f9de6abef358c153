"""What a loader without packing feeds: a document a row, cut at the row length and padded to it. For the benchmarks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cutaway.data.cache import TokenCache
from cutaway.data.loader import Batch

WIDTH = 64
"""Widths of grouped batches are multiples of it, so that a compiled peer meets few shapes."""


class PaddedRows:
    """Endless micro-batches; with `group`, documents of like length share a micro-batch and pad to its longest.

    Has what the loop and the preparation ask of a batch source.
    """

    def __init__(
        self,
        cache: TokenCache,
        indices: "np.ndarray[Any, Any]",
        rows: int,
        length: int,
        seed: int,
        group: bool = False,
    ) -> None:
        chosen = np.asarray(indices)[cache.targets_per_document[np.asarray(indices)] > 0]
        self.cache, self.indices = cache, chosen
        self.rows, self.length, self.seed, self.group = rows, length, seed, group
        self._given, self._epoch = 0, -1
        self._chunks: list[np.ndarray[Any, Any]] = []

    @property
    def tokens_per_epoch(self) -> int:
        """Input tokens that are not cut off."""
        return int(np.minimum(self.cache.lengths[self.indices] - 1, self.length).sum())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        per_epoch = max(1, len(self.indices) // self.rows)
        epoch, number = divmod(self._given, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._chunks = epoch, self._shuffled(epoch, per_epoch)
        self._given += 1
        return self._assembled(self._chunks[number][: self.rows])

    def state_dict(self) -> dict[str, int]:
        """How many micro-batches were handed out."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after as many."""
        self._given = state["given"]

    def close(self) -> None:
        """Nothing to stop."""

    def _shuffled(self, epoch: int, per_epoch: int) -> "list[np.ndarray[Any, Any]]":
        draw = np.random.default_rng((self.seed, epoch))
        order = draw.permutation(self.indices)
        if self.group:
            # Sorted within windows of fifty micro-batches, as length-grouped samplers do, then shuffled as a whole.
            window = 50 * self.rows
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = np.concatenate([part[np.argsort(self.cache.lengths[part], kind="stable")] for part in parts])
            chunks = [order[start : start + self.rows] for start in range(0, per_epoch * self.rows, self.rows)]
            return [chunks[place] for place in draw.permutation(len(chunks))]
        return np.array_split(order, per_epoch)

    def _assembled(self, chunk: "np.ndarray[Any, Any]") -> Batch:
        cut = np.minimum(self.cache.lengths[chunk] - 1, self.length)
        width = min(self.length, -(-int(cut.max()) // WIDTH) * WIDTH) if self.group else self.length
        shape = (self.rows, width)
        input_ids, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
        documents = torch.full(shape, -1, dtype=torch.int32)
        for row, index in enumerate(chunk):
            tokens = torch.from_numpy(self.cache.tokens(int(index))[: width + 1].astype(np.int64))
            trained = self.cache.trained(int(index))
            wanted = tokens[1:].clone()
            if trained is not None:
                wanted[~torch.from_numpy(trained[1 : width + 1].copy())] = -100
            input_ids[row, : len(tokens) - 1], targets[row, : len(tokens) - 1] = tokens[:-1], wanted
            documents[row, : len(tokens) - 1] = 0
        positions = torch.arange(width).expand(shape).contiguous()
        return Batch(input_ids, targets, positions, documents)
