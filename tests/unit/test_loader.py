import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.data.batch import Batch
from cutaway.data.loader import OneBatch, RowSource, evaluation_batches
from cutaway.errors import UserError
from data_helpers import chat_cache, text_cache

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=40)


def same(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))


def rows_of(batches: list[Batch]) -> list[tuple[tuple[int, ...], ...]]:
    """Each row as plain tuples, in order."""
    fields = ("input_ids", "targets", "positions", "documents")
    return [
        tuple(tuple(getattr(batch, field)[row].tolist()) for field in fields)
        for batch in batches
        for row in range(len(batch.input_ids))
    ]


@given(LENGTHS, st.integers(3, 24), st.integers(0, 5), st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_an_epoch_gives_every_pair_once_and_no_document_crosses(
    lengths: list[int], seq: int, seed: int, window: int
) -> None:
    cache = text_cache(lengths)
    source = RowSource(cache, rows=1, seq=seq, seed=seed, window=window)
    batches = [next(source) for _ in range(source.total_rows())]
    assert source.state_dict()["epoch"] == 1 and source.epoch == 1.0
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        useful = batch.documents[0] >= 0
        pairs.update(zip(batch.input_ids[0, useful].tolist(), batch.targets[0, useful].tolist(), strict=True))
        assert (batch.targets[0, ~useful] == -100).all()
        assert batch.trained_tokens() == batch.useful_tokens() == int(useful.sum()) > 0
        for document in batch.documents[0, useful].unique():
            piece = batch.documents[0] == document
            tokens = batch.input_ids[0, piece]
            assert batch.positions[0, piece].tolist() == list(range(int(piece.sum())))
            assert tokens.tolist() == list(range(int(tokens[0]), int(tokens[0]) + len(tokens)))
            ends = np.searchsorted(cache.offsets, tokens.numpy(), side="right")
            assert len(set(ends.tolist())) == 1
    expected = [
        (t, t + 1) for start, n in zip(cache.offsets, lengths, strict=False) for t in range(start, start + n - 1)
    ]
    assert pairs == Counter(expected)
    assert sum(pairs.values()) == source.tokens_per_epoch == source.trained_per_epoch


@given(LENGTHS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_stream_does_not_depend_on_world_size_or_rows(lengths: list[int], rows: int, world: int, seed: int) -> None:
    cache = text_cache(lengths)
    single = RowSource(cache, rows=1, seq=16, seed=seed, window=7)
    expected = rows_of([next(single) for _ in range(rows * world * 3)])
    ranks = [RowSource(cache, rows=rows, seq=16, seed=seed, rank=r, world=world, window=7) for r in range(world)]
    assert rows_of([next(ranks[m % world]) for m in range(world * 3)]) == expected
    assert all(rank.state_dict() == single.state_dict() for rank in ranks)


@given(LENGTHS, st.integers(0, 6), st.sampled_from([0, 2]))
@settings(max_examples=30, deadline=None)
def test_resuming_goes_on_where_it_stopped(lengths: list[int], taken: int, prefetch: int) -> None:
    cache = text_cache(lengths)
    source = RowSource(cache, rows=2, seq=16, seed=1, prefetch=prefetch, window=7)
    for _ in range(taken):
        next(source)
    state = json.loads(json.dumps(source.state_dict()))
    rest = rows_of([next(source) for _ in range(6)])
    source.close()
    resumed = RowSource(cache, rows=3, seq=16, seed=1, rank=0, world=2, window=7)
    other = RowSource(cache, rows=3, seq=16, seed=1, rank=1, world=2, window=7)
    for fresh in (resumed, other):
        fresh.load_state_dict(state)
    assert rows_of([next(resumed), next(other), next(resumed), next(other)]) == rest
    assert resumed.state_dict() == source.state_dict()


def test_loading_a_state_discards_what_was_prefetched() -> None:
    source = RowSource(text_cache([9] * 30), rows=1, seq=16, prefetch=3, window=5)
    start = source.state_dict()
    first = [next(source) for _ in range(3)]
    source.load_state_dict(start)
    again = [next(source) for _ in range(3)]
    source.close()
    assert all(map(same, first, again))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    cache = text_cache([17] * 64)

    def epochs(seed: int) -> list[list[tuple[tuple[int, ...], ...]]]:
        source = RowSource(cache, rows=1, seq=16, seed=seed)
        return [rows_of([next(source) for _ in range(64)]) for _ in range(2)]

    first, second = epochs(0)
    other, _ = epochs(1)
    assert sorted(first) == sorted(second) == sorted(other)
    assert len({str(order) for order in (first, second, other)}) == 3


def test_state_of_other_data_is_refused() -> None:
    state = RowSource(text_cache([9] * 30), rows=1, seq=16).state_dict()
    for other in (
        RowSource(text_cache([9] * 31), rows=1, seq=16),
        RowSource(text_cache([9] * 30), rows=1, seq=8),
        RowSource(text_cache([9] * 30), rows=1, seq=16, seed=3),
        RowSource(text_cache([9] * 31), np.arange(1, 31), rows=1, seq=16),
    ):
        with pytest.raises(UserError, match="cannot resume"):
            other.load_state_dict(state)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=17), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_conversations_keep_their_masks_and_no_row_is_untrained(masks: list[list[bool]]) -> None:
    cache = chat_cache(masks)
    if not any(any(mask[1:]) for mask in masks):
        with pytest.raises(UserError, match="no document with a token to train on"):
            RowSource(cache, rows=1, seq=16)
        return
    source = RowSource(cache, rows=1, seq=16, window=4)
    batches = [next(source) for _ in range(source.total_rows())]
    assert all(batch.trained_tokens() > 0 for batch in batches)
    targets = Counter(target for batch in batches for target in batch.targets.flatten().tolist() if target != -100)
    assert targets == Counter(np.flatnonzero(cache.flat_trained).tolist())
    assert sum(targets.values()) == source.trained_per_epoch


def test_a_conversation_longer_than_a_row_is_refused() -> None:
    RowSource(chat_cache([[True] * 17]), rows=1, seq=16)
    with pytest.raises(UserError, match="18 tokens does not fit a row of 16"):
        RowSource(chat_cache([[True] * 18]), rows=1, seq=16)


def test_evaluation_is_one_ordered_pass_of_equal_batches() -> None:
    cache = text_cache([5, 40, 9, 17, 3])
    batches, num_bytes = evaluation_batches(cache, np.array([0, 1, 3]), rows=2, seq=16)
    found = list(batches)
    assert len(found) == len(batches) == 2 and all(batch.input_ids.shape == (2, 16) for batch in found)
    targets = sorted(t for batch in found for t in batch.targets.flatten().tolist() if t != -100)
    assert targets == [*range(1, 5), *range(6, 45), *range(55, 71)]
    assert num_bytes == 62
    assert all(map(same, found, batches))


def test_one_batch_repeats_the_first() -> None:
    source = RowSource(text_cache([9] * 30), rows=2, seq=16)
    one = OneBatch(source)
    assert all(same(one.batch, batch) for batch in itertools.islice(one, 3)) and one.state_dict() == {}


def test_dtypes_and_moving() -> None:
    batch = next(RowSource(text_cache([9] * 30), rows=2, seq=16))
    kinds = [tensor.dtype for tensor in vars(batch).values()]
    assert kinds == [torch.int64, torch.int64, torch.int64, torch.int32]
    assert same(batch.to("cpu"), batch)


def test_errors_in_the_thread_reach_the_caller() -> None:
    source = RowSource(text_cache([9] * 30), rows=2, seq=16, prefetch=1)
    object.__setattr__(source.cache, "flat_tokens", np.zeros(3, np.uint16))
    with pytest.raises(IndexError):
        next(source)
    source.close()


@pytest.mark.long
def test_the_order_is_the_same_in_another_process() -> None:
    script = (
        "from data_helpers import text_cache; from cutaway.data.loader import RowSource\n"
        "source = RowSource(text_cache([9, 30, 4, 17] * 20), rows=2, seq=16, seed=5, window=9)\n"
        "print([next(source).input_ids.tolist() for _ in range(40)])"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1000
