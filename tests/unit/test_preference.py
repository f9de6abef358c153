"""Preference losses by hand and by what must hold whatever the numbers are."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cutaway.objectives import preference
from cutaway.objectives.preference import Pairs
from cutaway.objectives.reward import bradley_terry


def one_pair(values: list[float], tokens: tuple[int, int] = (2, 4)) -> Pairs:
    chosen, rejected, ref_chosen, ref_rejected = (torch.tensor([float(value)]) for value in values)
    lengths = (torch.tensor([float(count)]) for count in tokens)
    return Pairs(chosen.requires_grad_(), rejected.requires_grad_(), ref_chosen, ref_rejected, *lengths)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# chosen -2 (reference -3), rejected -5 (reference -4): ratios 1 and -1, margin 2; a token 0.5 and -0.25, margin 0.75.
TABLE: list[tuple[str, Callable[[Pairs], Tensor], float]] = [
    ("dpo", lambda p: preference.dpo(p, 0.5), -log_sigmoid(1.0)),
    ("dpo smoothed", lambda p: preference.dpo(p, 0.5, 0.25), -0.75 * log_sigmoid(1.0) - 0.25 * log_sigmoid(-1.0)),
    ("robust", lambda p: preference.robust(p, 0.5, 0.25), (-0.75 * log_sigmoid(1) + 0.25 * log_sigmoid(-1)) / 0.5),
    ("hinge", lambda p: preference.hinge(p, 0.25), 0.5),
    ("ipo", lambda p: preference.ipo(p, 0.5), (0.75 - 1) ** 2),
    ("dpo_norm", lambda p: preference.dpo_norm(p, 2.0), -log_sigmoid(1.5)),
    ("simpo", lambda p: preference.simpo(p, 2.0, 0.3), -log_sigmoid(2 * (-1 + 1.25) - 0.3)),
    ("cpo", lambda p: preference.cpo(p, 0.5), -log_sigmoid(1.5)),
    ("chosen_nll", preference.chosen_nll, 1.0),
]


@pytest.mark.parametrize(("name", "loss", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_by_hand(name: str, loss: Callable[[Pairs], Tensor], expected: float) -> None:
    assert loss(one_pair([-2.0, -5.0, -3.0, -4.0])).item() == pytest.approx(expected, abs=1e-6)


def test_orpo_by_hand() -> None:
    odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (-1.0, -1.25)]
    expected = -0.1 * log_sigmoid(math.log(odds[0] / odds[1]))
    assert preference.orpo(one_pair([-2, -5, -3, -4]), 0.1).item() == pytest.approx(expected, abs=1e-6)


def test_kto_by_hand() -> None:
    ratio, desirable = torch.tensor([1.0, -1.0]), torch.tensor([True, False])
    loss = preference.kto(ratio, desirable, torch.tensor(0.5), 2.0, 1.2, 0.7)
    sigmoid = [1 / (1 + math.exp(-x)) for x in (2 * 0.5, 2 * 1.5)]
    torch.testing.assert_close(loss, torch.tensor([1.2 * (1 - sigmoid[0]), 0.7 * (1 - sigmoid[1])]))
    assert preference.kto_kl(torch.tensor([-3.0, 1.0])).item() == 0
    assert preference.kto_kl(torch.tensor([3.0, 1.0])).item() == 2


numbers = st.floats(-60, -0.01)
PULLS = [
    lambda p: preference.dpo(p, 0.1),
    lambda p: preference.dpo_norm(p, 1.0),
    lambda p: preference.simpo(p, 2.0, 0.5),
    lambda p: preference.cpo(p, 0.1),
    lambda p: preference.orpo(p, 0.1) + preference.chosen_nll(p),
]


@given(values=st.tuples(numbers, numbers, numbers, numbers), loss=st.sampled_from(PULLS))
def test_the_chosen_answer_is_made_likelier_and_the_rejected_one_never(
    values: tuple[float, float, float, float], loss: Callable[[Pairs], Tensor]
) -> None:
    pairs = one_pair(list(values))
    value = loss(pairs)
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert pairs.chosen.grad is not None and pairs.rejected.grad is not None
    assert pairs.chosen.grad.item() <= 0 and pairs.rejected.grad.item() >= 0


@given(values=st.tuples(numbers, numbers, numbers, numbers), beta=st.floats(0.01, 2))
def test_robust_and_smoothed_dpo_are_dpo_without_flipped_labels(
    values: tuple[float, float, float, float], beta: float
) -> None:
    pairs = one_pair(list(values))
    torch.testing.assert_close(preference.robust(pairs, beta, 0.0), preference.dpo(pairs, beta))
    torch.testing.assert_close(preference.dpo(pairs, beta, 0.0), preference.dpo(pairs, beta))
    # Robust: right labels with probability 1 - e and flipped ones with e average to the loss of right labels.
    flipped = Pairs(
        pairs.rejected, pairs.chosen, pairs.ref_rejected, pairs.ref_chosen, pairs.rejected_tokens, pairs.chosen_tokens
    )
    mean = 0.8 * preference.robust(pairs, beta, 0.2) + 0.2 * preference.robust(flipped, beta, 0.2)
    torch.testing.assert_close(mean, preference.dpo(pairs, beta), atol=1e-3, rtol=1e-3)


def test_a_policy_that_is_the_reference_loses_ln_2() -> None:
    pairs = one_pair([-3, -7, -3, -7])
    assert preference.dpo(pairs, 0.1).item() == pytest.approx(math.log(2))
    assert pairs.margin.item() == 0


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20))
def test_bradley_terry(chosen: float, rejected: float) -> None:
    w, l = torch.tensor([chosen]), torch.tensor([rejected])  # noqa: E741
    both = torch.exp(-bradley_terry(w, l)) + torch.exp(-bradley_terry(l, w))
    torch.testing.assert_close(both, torch.ones(1))  # the two outcomes are all there are
    shifted = bradley_terry(w + 3, l + 3)
    torch.testing.assert_close(shifted, bradley_terry(w, l), atol=1e-4, rtol=1e-4)
    assert bradley_terry(w, l, centre=0.5).item() == pytest.approx(
        bradley_terry(w, l).item() + 0.5 * (chosen + rejected) ** 2, rel=1e-3, abs=1e-3
    )
