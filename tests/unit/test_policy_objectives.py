"""The columns of the RL table by hand, and by second implementations that go through tokens one at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.objectives import advantages, aggregation, kl, policy, value
from cutaway.objectives.policy import Tokens
from cutaway.rl.algorithms import table

NAN = float("nan")


def close(got: Any, expected: Any, atol: float = 1e-5) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.tensor(expected)
    torch.testing.assert_close(got, wanted, atol=atol, rtol=1e-5)


# Advantages


def test_groups_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    sigma = math.sqrt(4 * 0.25 / 3)
    scaled = advantages.group_relative(rewards)
    close(scaled[0], [0.5 / (sigma + 1e-4), -0.5 / (sigma + 1e-4)] * 1 + [-0.5 / (sigma + 1e-4), 0.5 / (sigma + 1e-4)])
    assert scaled[1].tolist() == [0.0] * 4
    close(scaled[2, 0], (3 - 0.75) / (1.5 + 1e-4))
    close(advantages.group_relative(rewards, scale=False)[2], [2.25, -0.75, -0.75, -0.75])
    close(advantages.leave_one_out(rewards)[0], [1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3])
    close(advantages.leave_one_out(rewards)[2], [3.0, -1.0, -1.0, -1.0])


def test_an_answer_that_could_not_be_judged_counts_nowhere() -> None:
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.0], [NAN, NAN, NAN, 1.0], [NAN] * 4])
    without = torch.tensor([[1.0, 0.0, 0.0]])
    for advantage in (advantages.group_relative, advantages.leave_one_out):
        got = advantage(rewards)
        assert torch.isfinite(got).all()
        close(got[0, [0, 2, 3]], advantage(without)[0])
        assert got[rewards.isnan()].abs().sum() == 0
        assert got[1].abs().sum() == 0
    flat = advantages.batch_baseline(torch.tensor([1.0, NAN, 0.0]))
    close(flat, [0.5 / math.sqrt(0.5), 0.0, -0.5 / math.sqrt(0.5)])


def test_tracked_by_hand() -> None:
    rewards, baselines = torch.tensor([1.0, 0.0, 1.0, NAN]), torch.tensor([0.5, 0.25, 0.75, 0.5])
    # differences 0.5, -0.25, 0.25: mean 1/6, squares 1/9 + 25/144 + 1/144
    sigma = math.sqrt((1 / 9 + 25 / 144 + 1 / 144) / 2)
    close(advantages.tracked(rewards, baselines), [(1 / 3) / sigma, (-5 / 12) / sigma, (1 / 12) / sigma, 0.0])
    close(advantages.tracked(10 * rewards, baselines, scale=False), [5.0, -0.25, 5.0, 0.0])


@given(st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_advantages_hold_their_laws(rows: list[list[float]]) -> None:
    rewards = torch.tensor(rows, dtype=torch.float64)
    centred = advantages.group_relative(rewards, scale=False)
    close(centred.sum(1), torch.zeros(len(rows), dtype=torch.float64))
    close(advantages.leave_one_out(rewards), 4 / 3 * centred)
    close(advantages.group_relative(rewards + 7), advantages.group_relative(rewards), atol=1e-3)
    naive = [
        [row[i] - sum(row[:i] + row[i + 1 :]) / (len(row) - 1) for i in range(len(row))] for row in rewards.tolist()
    ]
    close(advantages.leave_one_out(rewards), torch.tensor(naive, dtype=torch.float64))


def naive_gae(
    rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """By the sum that the recursion unrolls to: A_t = sum over l of (gamma lam)^l delta_{t+l}, over chosen tokens."""
    chosen = [t for t in range(len(mask)) if mask[t]]
    deltas = []
    for number, t in enumerate(chosen):
        after = values[chosen[number + 1]] if number + 1 < len(chosen) else 0.0
        deltas.append(rewards[t] + gamma * after - values[t])
    found, returns = [0.0] * len(mask), [0.0] * len(mask)
    for number, t in enumerate(chosen):
        found[t] = sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[number:]))
        returns[t] = found[t] + values[t]
    return found, returns


def test_gae_by_hand() -> None:
    # Two tokens, reward 1 at the end, values 0.5 and 0.8, gamma 0.9, lambda 0.5; a tool's token between them.
    rewards, values = torch.tensor([[0.0, 9.0, 1.0, 0.0]]), torch.tensor([[0.5, 7.0, 0.8, 3.0]])
    mask = torch.tensor([[True, False, True, False]])
    found, returns = advantages.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    last = 1 - 0.8
    first = 0.9 * 0.8 - 0.5 + 0.45 * last
    close(found, [[first, 0.0, last, 0.0]])
    close(returns, [[first + 0.5, 0.0, 1.0, 0.0]])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_gae_equals_the_unrolled_sum(data: Any) -> None:
    length = data.draw(st.integers(1, 7))
    numbers = st.lists(st.floats(-2, 2), min_size=length, max_size=length)
    rewards, values = data.draw(numbers), data.draw(numbers)
    mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    gamma, lam = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    got = advantages.gae(torch.tensor([rewards]), torch.tensor([values]), torch.tensor([mask]), gamma, lam)
    for ours, theirs in zip(got, naive_gae(rewards, values, mask, gamma, lam), strict=True):
        close(ours[0], theirs, atol=1e-4)


def test_gae_with_lambda_one_is_the_reward_to_come_and_whitening_has_its_moments() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    _, returns = advantages.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    close(returns, to_come)
    count, total, squares = advantages.moments(returns, mask)
    mean, variance = total / count, squares / count - (total / count) ** 2
    white = advantages.whiten(returns, mask, mean.float(), variance.float())
    close(white[mask].mean(), 0.0)
    close(white[mask].var(correction=0), 1.0, atol=1e-4)
    assert white[~mask].abs().sum() == 0


# Policy losses. Ratios 1.5 and 0.5 against bounds of 0.2 and 0.28, with advantages of both signs.


def case() -> Tokens:
    ratios = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    old = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]])
    weights = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    return Tokens((old + ratios.log()).requires_grad_(), old, weights, torch.ones(2, 2, dtype=torch.bool))


def gradient(loss: Tensor, tokens: Tokens) -> Tensor:
    return torch.autograd.grad(loss.sum(), tokens.logprobs)[0]


def test_ppo_clip_by_hand() -> None:
    tokens = case()
    loss = policy.ppo_clip(tokens, 0.2, 0.28)
    close(loss, [[-2.56, -1.0], [3.0, 1.6]])
    # d(r A)/d(log pi) = r A where not clipped, else 0.
    close(gradient(loss, tokens), [[0.0, -1.0], [3.0, 0.0]])
    dual = policy.ppo_clip(tokens, 0.2, 0.28, dual=1.4)
    close(dual, [[-2.56, -1.0], [2.8, 1.6]])
    low, high = policy.clipped(tokens.ratio, tokens.advantages, 0.2, 0.28)
    assert low.tolist() == [[False, False], [False, True]]
    assert high.tolist() == [[True, False], [False, False]]


def test_cispo_keeps_every_gradient_and_bounds_its_weight() -> None:
    tokens = case()
    logprobs = tokens.logprobs.detach()
    loss = policy.cispo(tokens, None, 0.28)
    close(loss, -torch.tensor([[1.28, 0.5], [1.28, 0.5]]) * tokens.advantages * logprobs)
    close(gradient(loss, tokens), [[-2.56, -1.0], [2.56, 1.0]])
    close(gradient(policy.cispo(tokens, 0.2, 0.28), tokens), [[-2.56, -1.6], [2.56, 1.6]])


def test_gspo_by_hand() -> None:
    tokens = case()
    s = math.sqrt(1.5 * 0.5)
    loss = policy.gspo(tokens, 0.5, 0.5)
    close(loss, [[-2 * s] * 2, [2 * s] * 2])
    # s = exp(mean of the log ratios): each token has half of d s = s, and two tokens carry the loss.
    close(gradient(loss, tokens), [[-2 * s] * 2, [2 * s] * 2])
    assert policy.gspo(tokens, 0.01, 0.01)[1, 0].item() == pytest.approx(2 * 0.99)


def test_where_the_ratio_is_one_all_losses_have_the_gradient_of_reinforce() -> None:
    torch.manual_seed(0)
    logprobs = -torch.rand(3, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True]])
    weights = torch.randn(3, 1).expand(3, 4)
    tokens = Tokens(logprobs.clone().requires_grad_(), logprobs, weights, mask)
    expected = gradient(aggregation.total(policy.reinforce(tokens), mask, "sequence_mean"), tokens)
    for loss in (
        policy.ppo_clip(tokens, 0.2, 0.2, 3.0),
        policy.cispo(tokens, None, 4.0),
        policy.gspo(tokens, 3e-4, 4e-4),
    ):
        close(gradient(aggregation.total(loss, mask, "sequence_mean"), tokens), expected)


def test_tokens_of_others_do_not_matter() -> None:
    """Whatever stands at masked places, NaN included, no loss and no gradient sees it."""
    mask = torch.tensor([[True, False]])
    for loss in (policy.ppo_clip, policy.cispo, policy.gspo):
        tokens = Tokens(
            torch.tensor([[-1.0, -5.0]]).requires_grad_(), torch.tensor([[-1.1, 80.0]]), torch.ones(1, 2), mask
        )
        alone = Tokens(
            torch.tensor([[-1.0]]).requires_grad_(), torch.tensor([[-1.1]]), torch.ones(1, 1), torch.tensor([[True]])
        )
        totals = [aggregation.total(loss(one, 0.2, 0.2), one.mask, "sequence_mean") for one in (tokens, alone)]
        close(totals[0], totals[1])
        close(gradient(totals[0], tokens), torch.cat((gradient(totals[1], alone), torch.zeros(1, 1)), 1))


def test_importance_weights_are_cut_from_above_only() -> None:
    got = policy.importance_weight(torch.tensor([[0.0, -3.0]]), torch.tensor([[-3.0, 0.0]]), cap=2.0)
    close(got, [[2.0, math.exp(-3)]])


# KL


def test_kl_estimates_by_hand_and_within_bounds() -> None:
    d = torch.tensor([[0.5, -1.0, 500.0, -500.0]])
    zeros = torch.zeros_like(d)
    held = [0.5, -1.0, 20.0, -20.0]
    close(kl.kl(d, zeros, "k1"), [held])
    close(kl.kl(d, zeros, "k2"), [[x * x / 2 for x in held]])
    close(kl.kl(d, zeros, "k3"), [[math.exp(-x) - 1 + x for x in held]])
    close(kl.rewards_after_kl(torch.ones_like(d), d, zeros, 0.1), [[1 - 0.1 * x for x in held]])


def test_kl_estimates_average_to_the_kl() -> None:
    """k1 and k3 over all outcomes, weighed by the policy, are the exact divergence; k2's gradient is its gradient."""
    torch.manual_seed(0)
    logits, ref = torch.randn(6, dtype=torch.float64).requires_grad_(), torch.randn(6, dtype=torch.float64)
    logprobs, ref_logprobs = logits.log_softmax(0).unsqueeze(0), ref.log_softmax(0).unsqueeze(0)
    probabilities = logprobs.exp()
    exact = (probabilities * (logprobs - ref_logprobs)).sum()
    for estimator in ("k1", "k3"):
        close((probabilities * kl.kl(logprobs, ref_logprobs, estimator)).sum(), exact)
    through_k2 = (probabilities.detach() * kl.kl(logprobs, ref_logprobs, "k2")).sum()
    close(torch.autograd.grad(through_k2, logits, retain_graph=True)[0], torch.autograd.grad(exact, logits)[0])


