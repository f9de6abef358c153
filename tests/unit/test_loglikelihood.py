"""Shared beginnings, packed trees and cut contexts against one plain forward pass a continuation."""

import math
import random

import pytest
import torch

from cutaway.errors import UserError
from cutaway.evals import loglikelihood
from cutaway.evals.loglikelihood import Query, loglikelihoods
from cutaway.model.transformer import CausalLM
from model_helpers import random_model, tiny_config

LONGEST = tiny_config().max_position_embeddings


@torch.no_grad()
def naive(model: CausalLM, query: Query) -> list[float]:
    """Each continuation alone behind its context, cut as lm-eval cuts it."""
    sums = []
    for tokens in query.continuations:
        ids = [*query.context, *tokens][-(LONGEST + 1) :]
        logprobs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
        first = len(ids) - len(tokens)
        sums.append(sum(float(logprobs[first + i - 1, token]) for i, token in enumerate(tokens)))
    return sums


def queries(draw: random.Random, groups: int, shared: int, count: int = 7) -> list[Query]:
    made = []
    for group in range(groups):
        header = [draw.randrange(61) for _ in range(shared)]
        for _ in range(count):
            context = header + [draw.randrange(61) for _ in range(draw.randint(1, 9))]
            conts = [[draw.randrange(61) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(2, 4))]
            made.append(Query(context, conts, group if shared else None))
    draw.shuffle(made)
    return made


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("groups", "shared"), [(1, 0), (3, 30), (2, 10)])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_equals_one_pass_a_continuation(groups: int, shared: int, batch_tokens: int, qk_norm: bool) -> None:
    model = random_model(tiny_config(qk_norm=qk_norm))
    asked = queries(random.Random(shared), groups, shared)
    got = loglikelihoods(model, asked, batch_tokens=batch_tokens)
    for mine, query in zip(got.sums, asked, strict=True):
        assert mine == pytest.approx(naive(model, query), abs=2e-5)
    assert got.cut == 0


def test_a_shared_beginning_is_fed_once() -> None:
    asked = queries(random.Random(1), 1, 40, count=20)
    model = random_model(tiny_config())
    alone = [Query(query.context, query.continuations) for query in asked]
    together, apart = loglikelihoods(model, asked), loglikelihoods(model, alone)
    assert apart.fed - together.fed >= 19 * 40
    for mine, theirs in zip(together.sums, apart.sums, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)


def test_letters_cost_no_token_of_their_own() -> None:
    asked = [Query([1, 2, 3, 4], [[5], [6], [7], [8]]) for _ in range(3)]
    got = loglikelihoods(random_model(tiny_config()), asked)
    assert (got.fed, got.padding) == (12, 0)


def test_rows_of_like_length_leave_little_padding() -> None:
    draw = random.Random(2)
    asked = [Query([draw.randrange(61) for _ in range(draw.randint(5, 100))], [[1], [2]]) for _ in range(300)]
    got = loglikelihoods(random_model(tiny_config()), asked, batch_tokens=1024)
    assert got.padding < 0.05 * got.fed


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    draw = random.Random(3)
    model = random_model(tiny_config())
    long = Query([draw.randrange(61) for _ in range(LONGEST + 20)], [[1, 2], [3, 4, 5]], "g")
    exact = Query([draw.randrange(61) for _ in range(LONGEST - 1)], [[1, 2], [3]], "g")
    got = loglikelihoods(model, [long, exact])
    assert got.cut == 1
    assert got.sums[0] == pytest.approx(naive(model, long), abs=2e-5)
    assert got.sums[1] == pytest.approx(naive(model, exact), abs=2e-5)


def test_continuations_of_one_length_share_what_is_left_of_a_context() -> None:
    draw = random.Random(6)
    model = random_model(tiny_config())
    long = Query([draw.randrange(61) for _ in range(LONGEST + 5)], [[1], [2], [3, 4], [5], [6, 7]])
    partly = Query([draw.randrange(61) for _ in range(LONGEST - 1)], [[1], [3, 4], [3, 4, 5], [2]])
    got = loglikelihoods(model, [long, partly])
    assert (got.fed - got.padding, got.cut) == (LONGEST + (LONGEST + 1) + LONGEST + LONGEST, 2)
    for mine, query in zip(got.sums, (long, partly), strict=True):
        assert mine == pytest.approx(naive(model, query), abs=2e-5)


def test_the_head_may_work_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config())
    asked = queries(random.Random(4), 2, 0)
    whole = loglikelihoods(model, asked).sums
    monkeypatch.setattr(loglikelihood, "HEAD_NUMBERS", 61 * 3)
    for mine, theirs in zip(loglikelihoods(model, asked).sums, whole, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)


def test_equal_logits_give_the_logarithm_of_the_vocabulary() -> None:
    model = random_model(tiny_config())
    with torch.no_grad():
        model.head_weight.zero_()
    assert loglikelihoods(model, [Query([1], [[2, 3]])]).sums[0] == [pytest.approx(-2 * math.log(61))]


def test_bf16_is_near() -> None:
    model = random_model(tiny_config())
    asked = queries(random.Random(5), 2, 20)
    exact, rounded = loglikelihoods(model, asked).sums, loglikelihoods(model, asked, dtype=torch.bfloat16).sums
    assert exact != rounded
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine == pytest.approx(theirs, rel=0.1, abs=0.5)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query([], [[1]]), "without a token"),
        (Query([1], [[]]), "without a token"),
        (Query([1], []), "without a token"),
        (Query([61], [[1]]), "token 61 is outside the model's vocabulary of 61"),
        (Query([1], [[1] * (LONGEST + 1)]), f"an answer has {LONGEST + 1} tokens"),
    ],
)
def test_what_cannot_be_scored(query: Query, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loglikelihoods(random_model(tiny_config()), [query])
