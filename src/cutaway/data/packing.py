"""Packing documents into rows of equal length, best fit first.

A document of n tokens gives n-1 (input, target) pairs; a row of length L holds L of them. A document of more pairs is
cut into pieces: piece k holds the pairs kL to (k+1)L-1, and starts with the last target of the piece before, so that no
target is lost and none appears twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer


class Pieces(NamedTuple):
    """Pieces of documents, in order: `document` (index as given), `start` (first input token in it), `pairs`."""

    document: Integer[np.ndarray, "pieces"]
    start: Integer[np.ndarray, "pieces"]
    pairs: Integer[np.ndarray, "pieces"]


def split_documents(lengths: Integer[np.ndarray, "documents"], row_length: int) -> Pieces:
    """Cut documents of `lengths` tokens into pieces of at most `row_length` pairs; under two tokens give none."""
    pairs = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
    counts = -(-pairs // row_length)
    document = np.repeat(np.arange(len(pairs), dtype=np.int64), counts)
    start = ragged_arange(counts) * row_length
    return Pieces(document, start, np.minimum(pairs[document] - start, row_length))


def pack_best_fit(lengths: Sequence[int] | Integer[np.ndarray, "pieces"], row_length: int) -> list[list[int]]:
    """Put pieces into rows: longest first, each into the fullest row that still has room (best-fit decreasing).

    Returns the rows as lists of piece indices. A bitmap of the free spaces that exist finds a piece's row in one step,
    so the cost is O(n) steps of row_length/64 machine words, and the sort. Raises ValueError where a piece fits no row.
    Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3 (arXiv:2404.10830).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and (sizes.max() > row_length or sizes.min() < 1):
        raise ValueError(f"pieces must have 1 to {row_length} pairs, have {sizes.min()} to {sizes.max()}")
    rows: list[list[int]] = []
    rows_by_space: list[list[int]] = [[] for _ in range(row_length + 1)]
    spaces = 0
    order = np.argsort(-sizes, kind="stable")
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        enough = spaces >> size
        if enough:
            space = size + (enough & -enough).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
            rows[row].append(index)
        else:
            space, row = row_length, len(rows)
            rows.append([index])
        left = space - size
        if left:
            rows_by_space[left].append(row)
            spaces |= 1 << left
    return rows


def ragged_arange(counts: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "total"]:
    """0..counts[0]-1, 0..counts[1]-1, ... in one array."""
    before = np.cumsum(counts) - counts
    total = int(np.sum(counts))
    within: np.ndarray = np.arange(total, dtype=np.int64) - np.repeat(before, counts)
    return within
