import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.packing import pack_best_fit, ragged_arange, split_documents


@given(st.integers(1, 40).flatmap(lambda row: st.tuples(st.just(row), st.lists(st.integers(1, row), max_size=80))))
def test_every_piece_is_in_exactly_one_row_that_holds_it(case: tuple[int, list[int]]) -> None:
    row_length, sizes = case
    rows = pack_best_fit(sizes, row_length)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    assert all(0 < sum(sizes[piece] for piece in row) <= row_length for row in rows)


@given(st.integers(1, 40).flatmap(lambda row: st.tuples(st.just(row), st.lists(st.integers(1, row), max_size=80))))
def test_best_fit_is_within_its_bound(case: tuple[int, list[int]]) -> None:
    """Best-fit decreasing needs at most 11/9 of the optimum plus 4 rows, and the optimum at least total / length."""
    row_length, sizes = case
    rows = pack_best_fit(sizes, row_length)
    half = sum(size * 2 > row_length for size in sizes)
    assert len(rows) >= max(-(-sum(sizes) // row_length), half)
    assert sum(2 * sum(sizes[piece] for piece in row) <= row_length for row in rows) <= 1


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    assert pack_best_fit([5, 7, 3, 5], 10) == [[1, 2], [0, 3]]


def test_padding_is_small_on_lengths_as_real_text_has_them() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    pieces = split_documents(np.exp(rng.normal(5.5, 1.0, 8192)).astype(np.int64) + 2, 512)
    rows = pack_best_fit(pieces.pairs, 512)
    assert pieces.pairs.sum() / (len(rows) * 512) > 0.99


@pytest.mark.parametrize("sizes", [[11], [0], [-1]])
def test_impossible_pieces_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="1 to 10"):
        pack_best_fit(sizes, 10)


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 20))
def test_splitting_keeps_every_pair_once(lengths: list[int], row_length: int) -> None:
    pieces = split_documents(np.array(lengths, dtype=np.int64), row_length)
    pairs = [
        (document, start + offset)
        for document, start, count in zip(*(part.tolist() for part in pieces), strict=True)
        for offset in range(count)
    ]
    assert pairs == [(document, place) for document, n in enumerate(lengths) for place in range(max(n - 1, 0))]
    assert all(1 <= count <= row_length for count in pieces.pairs.tolist())


@given(st.lists(st.integers(0, 9), max_size=20))
def test_ragged_arange(counts: list[int]) -> None:
    expected = [place for count in counts for place in range(count)]
    assert ragged_arange(np.array(counts, dtype=np.int64)).tolist() == expected
