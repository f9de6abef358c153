"""The router's losses: a table worked by hand, their extremes, and how they reach the training loss."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.data.loader import Batch, OneBatch, RowSource
from cutaway.objectives.next_token import IGNORE
from cutaway.objectives.router import expert_load, load_balancing_loss, router_z_loss
from cutaway.training.loop import fit
from cutaway.training.network import Network
from training_helpers import SEQ, conversations, job, network, optimizers, rows_of

MOE = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def test_by_hand() -> None:
    # Probabilities of three tokens over three experts; logits are their logarithms, so log Z = 0.
    p = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.2, 0.7, 0.1]])
    # Top 2: {0, 1}, {0, 2}, {0, 1}: f = (3, 2, 1) / 3; mean p = (1.3, 1.1, 0.6) / 3.
    assert load_balancing_loss(p.log(), 2).item() == pytest.approx(3 * (3 * 1.3 + 2 * 1.1 + 0.6) / 9)
    # Top 1: 0, 0, 1: f = (2, 1, 0) / 3.
    assert load_balancing_loss(p.log(), 1).item() == pytest.approx(3 * (2 * 1.3 + 1.1) / 9)
    assert expert_load(p.log(), 2).tolist() == pytest.approx([1.5, 1.0, 0.5])
    # log Z is 0, 1 and 2: the mean of squares is 5/3; without the last token 1/2.
    logits = p.log() + torch.tensor([[0.0], [1.0], [2.0]])
    assert router_z_loss(logits).item() == pytest.approx(5 / 3)
    mask = torch.tensor([True, True, False])
    assert router_z_loss(logits, mask).item() == pytest.approx(1 / 2)
    assert load_balancing_loss(logits, 2, mask).item() == pytest.approx(3 * (2 * 1.1 + 0.4 + 0.5) / 4)


@given(st.integers(1, 3), st.integers(1, 30), st.integers(2, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_properties(layers: int, tokens: int, experts: int, top_k: int, seed: int) -> None:
    top_k = min(top_k, experts)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, tokens, experts, generator=generator)
    mask = torch.rand(tokens, generator=generator) < 0.7
    mask[0] = True
    loss = load_balancing_loss(logits, top_k, mask)
    assert loss.shape == (layers,)
    torch.testing.assert_close(loss, load_balancing_loss(logits[:, mask], top_k))
    torch.testing.assert_close(router_z_loss(logits, mask), router_z_loss(logits[:, mask]))
    torch.testing.assert_close(expert_load(logits, top_k, mask).mean(-1), torch.ones(layers))
    assert (loss <= experts + 1e-4).all() and (loss > 0).all()
    shift = load_balancing_loss(logits + 3.0, top_k, mask)
    torch.testing.assert_close(shift, loss)


def test_extremes() -> None:
    experts, top_k = 6, 2
    even = torch.eye(experts).repeat(5, 1) + torch.eye(experts).roll(1, 1).repeat(5, 1)
    assert load_balancing_loss(10 * even, top_k).item() == pytest.approx(top_k)
    alone = torch.tensor([50.0, 50.0, 0, 0, 0, 0]).repeat(30, 1)
    assert load_balancing_loss(alone, top_k).item() == pytest.approx(experts)
    assert router_z_loss(torch.zeros(3, experts)).item() == pytest.approx(math.log(experts) ** 2)


def test_layers_are_not_pooled() -> None:
    """Two layers that each use one expert are not balanced by using different ones."""
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]]).unsqueeze(1).expand(2, 10, 2)
    assert load_balancing_loss(logits, 1).tolist() == pytest.approx([2.0, 2.0], abs=1e-3)
    assert load_balancing_loss(logits.flatten(0, 1), 1).item() == pytest.approx(1.0)


def test_its_gradient_takes_from_the_busy() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.0]]).repeat(9, 1).requires_grad_()
    load_balancing_loss(logits, 1).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def batches(rows: int = 2) -> RowSource:
    return RowSource(conversations(), rows=rows, seq=SEQ, seed=0)


def test_training_loss_is_the_sum_of_its_parts() -> None:
    net = network(**MOE, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
    batch = next(batch for batch in batches() if (batch.documents < 0).any())
    loss, sums = net.training_loss(batch)
    trained = batch.trained_tokens()
    assert trained < batch.useful_tokens()
    expected = net.token_losses(batch).sum()
    torch.testing.assert_close(sums["next_token_loss"], expected)
    torch.testing.assert_close(loss, expected + 0.5 * sums["load_balance"] + 0.25 * sums["router_z"])
    assert 0 < sums["expert_load_min"] / trained <= 1 <= sums["expert_load_max"] / trained
    # Padding has no say: other ids there change nothing.
    other = batch.input_ids.where(batch.documents >= 0, 7)
    torch.testing.assert_close(
        net.training_loss(Batch(other, batch.targets, batch.positions, batch.documents))[0], loss
    )


def test_nothing_trained_weighs_nothing() -> None:
    net = network(**MOE)
    batch = next(batches())
    empty = Batch(batch.input_ids, torch.full_like(batch.targets, IGNORE), batch.positions, batch.documents)
    assert net.training_loss(empty)[0].item() == 0.0


def test_a_dense_model_logs_nothing_of_this() -> None:
    net = network()
    loss, sums = net.training_loss(next(batches()))
    assert not sums and loss.item() == pytest.approx(net.token_losses(next(batches())).sum().item())


def mean_balance(net: Network) -> float:
    source = batches()
    found = [
        (net.training_loss(batch)[1]["load_balance"].item(), batch.trained_tokens())
        for batch in map(next, [source] * 6)
    ]
    return sum(value for value, _ in found) / sum(count for _, count in found)


def test_its_weight_evens_out_a_router_that_was_not() -> None:
    found = []
    for coefficient in (0.0, 1.0):
        net = network(**MOE, router_aux_loss_coef=coefficient)
        with torch.no_grad():
            for layer in net.model.model.layers:
                layer.mlp.gate.weight[0] *= 20
        source, chosen = batches(), optimizers(net)
        for _ in range(40):
            batch = next(source)
            loss, _ = net.training_loss(batch)
            (loss / batch.trained_tokens()).backward()
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
        found.append(mean_balance(net))
    assert found[1] < found[0] - 0.01


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_loop_logs_it_and_learns_one_batch_by_heart(kind: str, tmp_path: Path) -> None:
    net = network(**MOE, router_aux_loss_coef=0.01, router_z_loss_coef=0.001)
    made = job(tmp_path, net, optimizers(net, kind), steps=30, log_every=1, accumulation=1)
    made.source = OneBatch(batches())
    made.step = net.training_loss
    fit(made, resume=False)
    first, *_, last = rows_of(tmp_path)
    for row in (first, last):
        total = row["next_token_loss"] + 0.01 * row["load_balance"] + 0.001 * row["router_z"]
        assert row["loss"] == pytest.approx(total, rel=1e-4)
        assert row["expert_load_min"] <= 1 <= row["expert_load_max"]
    assert first["next_token_loss"] > 3.5
    assert last["next_token_loss"] < 0.3 * first["next_token_loss"]
