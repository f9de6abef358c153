"""Next-token loss against `F.cross_entropy`, whole and in chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.objectives import next_token
from cutaway.objectives.next_token import IGNORE, token_nll


def example(rows: int, length: int, vocab: int, ignored: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, 8, generator=generator)
    weight = torch.randn(vocab, 8, generator=generator)
    targets = torch.randint(vocab, (rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < ignored] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    vocab=st.integers(1, 30),
    ignored=st.sampled_from([0.0, 0.4, 1.1]),
    seed=st.integers(0, 1000),
)
def test_is_cross_entropy(rows: int, length: int, vocab: int, ignored: float, seed: int) -> None:
    hidden, weight, targets = example(rows, length, vocab, ignored, seed)
    found = token_nll(hidden, weight, targets)
    expected = F.cross_entropy((hidden @ weight.T).transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[targets == IGNORE] == 0).all()
    ours = torch.autograd.grad(found.sum(), (hidden, weight))
    theirs = torch.autograd.grad(expected.sum(), (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert (ours[0][targets == IGNORE] == 0).all()


@pytest.mark.parametrize("tokens_a_chunk", [1, 3, 4, 19])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_chunks_change_nothing(tokens_a_chunk: int, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = example(4, 5, 30)
    plain = token_nll(hidden, weight, targets, z_loss)
    expected = torch.autograd.grad(plain.square().sum(), (hidden, weight))
    calls = []
    whole = next_token._nll
    monkeypatch.setattr(next_token, "_nll", lambda *inputs: calls.append(len(inputs[0])) or whole(*inputs))
    monkeypatch.setattr(next_token, "MAX_LOGIT_BYTES", tokens_a_chunk * 30 * 4)
    chunked = token_nll(hidden, weight, targets, z_loss)
    assert len(calls) > 1 and max(calls) <= tokens_a_chunk and sum(calls) == 20
    torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(chunked.square().sum(), (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_chunks_bound_the_memory_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = example(4, 16, 1000)
    monkeypatch.setattr(next_token, "MAX_LOGIT_BYTES", 8 * 1000 * 4)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        token_nll(hidden, weight, targets)
    assert max(sizes, default=0) <= weight.numel()


def test_z_loss_by_hand() -> None:
    # Logits are ln 1, ln 2, ln 5: Z = 8.
    hidden = torch.ones(1, 2, 1)
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    targets = torch.tensor([[2, IGNORE]])
    assert token_nll(hidden, weight, targets).tolist() == [[pytest.approx(math.log(8 / 5)), 0.0]]
    expected = math.log(8 / 5) + 0.25 * math.log(8) ** 2
    assert token_nll(hidden, weight, targets, z_loss=0.25).tolist() == [[pytest.approx(expected), 0.0]]


def test_uniform_logits_cost_ln_v() -> None:
    nll = token_nll(torch.zeros(2, 3, 4), torch.zeros(50, 4), torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(nll, torch.full((2, 3), math.log(50)))


def test_stays_finite_for_huge_logits() -> None:
    nll = token_nll(torch.full((1, 1, 1), 1e4), torch.tensor([[1.0], [-1.0]]), torch.tensor([[1]]))
    assert nll.item() == pytest.approx(2e4)


def test_bf16_gives_fp32() -> None:
    hidden, weight, targets = example(2, 4, 30)
    rough = token_nll(hidden.bfloat16(), weight.bfloat16(), targets)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, token_nll(hidden, weight, targets), atol=0.1, rtol=0.1)