# Aggregation


def test_aggregations_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0, NAN], [4.0, NAN, NAN, NAN], [NAN] * 4])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    expected = {"sequence_mean": (2 + 4, 3), "token_mean": (10, 4), "constant": (10, 3 * 8)}
    for name, (total, divisor) in expected.items():
        close(aggregation.total(losses, mask, name), float(total))  # type: ignore[arg-type]
        assert aggregation.divisor(mask, name, answers=3, longest=8) == divisor  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=6), st.sampled_from(["sequence_mean", "token_mean", "constant"])
)
@settings(max_examples=40, deadline=None)
def test_a_batch_counts_the_same_however_it_is_cut(lengths: list[int], name: Any) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    losses = torch.randn(len(lengths), 5, generator=generator)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    whole = aggregation.total(losses, mask, name), aggregation.divisor(mask, name, len(lengths), 5)
    parts = [(losses[i : i + 2], mask[i : i + 2]) for i in range(0, len(lengths), 2)]
    close(torch.stack([aggregation.total(loss, own, name) for loss, own in parts]).sum(), whole[0])
    assert sum(aggregation.divisor(own, name, len(own), 5) for _, own in parts) == whole[1]
    naive = 0.0
    for row, own in zip(losses.tolist(), lengths, strict=True):
        naive += sum(row[:own]) / (max(own, 1) if name == "sequence_mean" else 1)
    close(whole[0], naive)


# Values


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 0.1, 0.5]]).requires_grad_()
    old, returns = torch.tensor([[0.0, 0.0, 0.5]]), torch.tensor([[1.0, 1.0, 0.0]])
    loss = value.value_loss(values, old, returns, clip=0.2)
    # Held values 0.2, 0.1, 0.5; the larger error counts, and one that is held has no gradient.
    close(loss, [[0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 0.5**2]])
    close(torch.autograd.grad(loss.sum(), values)[0], [[0.0, -0.9, 0.5]])
    close(value.value_loss(values, old, returns, clip=None), [[0.0, 0.5 * 0.9**2, 0.5 * 0.5**2]])


def test_explained_variance() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[0.0, 1.0, 2.0, 99.0]])
    assert value.explained_variance(returns, returns, mask) == 1
    assert value.explained_variance(torch.ones(1, 4), returns, mask) == 0
    assert math.isnan(value.explained_variance(returns, torch.ones(1, 4), mask))


# The table


def test_the_manual_shows_the_table_as_the_code_prints_it() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for page in (docs / "stages" / "rl.md", docs / "zh-Hant" / "stages" / "rl.md"):
        assert table() in page.read_text(encoding="utf-8")
