"""Batches: the tensors of packed rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from cutaway.data.cache import TokenCache
from cutaway.data.hashing import keyed_order
from cutaway.data.packing import pack_best_fit, ragged_arange, split_documents


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass
class Batch:
    """Rows of packed documents.

    `targets` is the next token of the same document, -100 where it is not trained on and in padding. `positions` count
    from 0 in every piece. `documents` tells the pieces of a row apart; padding is -1.
    """

    input_ids: Int[Tensor, "rows seq"]
    targets: Int[Tensor, "rows seq"]
    positions: Int[Tensor, "rows seq"]
    documents: Int[Tensor, "rows seq"]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        tensors = (self.input_ids, self.targets, self.positions, self.documents)
        return Batch(*(moved(tensor, device) for tensor in tensors))

    def trained_tokens(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets != -100).sum())

    def useful_tokens(self) -> int:
        """Input tokens that are not padding."""
        return int((self.documents >= 0).sum())


@dataclass
class TaughtBatch(Batch):
    """Rows beside what a teacher thought of each place: its `k` likeliest next tokens and their log-probabilities,
    meaningful where the target is trained on."""

    teacher_ids: Int[Tensor, "rows seq k"]
    teacher_logprobs: Float[Tensor, "rows seq k"]

    def to(self, device: torch.device | str) -> "TaughtBatch":
        """The batch on another device."""
        plain = super().to(device)
        tensors = plain.input_ids, plain.targets, plain.positions, plain.documents
        return TaughtBatch(*tensors, moved(self.teacher_ids, device), moved(self.teacher_logprobs, device))


@dataclass
class WrittenBatch(Batch):
    """Rows whose targets the model in training has written itself."""

    def to(self, device: torch.device | str) -> "WrittenBatch":
        """The batch on another device."""
        plain = super().to(device)
        return WrittenBatch(plain.input_ids, plain.targets, plain.positions, plain.documents)


class Rows(NamedTuple):
    """Packed rows as flat pieces: row r holds pieces `ends[r-1]` to `ends[r]-1`, each a stretch of one document."""

    document: Integer[np.ndarray, "pieces"]
    start: Integer[np.ndarray, "pieces"]
    pairs: Integer[np.ndarray, "pieces"]
    ends: Integer[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, first: int, last: int) -> "Rows":
        """Rows first to last-1."""
        begin = int(self.ends[first - 1]) if first else 0
        end = int(self.ends[last - 1]) if last else 0
        pieces = slice(begin, end)
        return Rows(self.document[pieces], self.start[pieces], self.pairs[pieces], self.ends[first:last] - begin)


def pack_rows(cache: TokenCache, indices: Integer[np.ndarray, "documents"], seq: int, shuffle_seed: int | None) -> Rows:
    """Pack documents into rows of `seq` tokens; the rows are shuffled unless `shuffle_seed` is None."""
    pieces = split_documents(cache.offsets[indices + 1] - cache.offsets[indices], seq)
    packed = pack_best_fit(pieces.pairs, seq)
    if shuffle_seed is not None:
        packed = [packed[row] for row in keyed_order(len(packed), shuffle_seed).tolist()]
    flat = np.fromiter((piece for row in packed for piece in row), dtype=np.int64, count=len(pieces.pairs))
    ends = np.cumsum(np.array([len(row) for row in packed], dtype=np.int64))
    return Rows(indices[pieces.document[flat]], pieces.start[flat], pieces.pairs[flat], ends)


def assemble(cache: TokenCache, parts: list[Rows], rows: int, seq: int) -> Batch:
    """The tensors of some rows, `rows` of them in all; missing ones are padding."""
    return assemble_with_places(cache, parts, rows, seq)[0]


def assemble_with_places(
    cache: TokenCache, parts: list[Rows], rows: int, seq: int
) -> tuple[Batch, Integer[np.ndarray, "rows seq"]]:
    """The same, and where in the cache's `flat_tokens` each target is; -1 in padding."""
    document, start, pairs = (np.concatenate([part[field] for part in parts]) for field in range(3))
    per_row = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
    row_of = np.repeat(np.arange(len(per_row), dtype=np.int64), per_row)
    before = np.cumsum(pairs) - pairs
    row_before = before[np.cumsum(per_row) - per_row] if len(per_row) else before
    within = ragged_arange(pairs)
    target_place = np.repeat(row_of * seq + before - row_before[row_of], pairs) + within
    source = np.repeat(cache.offsets[document] + start, pairs) + within
    input_ids, positions = np.zeros(rows * seq, np.int64), np.zeros(rows * seq, np.int64)
    targets, documents = np.full(rows * seq, -100, np.int64), np.full(rows * seq, -1, np.int32)
    input_ids[target_place] = cache.flat_tokens[source]
    wanted = cache.flat_tokens[source + 1].astype(np.int64)
    if cache.flat_trained is not None:
        wanted[cache.flat_trained[source + 1] == 0] = -100
    targets[target_place] = wanted
    positions[target_place] = within
    documents[target_place] = np.repeat(ragged_arange(per_row), pairs)
    places = np.full(rows * seq, -1, np.int64)
    places[target_place] = source + 1
    arrays = (input_ids, targets, positions, documents)
    return Batch(*(torch.from_numpy(array).view(rows, seq) for array in arrays)), places.reshape(rows, seq)
