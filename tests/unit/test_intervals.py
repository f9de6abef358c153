import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.evals.intervals import (
    against_chance,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    mcnemar,
    paired_bootstrap,
)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * first + [False] * second + [False] * neither
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def test_mcnemar_against_worked_values() -> None:
    # Binomial tails by hand: 2 (1 + 10 + 45) / 1024; 2 / 32; and no difference at all.
    assert mcnemar(*pairs(5, 2, 8, 3)) == pytest.approx(2 * 56 / 1024)
    assert mcnemar(*pairs(0, 0, 5, 0)) == pytest.approx(2 / 32)
    assert mcnemar(*pairs(9, 0, 0, 9)) == 1 and mcnemar(*pairs(0, 4, 4, 0)) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_against_the_sum_of_binomials(first: int, second: int) -> None:
    n = first + second
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n)
    assert mcnemar(*pairs(3, first, second, 2)) == pytest.approx(exact)


def test_mcnemar_of_thousands_does_not_overflow() -> None:
    assert 0 < mcnemar(*pairs(100, 2400, 2600, 100)) < 0.01


def test_bootstrap_agrees_with_the_normal_interval_where_that_is_right() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 900)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 30
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.02),
        pytest.approx(values.mean() + half, abs=0.02),
    )


def test_bootstrap_of_a_ratio_weighs_by_the_denominator() -> None:
    low, high = bootstrap_ratio(np.array([2.0, 20.0]), np.array([1.0, 10.0]))
    assert (low, high) == (2.0, 2.0)
    assert all(math.isnan(end) for end in bootstrap_mean(np.array([])))


def test_paired_bootstrap_sees_a_small_constant_gain_that_intervals_hide() -> None:
    a = np.random.default_rng(1).normal(10.0, 5.0, 200)
    ones = np.ones(200)
    low, high, p = paired_bootstrap((a, ones), (a - 0.1, ones))
    assert low == pytest.approx(-0.1) == high and p < 0.01
    low, high, p = paired_bootstrap((a, ones), (a[::-1].copy(), ones))
    assert low < 0 < high and p > 0.05


def test_words_for_an_interval() -> None:
    assert against_chance(0.24, 0.29, 0.25) == "not distinguishable from guessing"
    assert against_chance(0.25, 0.29, 0.25) == "not distinguishable from guessing"
    assert against_chance(0.26, 0.29, 0.25) == "better than guessing"
    assert against_chance(0.20, 0.24, 0.25) == "worse than guessing"
    assert against_chance(0.26, 0.29, 0.25, constant=0.27) == "not distinguishable from always giving the same letter"


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
