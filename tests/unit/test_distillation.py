"""Divergences between a student and a teacher: by hand, and by what must hold."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutaway.objectives.distillation import forward_kl, jensen_shannon, reverse_kl, top_k_forward_kl

LOGITS = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


def test_by_hand() -> None:
    teacher, student = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, 0.0])  # p = 1/4, 3/4; q = 1/2, 1/2
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    back = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert forward_kl(student, teacher).item() == pytest.approx(kl, abs=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(back, abs=1e-6)
    m = [0.25 * 0.4 + 0.5 * 0.6, 0.75 * 0.4 + 0.5 * 0.6]
    jsd = 0.4 * sum(p * math.log(p / x) for p, x in zip([0.25, 0.75], m, strict=True))
    jsd += 0.6 * sum(0.5 * math.log(0.5 / x) for x in m)
    assert jensen_shannon(student, teacher, beta=0.4).item() == pytest.approx(jsd, abs=1e-6)


@given(LOGITS, LOGITS, st.floats(0, 1), st.floats(0.5, 3))
@settings(deadline=None)
def test_never_negative_and_zero_for_the_teacher_itself(
    a: list[float], b: list[float], beta: float, temperature: float
) -> None:
    student, teacher = torch.tensor(a), torch.tensor(b)
    assert jensen_shannon(student, teacher, beta, temperature).item() >= -1e-5
    assert jensen_shannon(teacher, teacher, beta, temperature).item() == pytest.approx(0, abs=1e-5)


@given(LOGITS, LOGITS, st.integers(1, 5))
@example([7.0, -1.0, 0.0, 0.0, 0.0], [0.0] * 5, 4)
@settings(deadline=None)
def test_top_k_is_at_most_the_whole_and_all_of_it_for_the_whole_vocabulary(
    a: list[float], b: list[float], k: int
) -> None:
    student, teacher = torch.tensor(a), torch.tensor(b)
    logprobs, ids = torch.log_softmax(teacher, -1).topk(k)
    part, whole = top_k_forward_kl(student, ids, logprobs).item(), forward_kl(student, teacher).item()
    assert part <= whole + 1e-4
    if k >= 4:  # one token is left over at most, and the rest is that token
        assert part == pytest.approx(whole, abs=1e-3)


def test_gradient_is_the_difference_of_the_distributions() -> None:
    student = torch.randn(3, 7, requires_grad=True)
    teacher = torch.randn(3, 7)
    forward_kl(student, teacher).sum().backward()
    expected = torch.softmax(student.detach(), -1) - torch.softmax(teacher, -1)
    torch.testing.assert_close(student.grad, expected)


def test_beta_outside_is_an_error() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        jensen_shannon(torch.zeros(3), torch.zeros(3), beta=1.5)
