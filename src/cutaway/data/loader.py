"""Batches of packed rows, for ever: shuffled by seed and epoch, resumable at any row, for any number of ranks.

The stream of rows is a function of (documents, seed, row length) alone. An epoch is a permutation of the documents, cut
into windows of about WINDOW pieces; each window is packed best-fit and its rows are shuffled. Micro-batch m is
rows m*rows to (m+1)*rows-1 of the stream, across the ends of windows and epochs, and belongs to rank m % world.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Integer

from cutaway.data.batch import Batch, Rows, assemble, pack_rows
from cutaway.data.cache import TokenCache
from cutaway.data.hashing import derive_key, keyed_order, mix64
from cutaway.errors import UserError

__all__ = ["Batch", "EvaluationBatches", "OneBatch", "RowSource", "evaluation_batches"]

WINDOW = 8192


class RowSource:
    """Endless micro-batches of `rows` rows of `seq` tokens for one rank.

    Resuming: `state_dict()` is the place in the stream after what was handed out (not what was prefetched), the same on
    every rank that has taken equally many micro-batches; it may be loaded with other `rows` and another `world`.
    """

    def __init__(
        self,
        cache: TokenCache,
        indices: Integer[np.ndarray, "documents"] | None = None,
        *,
        rows: int,
        seq: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 0,
        window: int = WINDOW,
        make: Callable[[TokenCache, list[Rows], int, int], Batch] = assemble,
    ) -> None:
        """`indices` are the documents to use (None: all); `prefetch` micro-batches are prepared in a thread; `make`
        turns rows into a batch, where it is to hold more than a `Batch` does."""
        self.cache, self.rows, self.seq, self.seed = cache, rows, seq, seed
        self.rank, self.world, self.prefetch, self.window_pieces = rank, world, prefetch, window
        self.make = make
        self.indices = _usable(cache, indices, seq)
        if not len(self.indices):
            raise UserError("no document with a token to train on is left in the training data")
        self._place = (0, 0, 0)
        self._permuted: tuple[int, Any, Any] = (-1, None, None)
        self._packed: tuple[tuple[int, int], Rows] | None = None
        self._thread: _Prefetcher | None = None

    @property
    def tokens_per_epoch(self) -> int:
        """Useful tokens in one epoch: a document of n tokens gives n-1."""
        return int((self.cache.offsets[self.indices + 1] - self.cache.offsets[self.indices] - 1).sum())

    @property
    def trained_per_epoch(self) -> int:
        """Targets in one epoch that count in the loss."""
        return int(self.cache.targets_per_document[self.indices].sum(dtype=np.int64))

    @property
    def epoch(self) -> float:
        """Epochs handed out so far; within an epoch counted in windows and rows."""
        epoch, window, row = self._place
        windows = len(self._windows(epoch)[1]) - 1
        inside = row / len(self._pack(epoch, window)) if row else 0.0
        return epoch + (window + inside) / windows

    def total_rows(self, epoch: int = 0) -> int:
        """Exact number of rows in an epoch. Packs all of it: about a second for a million documents."""
        windows = len(self._windows(epoch)[1]) - 1
        return sum(len(self._pack(epoch, window, keep=False)) for window in range(windows))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.prefetch:
            batch, self._place = self._next(self._place)
            return batch
        self._thread = self._thread or _Prefetcher(self, self._place)
        batch, self._place = self._thread.get()
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, and what it is a stream of."""
        epoch, window, row = self._place
        return {"epoch": epoch, "window": window, "row": row} | self._identity()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there. Raises UserError where the state is of other data, seed or row length."""
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(f"cannot resume: {key} of the data was {state.get(key)}, is {value} now")
        self.close()
        self._place = (int(state["epoch"]), int(state["window"]), int(state["row"]))

    def close(self) -> None:
        """Stop the prefetching thread."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def _identity(self) -> dict[str, int]:
        content = mix64(self.cache.hashes[self.indices], 0) ^ mix64(self.indices, 1)
        return {
            "seed": self.seed,
            "seq": self.seq,
            "window_pieces": self.window_pieces,
            "documents": len(self.indices),
            "tokens": self.tokens_per_epoch,
            "content": int(np.bitwise_xor.reduce(content) >> np.uint64(1)),
        }

    def _next(self, place: tuple[int, int, int]) -> tuple[Batch, tuple[int, int, int]]:
        """This rank's micro-batch of the round that starts at `place`, and the start of the next round."""
        _, place = self._take(place, self.rank * self.rows)
        parts, place = self._take(place, self.rows)
        _, place = self._take(place, (self.world - 1 - self.rank) * self.rows)
        return self.make(self.cache, parts, self.rows, self.seq), place

    def _take(self, place: tuple[int, int, int], count: int) -> tuple[list[Rows], tuple[int, int, int]]:
        parts: list[Rows] = []
        epoch, window, row = place
        while count:
            packed = self._pack(epoch, window)
            step = min(count, len(packed) - row)
            parts.append(packed.part(row, row + step))
            row, count = row + step, count - step
            if row == len(packed):
                window, row = window + 1, 0
                if window == len(self._windows(epoch)[1]) - 1:
                    epoch, window = epoch + 1, 0
        return parts, (epoch, window, row)

    def _windows(self, epoch: int) -> tuple[Any, Any]:
        """The permutation of an epoch, and where its windows of nearly equal numbers of pieces begin and end."""
        if self._permuted[0] != epoch:
            permuted = self.indices[keyed_order(len(self.indices), derive_key(self.seed, epoch))]
            pairs = self.cache.offsets[permuted + 1] - self.cache.offsets[permuted] - 1
            pieces = np.cumsum(-(-pairs // self.seq))
            number = max(1, round(int(pieces[-1]) / self.window_pieces))
            ends = np.searchsorted(pieces, np.arange(1, number) * int(pieces[-1]) // number, side="left") + 1
            self._permuted = (epoch, permuted, np.unique(np.concatenate([[0], ends, [len(permuted)]])))
        return self._permuted[1], self._permuted[2]

    def _pack(self, epoch: int, window: int, keep: bool = True) -> Rows:
        if self._packed is not None and self._packed[0] == (epoch, window):
            return self._packed[1]
        permuted, bounds = self._windows(epoch)
        seed = derive_key(self.seed, epoch, window + 1)
        rows = pack_rows(self.cache, permuted[bounds[window] : bounds[window + 1]], self.seq, seed)
        if keep:
            self._packed = ((epoch, window), rows)
        return rows


class _Prefetcher:
    """Prepares micro-batches in a thread, on its own copy of the source's caches."""

    def __init__(self, source: RowSource, place: tuple[int, int, int]) -> None:
        self.queue: queue.Queue[Any] = queue.Queue(maxsize=source.prefetch)
        self.stopped = threading.Event()
        own = RowSource.__new__(RowSource)
        own.__dict__.update(source.__dict__)
        self.thread = threading.Thread(target=self._work, args=(own, place), daemon=True, name="cutaway-loader")
        self.thread.start()

    def _work(self, source: RowSource, place: tuple[int, int, int]) -> None:
        while not self.stopped.is_set():
            try:
                item: Any = source._next(place)
                place = item[1]
            except Exception as error:
                item = error
            while not self.stopped.is_set():
                try:
                    self.queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, Exception):
                return

    def get(self) -> tuple[Batch, tuple[int, int, int]]:
        item = self.queue.get()
        if isinstance(item, Exception):
            raise item
        result: tuple[Batch, tuple[int, int, int]] = item
        return result

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join(timeout=10)


class OneBatch:
    """The first micro-batch of a source, for ever: for --overfit-one-batch."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self.batch = next(source)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, int]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to remember."""


class EvaluationBatches:
    """One ordered pass over documents, as often as it is iterated; every batch has `rows` rows, the last is padded."""

    def __init__(self, cache: TokenCache, indices: Integer[np.ndarray, "documents"], rows: int, seq: int) -> None:
        self.cache, self.rows, self.seq = cache, rows, seq
        self.packed = pack_rows(cache, _usable(cache, indices, seq), seq, None)

    def __len__(self) -> int:
        return -(-len(self.packed) // self.rows)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = self.packed.part(number * self.rows, min((number + 1) * self.rows, len(self.packed)))
        return assemble(self.cache, [part], self.rows, self.seq)


def evaluation_batches(
    cache: TokenCache, indices: Integer[np.ndarray, "documents"], rows: int, seq: int
) -> tuple[EvaluationBatches, int]:
    """Batches of all given documents, in a fixed order, and the UTF-8 bytes of their trained text."""
    batches = EvaluationBatches(cache, np.asarray(indices, dtype=np.int64), rows, seq)
    return batches, int(cache.bytes_per_document[np.asarray(indices, dtype=np.int64)].sum(dtype=np.int64))


def _usable(
    cache: TokenCache, indices: Integer[np.ndarray, "documents"] | None, seq: int
) -> Integer[np.ndarray, "documents"]:
    """Documents with something to train on. Raises UserError for a conversation that fits no row."""
    chosen = np.arange(len(cache), dtype=np.int64) if indices is None else np.asarray(indices, dtype=np.int64)
    chosen = chosen[cache.targets_per_document[chosen] > 0]
    if cache.kind == "sft" and len(chosen):
        longest = int((cache.offsets[chosen + 1] - cache.offsets[chosen]).max())
        if longest > seq + 1:
            raise UserError(f"a conversation of {longest} tokens does not fit a row of {seq}: use a longer row_length")
    return chosen
