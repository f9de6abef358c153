"""Muon and AdamW against their definitions, singular values and torch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cutaway.training.optim import (
    COEFFICIENTS,
    Muon,
    is_matrix,
    make_optimizers,
    muon_cost,
    newton_schulz_flops,
    orthogonalise,
)
from model_helpers import random_model, tiny_config

SHAPES = [(16, 16), (48, 16), (16, 48), (64, 8)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = torch.linalg.svdvals(orthogonalise(gaussian(1, *shape), dtype=dtype)[0])
    # Square random matrices have singular values near 0, which five steps lift only part of the way.
    least = 0.3 if shape[0] == shape[1] else 0.6
    assert values.min() > least
    assert values.max() < 1.3


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_direction_is_u_v_transposed(rows: int, columns: int, seed: int, size: float) -> None:
    # Singular values from 0.3 to 1: those that the iteration promises to bring to about 1.
    left, _, right = torch.linalg.svd(gaussian(rows, columns, seed=seed), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.3, 1, left.shape[1])) @ right
    result = orthogonalise(size * matrix[None], dtype=torch.float32)[0]
    torch.testing.assert_close(result, orthogonalise(matrix[None], dtype=torch.float32)[0], atol=1e-3, rtol=0)
    singular = (left.mT @ result @ right.mT).diagonal()
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # Nothing outside the diagonal: the singular vectors are kept.
    torch.testing.assert_close(left @ torch.diag(singular) @ right, result, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tall_matrix_is_a_wide_one_transposed(shape: tuple[int, int]) -> None:
    matrix = gaussian(1, *shape)
    torch.testing.assert_close(
        orthogonalise(matrix.mT, dtype=torch.float32), orthogonalise(matrix, dtype=torch.float32).mT
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stack_is_one_at_a_time(shape: tuple[int, int]) -> None:
    stack = gaussian(5, *shape)
    alone = torch.cat([orthogonalise(matrix[None], dtype=torch.float32) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack, dtype=torch.float32), alone)


def test_zero_stays_zero_and_the_dtype_is_kept() -> None:
    zero = torch.zeros(2, 4, 6)
    result = orthogonalise(zero)
    assert result.dtype == torch.float32
    assert torch.equal(result, zero)


def naive_muon(weight: Tensor, gradients: list[Tensor], lr: float, decay: float, momentum: float) -> Tensor:
    """The published algorithm on one matrix, in the order of its formulas."""
    a, b, c = COEFFICIENTS
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        x = (1 - momentum) * gradient + momentum * buffer
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (1.02 * torch.linalg.matrix_norm(x) + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if tall else x
        weight = weight - lr * decay * weight - lr * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * x
    return weight


def test_muon_equals_a_naive_one_matrix_after_the_other() -> None:
    shapes = [*SHAPES, (16, 16), (48, 16)]
    weights = [nn.Parameter(gaussian(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    start = [weight.detach().clone() for weight in weights]
    gradients = [
        [gaussian(*shape, seed=100 + 10 * seed + step) for step in range(4)] for seed, shape in enumerate(shapes)
    ]
    optimizer = Muon(weights, lr=0.02, weight_decay=0.1, dtype=torch.float32)
    for step in range(4):
        for weight, own in zip(weights, gradients, strict=True):
            weight.grad = own[step].clone()
        optimizer.step()
    for weight, before, own in zip(weights, start, gradients, strict=True):
        torch.testing.assert_close(weight.detach(), naive_muon(before, own, 0.02, 0.1, 0.95), atol=2e-5, rtol=1e-4)


def test_muon_skips_what_has_no_gradient() -> None:
    weights = [nn.Parameter(gaussian(4, 4)), nn.Parameter(gaussian(4, 4))]
    before = weights[1].detach().clone()
    weights[0].grad = gaussian(4, 4, seed=1)
    Muon(weights, lr=0.1).step()
    assert torch.equal(weights[1], before)
    assert not torch.equal(weights[0], before)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48)])
def test_muon_moves_as_torch_does(shape: tuple[int, int]) -> None:
    """torch.optim.Muon normalises a little differently, so directions agree, and lengths to a few percent."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    ours, theirs = nn.Parameter(gaussian(*shape)), nn.Parameter(gaussian(*shape))
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True),
    ]
    for step in range(3):
        before = ours.detach().clone(), theirs.detach().clone()
        ours.grad = gaussian(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        moved, expected = ours.detach() - before[0], theirs.detach() - before[1]
        assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.99
        assert float(moved.norm() / expected.norm()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_weight_has_one_optimizer_and_only_matrices_decay(kind: str, tied: bool) -> None:
    model = random_model(tiny_config(tie_word_embeddings=tied, qk_norm=True))
    optimizers = make_optimizers(
        model, optimizer="muon" if kind == "muon" else "adamw", muon_lr=0.02, adam_lr=0.004, weight_decay=0.1
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: list[str] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert group["peak_lr"] == group["lr"] == (0.02 if isinstance(optimizer, Muon) else 0.004)
            for parameter in group["params"]:
                name = names[id(parameter)]
                seen.append(name)
                table = "embed_tokens" in name or "lm_head" in name
                assert group["weight_decay"] == (0.1 if parameter.ndim == 2 and not table else 0.0)
                assert isinstance(optimizer, Muon) == (kind == "muon" and is_matrix(name, parameter))
    assert sorted(seen) == sorted(names.values())


def test_frozen_weights_are_left_out() -> None:
    model = random_model(tiny_config())
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    held = {
        id(parameter)
        for optimizer in make_optimizers(model, optimizer="muon", muon_lr=1.0, adam_lr=1.0, weight_decay=0.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert not held & {id(parameter) for parameter in model.model.layers[0].parameters()}


def test_adamw_decays_matrices_and_leaves_norms_where_the_gradient_is_zero() -> None:
    model = random_model(tiny_config())
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in make_optimizers(model, optimizer="adamw", muon_lr=1.0, adam_lr=0.5, weight_decay=0.1):
        optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if is_matrix(name, parameter) else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


@given(st.integers(1, 200), st.integers(1, 200))
def test_newton_schulz_flops_counts_the_products(rows: int, columns: int) -> None:
    m, n = min(rows, columns), max(rows, columns)
    # X X^T, A A and (bA + cA^2) X, two FLOPs a multiply-add, five times.
    assert newton_schulz_flops(rows, columns) == 5 * (2 * m * n * m + 2 * m * m * m + 2 * m * m * n)


def test_muon_cost_counts_matrices_only() -> None:
    model = random_model(tiny_config())
    layer = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
    assert muon_cost(model) == 2 * sum(newton_schulz_flops(*shape) for shape in layer)
