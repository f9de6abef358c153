"""Near-duplicates: MinHash signatures with datasketch's permutations, and an index of bands that stays small.

The Jaccard similarity of two documents is that of their sets of runs of SHINGLE units (`data/units.py`). For one
permutation, two sets have the same minimum with just that probability (Broder 1997), so the share of equal minima among
PERMUTATIONS estimates it, with a standard error of sqrt(J (1 - J) / PERMUTATIONS).

Documents are compared where a whole band of ROWS minima agrees, which happens with probability 1 - (1 - J^ROWS)^BANDS:
0.99 at J = 0.8, 0.9999 at 0.9. The index is a dict from a band to the first document that has it, and one byte of each
minimum; datasketch's own MinHashLSH gives the same candidates but takes several times the memory a document.
"""

import functools
import sys
from array import array

import numpy as np
from jaxtyping import UInt8, UInt32, UInt64

from cutaway.data.hashing import mix64
from cutaway.data.units import Ngrams
from cutaway.errors import UserError

SHINGLE, PERMUTATIONS, BANDS, ROWS = 5, 256, 16, 6
Signatures = UInt32[np.ndarray, "documents 256"]


@functools.cache
def permutations() -> UInt32[np.ndarray, "2 256"]:
    """a and b of h -> a h + b modulo 2^32. Raises UserError where the extra is missing."""
    try:
        from datasketch import MinHash
    except ImportError:
        raise UserError("finding near-duplicates needs the text extra: pip install 'cutaway[text]'") from None
    pairs: UInt32[np.ndarray, "2 256"] = MinHash(num_perm=PERMUTATIONS, scheme="affine32").permutations
    return pairs


def signatures(shingles: Ngrams) -> Signatures:
    """The minimum of every permutation over each document's shingles; all ones where it has none.

    The low 32 bits of a shingle's hash are well mixed already, so they go into the permutations as they are.
    """
    found = np.full((len(shingles.offsets) - 1, PERMUTATIONS), 2**32 - 1, np.uint32)
    some = np.flatnonzero(np.diff(shingles.offsets))
    if len(some):
        hashes, starts = shingles.hashes.astype(np.uint32), shingles.offsets[:-1][some]
        for number, (a, b) in enumerate(permutations().T):
            found[some, number] = np.minimum.reduceat(hashes * a + b, starts)
    return found


def bands(signature: Signatures) -> UInt64[np.ndarray, "documents 16"]:
    """One hash a band, the number of the band included."""
    rows = signature[:, : BANDS * ROWS].reshape(-1, BANDS, ROWS).astype(np.uint64)
    keys = mix64(np.arange(BANDS), 0xBA2D)
    weights = mix64(np.arange(ROWS), 0x2035) | np.uint64(1)
    return mix64(((rows * weights).sum(axis=2, dtype=np.uint64) + keys).reshape(-1), 0).reshape(-1, BANDS)


def sketches(signature: Signatures) -> UInt8[np.ndarray, "documents 256"]:
    """The low byte of every minimum, enough to estimate a similarity once two documents are candidates."""
    return signature.astype(np.uint8)


class NearIndex:
    """Documents seen so far. `add` says what an equal enough one among them is called."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._holder: dict[int, int] = {}
        self._sketches = bytearray()
        self._names = array("Q")

    def find(self, keys: list[int], sketch: UInt8[np.ndarray, "256"]) -> tuple[int, float] | None:
        """Name and estimated similarity of the most similar document at or above the threshold."""
        best: tuple[int, float] | None = None
        get = self._holder.get
        for number in {holder for key in keys if (holder := get(key)) is not None}:
            other = np.frombuffer(self._sketches[number * PERMUTATIONS : (number + 1) * PERMUTATIONS], np.uint8)
            equal = float(np.count_nonzero(other == sketch)) / PERMUTATIONS
            similarity = max(0.0, (equal - 1 / 256) / (1 - 1 / 256))  # a byte is equal by chance once in 256
            if similarity >= self.threshold and (best is None or similarity > best[1]):
                best = self._names[number], similarity
        return best

    def add(self, keys: list[int], sketch: UInt8[np.ndarray, "256"], name: int) -> None:
        """Remember a document under a name of at most 64 bits."""
        number = len(self._names)
        self._names.append(name)
        self._sketches += sketch.tobytes()
        for key in keys:
            self._holder.setdefault(key, number)

    def __len__(self) -> int:
        return len(self._names)

    def num_bytes(self) -> int:
        """Memory of the index: the dict, its keys (Python integers), sketches and names."""
        keys = len(self._holder) * sys.getsizeof(2**62) + len(self._names) * sys.getsizeof(2**30)
        return sys.getsizeof(self._holder) + keys + sys.getsizeof(self._sketches) + sys.getsizeof(self._names)
