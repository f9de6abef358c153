"""The learning-rate schedule against a table written down step by step, and what must hold for all settings."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.training.schedule import learning_rate_factor


def factors(total: int, **settings: Any) -> list[float]:
    return [learning_rate_factor(step, total, **settings) for step in range(total)]


def naive(total: int, kind: str, warmup: float, decay: float, final: float) -> list[float]:
    """The whole table at once: ramps joined end to end."""
    warm = max(1, round(warmup * total))
    table = list(np.linspace(0, 1, warm + 2)[1:-1])
    if kind == "cosine":
        after = np.linspace(0, math.pi, total - warm) if total - warm > 1 else np.zeros(total - warm)
        return table + list(final + (1 - final) * 0.5 * (1 + np.cos(after)))
    falling = max(1, round(decay * total))
    table += [1.0] * (total - warm - falling)
    return table + list(np.linspace(1, final, falling + 1)[1:])


# Shares that leave at least a step between warm-up and decay.
shares = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["wsd", "cosine"]),
        "warmup": st.floats(0, 0.4),
        "decay": st.floats(0, 0.5),
        "final": st.floats(0, 0.5),
    }
)
totals = st.integers(10, 3000)


@given(totals, shares)
def test_equals_the_naive_table(total: int, settings: dict[str, Any]) -> None:
    np.testing.assert_allclose(factors(total, **settings), naive(total, **settings), atol=1e-12)


@pytest.mark.long
@given(totals, shares)
def test_bounded_never_zero_in_warmup_and_ends_at_final(total: int, settings: dict[str, Any]) -> None:
    values = factors(total, **settings)
    assert values[0] > 0
    assert all(min(values[0], settings["final"]) - 1e-12 <= value <= 1 for value in values)
    assert values[-1] == pytest.approx(settings["final"])
    assert max(values) == 1.0
    top = values.index(1.0)
    assert all(a < b for a, b in itertools.pairwise(values[: top + 1]))
    assert all(a >= b for a, b in zip(values[top:], values[top + 1 :], strict=False))


@pytest.mark.long
@given(totals, shares)
def test_no_step_jumps(total: int, settings: dict[str, Any]) -> None:
    values = factors(total, **settings)
    warm = max(1, round(settings["warmup"] * total))
    if settings["kind"] == "cosine":
        falling = math.pi / 2 / max(1, total - 1 - warm)
    else:
        falling = 1 / max(1, round(settings["decay"] * total))
    limit = max(1 / (warm + 1), falling) + 1e-9
    assert all(abs(b - a) <= limit for a, b in itertools.pairwise(values))


@given(totals, shares)
def test_wsd_is_stable_between_warmup_and_decay(total: int, settings: dict[str, Any]) -> None:
    values = factors(total, **settings | {"kind": "wsd"})
    warm = max(1, round(settings["warmup"] * total))
    falling = max(1, round(settings["decay"] * total))
    assert all(value == 1.0 for value in values[warm : total - falling])
    assert values[total - falling] < 1.0


@given(st.integers(1, 20), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["wsd", "cosine"]))
def test_any_shares_of_a_short_run_stay_in_bounds(total: int, warmup: float, decay: float, kind: Any) -> None:
    values = factors(total, kind=kind, warmup=warmup, decay=decay, final=0.1)
    assert all(0 < value <= 1 for value in values)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    settings: dict[str, Any] = {"kind": "cosine", "warmup": 0.1, "decay": 0.0, "final": 0.2}
    assert learning_rate_factor(10, 111, **settings | {"warmup": 10 / 111}) == 1.0
    assert learning_rate_factor(60, 111, **settings | {"warmup": 10 / 111}) == pytest.approx(0.6)
    assert learning_rate_factor(110, 111, **settings | {"warmup": 10 / 111}) == pytest.approx(0.2)
