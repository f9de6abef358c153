import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.errors import UserError
from cutaway.generation.sampling import (
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    sample,
    scale,
    uniform,
)

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=20).map(lambda row: torch.tensor([row]))


def kept(logits: Tensor) -> Tensor:
    return logits[0] > -math.inf


def test_the_filters_on_a_distribution_worked_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    assert kept(keep_top_k(logits, torch.tensor([2]))).tolist() == [True, True, False, False, False]
    assert kept(keep_top_p(logits, torch.tensor([0.69]))).tolist() == [True, True, False, False, False]
    assert kept(keep_top_p(logits, torch.tensor([0.71]))).tolist() == [True, True, True, False, False]
    assert kept(keep_min_p(logits, torch.tensor([0.25]))).tolist() == [True, True, True, False, False]
    assert kept(keep_min_p(logits, torch.tensor([0.41]))).tolist() == [True, False, False, False, False]


def test_rows_are_filtered_by_their_own_numbers_and_off_means_off() -> None:
    logits = torch.randn(3, 7)
    assert (keep_top_k(logits, torch.tensor([1, 0, 9])) > -math.inf).sum(-1).tolist() == [1, 7, 7]
    assert (keep_top_p(logits, torch.tensor([1e-9, 1.0, 1.0])) > -math.inf).sum(-1).tolist() == [1, 7, 7]
    assert (keep_min_p(logits, torch.tensor([1.0, 0.0, 0.0])) > -math.inf).sum(-1).tolist() == [1, 7, 7]
    scaled = scale(logits, torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(scaled, logits * torch.tensor([[2.0], [1.0], [1.0]]))


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.integers(1, 25), st.floats(0.01, 0.99), st.floats(0, 1))
def test_supports(logits: Tensor, k: int, p: float, min_p: float) -> None:
    probs = logits[0].softmax(-1)
    in_k = kept(keep_top_k(logits, torch.tensor([k])))
    assert in_k.sum() >= min(k, len(probs))
    assert not (~in_k).any() or logits[0][~in_k].max() < logits[0][in_k].min()
    in_p = kept(keep_top_p(logits, torch.tensor([p])))
    assert probs[in_p].sum() >= p - 1e-5
    # Smallest such set: without its least likely member it falls short.
    assert probs[in_p].sum() - probs[in_p].min() < p + 1e-5
    assert not (~in_p).any() or probs[~in_p].max() <= probs[in_p].min()
    in_min = kept(keep_min_p(logits, torch.tensor([min_p])))
    assert in_min[probs.argmax()]
    assert (probs[in_min] >= min_p * probs.max() * (1 - 1e-4)).all()
    assert (probs[~in_min] <= min_p * probs.max() * (1 + 1e-4)).all()


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.sampled_from([0.0, 1e-12, 0.5, 1 - 2**-53]), st.integers(1, 3))
def test_a_draw_stays_in_the_support(logits: Tensor, u: float, k: int) -> None:
    filtered = keep_top_k(logits, torch.tensor([k]))
    token = draw(filtered, torch.tensor([u], dtype=torch.float64))
    assert filtered[0, token] > -math.inf


def test_frequencies_of_draws_are_the_probabilities() -> None:
    probs = torch.tensor([0.6, 0.0, 0.3, 0.1])
    n = 20_000
    u = torch.tensor([uniform(7, i) for i in range(n)], dtype=torch.float64)
    counts = torch.bincount(draw(probs.log().expand(n, 4), u), minlength=4)
    assert counts[1] == 0
    assert ((counts / n - probs).abs() < 4 * (probs * (1 - probs) / n).sqrt() + 1e-9).all()


def test_uniform_numbers_differ_by_seed_and_counter() -> None:
    drawn = {uniform(seed, counter) for seed in range(-50, 50) for counter in range(50)}
    assert len(drawn) == 5000 and all(0 <= u < 1 for u in drawn)
    assert abs(sum(drawn) / 5000 - 0.5) < 0.02
    assert uniform(3, 4) == uniform(3, 4) and uniform(2**80, 0) == uniform(0, 0)


def test_logprobs_are_of_the_tempered_distribution_before_the_filters() -> None:
    logits = torch.randn(3, 9)
    rows = [Sampling(temperature=0.5, top_k=2, top_p=0.9, min_p=0.1), Sampling(), Sampling(temperature=0)]
    tokens, logprobs, top_tokens, top_logprobs = sample(logits, rows, [0.3, 0.9, 0.5], top=4)
    tempered = (logits / torch.tensor([[0.5], [1.0], [1.0]])).log_softmax(-1)
    torch.testing.assert_close(logprobs, tempered.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
    assert tokens[2] == logits[2].argmax()
    assert tokens[0] in logits[0].topk(2).indices
    assert torch.equal(top_tokens, logits.topk(4).indices)
    torch.testing.assert_close(top_logprobs, tempered.gather(-1, top_tokens))
    assert sample(logits, rows, [0.3, 0.9, 0.5]).top_tokens.shape == (3, 0)


def test_penalties_on_logits_worked_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, True, False]] * 2)
    counts = torch.tensor([[0.0, 3.0, 1.0, 0.0]] * 2)
    rows = [Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25), Sampling()]
    expected = [1.0, -4.0 - 0.5 - 0.75, 0.5 - 0.5 - 0.25, -1.0]
    torch.testing.assert_close(penalise(logits, seen, counts, rows), torch.tensor([expected, logits[1].tolist()]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", 2)],
        *[("repetition_penalty", 0), ("presence_penalty", math.nan), ("frequency_penalty", math.inf)],
    ],
)
def test_an_impossible_setting_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]
