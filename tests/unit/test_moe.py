"""Mixture of experts: the grouped path is a loop over experts, the router learns, checkpoints have published names."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.errors import UserError
from cutaway.model import moe
from cutaway.model.config import ModelConfig
from cutaway.model.moe import MixtureOfExperts, Routing, grouped_product, padded_product
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, load_model, save_model
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_recipe
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.derive import derive_model
from cutaway.training.optim import is_matrix, make_optimizers, muon_cost, newton_schulz_flops, orthogonalise
from model_helpers import random_ids, random_model, tiny_config

EXPERTS: dict[str, Any] = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def config(**changes: Any) -> ModelConfig:
    return tiny_config(**(EXPERTS | changes))


def by_loop(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """The definition, one expert after another."""
    tokens = x.flatten(0, 1)
    weights, chosen = torch.softmax(F.linear(tokens, layer.gate.weight), -1).topk(layer.top_k, -1)
    if layer.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(tokens)
    experts = layer.experts
    for e in range(experts.gate_proj.shape[0]):
        token, place = torch.where(chosen == e)
        row = tokens[token]
        inner = F.silu(row @ experts.gate_proj[e].T) * (row @ experts.up_proj[e].T)
        out = out.index_add(0, token, (inner @ experts.down_proj[e].T) * weights[token, place, None])
    return out.view(x.shape)


@given(
    experts=st.integers(1, 9),
    top_k=st.integers(1, 9),
    inner=st.sampled_from([6, 8, 24]),
    tokens=st.integers(1, 40),
    normalised=st.booleans(),
    favour=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_grouped_path_is_the_loop(
    experts: int, top_k: int, inner: int, tokens: int, normalised: bool, favour: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = {"num_experts": experts, "num_experts_per_tok": min(top_k, experts), "moe_intermediate_size": inner}
    layer = MixtureOfExperts(config(**shape, norm_topk_prob=normalised))
    x = torch.randn(1, tokens, 32)
    if favour:  # the first k experts get every token, the others none
        x[..., 0] = 3.0
        with torch.no_grad():
            layer.gate.weight[:, 0] = -50 * torch.arange(experts)
    outputs, gradients = [], []
    for function in (layer, lambda x: by_loop(layer, x)):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append(
            [leaf.grad, *(p.grad if p.grad is not None else torch.zeros_like(p) for p in layer.parameters())]
        )
    torch.testing.assert_close(*outputs, **CLOSE)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("counts", [[0, 3, 0, 5], [8, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 8]])
def test_padded_product_is_the_grouped_one(counts: list[int]) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    results = []
    for product in (grouped_product, padded_product):
        x, weight = torch.arange(64.0).view(8, 8).sin().requires_grad_(), torch.randn(4, 12, 8).requires_grad_()
        torch.manual_seed(0)
        weight.data.normal_()
        out = product(x, weight, ends)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, weight.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_the_fallback_is_taken_where_torch_has_no_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(config())
    ids = random_ids(model.config, 2, 9)
    expected = model(ids)
    monkeypatch.setattr(moe, "_FOUND", {("cpu", torch.float32): False})
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-5)


def test_whoever_asks_first_grouped_products_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "_FOUND", {})
    model = random_model(config())
    with torch.inference_mode():
        model(random_ids(model.config, 2, 9))
    inside = dict(moe._FOUND)
    moe._FOUND.clear()
    model(random_ids(model.config, 2, 9))
    assert inside == moe._FOUND == {("cpu", torch.float32): True}


def test_bf16_autocast_keeps_the_router_in_fp32() -> None:
    model = random_model(config())
    ids = random_ids(model.config, 2, 16)
    routing = Routing()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(ids, targets=ids, routing=routing)
    losses.sum().backward()
    assert [logits.dtype for logits in routing.logits] == [torch.float32] * 2
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert (losses - model(ids, targets=ids)).abs().mean() < 0.5


@pytest.mark.parametrize("normalised", [True, False])
def test_the_language_model_loss_alone_moves_the_router(normalised: bool) -> None:
    model = CausalLM(config(norm_topk_prob=normalised))
    initialise(model, 0)
    ids = random_ids(model.config, 4, 16)
    optimizers = make_optimizers(model, optimizer="muon", muon_lr=0.02, adam_lr=0.01, weight_decay=0.0)
    model(ids[:, :-1], targets=ids[:, 1:]).mean().backward()
    for layer in model.model.layers:
        before = layer.mlp.gate.weight.detach().clone()
        assert layer.mlp.gate.weight.grad.norm() > 1e-6
        layer.before = before
    for optimizer in optimizers:
        optimizer.step()
    for layer in model.model.layers:
        assert (layer.mlp.gate.weight - layer.before).abs().max() > 1e-3


def test_one_normalised_expert_would_never_move_it() -> None:
    """Why such a model is refused: the weight is always 1."""
    model = random_model(config(num_experts_per_tok=1))
    ids = random_ids(model.config, 2, 16)
    model(ids, targets=ids).sum().backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() < 1e-3 for layer in model.model.layers)
    with pytest.raises(UserError, match="router would never learn"):
        derive_model(ModelSettings(num_experts=4, num_experts_per_tok=1), 100, 64, (1, 2))


def test_routing_is_collected_layer_by_layer_and_only_when_asked() -> None:
    model = random_model(config())
    ids, routing = random_ids(model.config, 2, 7), Routing()
    assert torch.equal(model(ids, routing=routing), model(ids))
    assert [logits.shape for logits in routing.logits] == [(14, 4)] * 2
    balance, router_z = routing.losses(2)
    (balance + router_z).backward()
    assert all(layer.mlp.gate.weight.grad.norm() > 0 for layer in model.model.layers)
    torch.testing.assert_close(routing.load(2).mean(-1), torch.ones(2))
    copy.deepcopy(model)  # nothing of the pass stays in the module, which could not be copied then


def test_a_checkpoint_has_every_expert_under_its_published_name(tmp_path: Path) -> None:
    model = random_model(config())
    names = set(model.state_dict())
    prefix = "model.layers.1.mlp."
    assert {name for name in names if name.startswith(prefix)} == {prefix + "gate.weight"} | {
        f"{prefix}experts.{e}.{p}_proj.weight" for e in range(4) for p in ("gate", "up", "down")
    }
    optimizers = make_optimizers(model, optimizer="muon", muon_lr=0.02, adam_lr=0.01, weight_decay=0.1)
    ids = random_ids(model.config, 2, 9)
    model(ids, targets=ids).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    Checkpoints(tmp_path, 1).save(1, model, optimizers, {})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    assert set(load_file(tmp_path / "model.safetensors")) == names
    published = load_model(tmp_path)
    assert torch.equal(published(ids), model(ids))
    resumed = random_model(config(), seed=5)
    again = make_optimizers(resumed, optimizer="muon", muon_lr=0.02, adam_lr=0.01, weight_decay=0.1)
    Checkpoints(tmp_path, 1).restore(resumed, again)
    assert torch.equal(resumed(ids), model(ids))
    for one, other in zip(optimizers, again, strict=True):
        assert len(one.state) == len(other.state) > 0
        for parameter, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
            for key, value in one.state.get(parameter, {}).items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state[theirs][key]))


def test_single_file_and_shards_come_back(tmp_path: Path) -> None:
    model = random_model(config())
    save_model(model, tmp_path, model.config)
    ids = random_ids(model.config, 1, 8)
    back = load_model(tmp_path)
    assert back.config == model.config and torch.equal(back(ids), model(ids))
    back(ids).sum().backward()
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert torch.equal(load_model(tmp_path)(ids), model(ids))


@pytest.mark.parametrize("change", ["missing", "misshapen", "extra"])
def test_a_damaged_expert_is_named(change: str, tmp_path: Path) -> None:
    model = random_model(config())
    save_model(model, tmp_path, model.config)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "misshapen":
        tensors[name] = torch.zeros(3, 4)
    else:
        name = name.replace(".2.", ".4.")
        tensors[name] = torch.zeros(24, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_model(tmp_path)
    if change != "extra":
        with pytest.raises(RuntimeError, match="experts"):
            random_model(config()).load_state_dict(tensors)


def test_config_round_trip_and_spellings(caplog: pytest.LogCaptureFixture) -> None:
    wanted = config(norm_topk_prob=False, router_aux_loss_coef=0.02, router_z_loss_coef=0.003)
    table = json.loads(json.dumps(wanted.to_dict()))
    assert (table["architectures"], table["model_type"]) == (["Qwen3MoeForCausalLM"], "qwen3_moe")
    assert ModelConfig.from_dict(table) == wanted
    table["num_local_experts"] = table.pop("num_experts")
    assert ModelConfig.from_dict(table) == wanted
    assert not caplog.records
    assert ModelConfig.from_dict({k: v for k, v in table.items() if k != "norm_topk_prob"}) == wanted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"num_experts": None}, "missing num_experts"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"moe_intermediate_size": None}, "missing moe_intermediate_size"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ({"num_experts_per_tok": "2"}, "of type int"),
        ({"num_local_experts": 8}, "differ"),
        ({"router_aux_loss_coef": -1.0}, "router_aux_loss_coef"),
    ],
)
def test_what_we_could_not_compute_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig.from_dict(config().to_dict() | changes)


def test_experts_without_qk_norm_are_refused() -> None:
    with pytest.raises(UserError, match="qk_norm"):
        config(qk_norm=False)


def test_active_parameters_and_flops() -> None:
    model, dense = CausalLM(config()), CausalLM(tiny_config(qk_norm=True, intermediate_size=48))
    experts = 2 * 4 * 3 * 24 * 32
    router = 2 * 4 * 32
    assert model.num_parameters() - model.num_active_parameters() == experts // 2
    assert model.num_active_parameters() == dense.num_parameters() + router
    assert model.flops_per_token(16) == dense.flops_per_token(16) + 6 * router
    assert dense.num_active_parameters() == dense.num_parameters()


def test_the_recipe_is_as_wide_as_small() -> None:
    with torch.device("meta"):
        model, dense = (
            CausalLM(derive_model(load_recipe(name).model, 6400, 512, (1, 2))[0]) for name in ("small-moe", "small")
        )
    assert model.num_parameters() == 206_305_024
    assert model.num_active_parameters() == 64_747_264 == dense.num_parameters() + 8 * 8 * 768


def test_muon_takes_each_expert_and_adamw_the_router() -> None:
    model = CausalLM(config())
    named = dict(model.named_parameters())
    stack, router = (named[f"model.layers.0.mlp.{name}"] for name in ("experts.up_proj", "gate.weight"))
    assert is_matrix("model.layers.0.mlp.experts.up_proj", stack)
    assert not is_matrix("model.layers.0.mlp.gate.weight", router)
    muon, adam = make_optimizers(
        model, optimizer="muon", muon_lr=0.1, adam_lr=0.01, weight_decay=0.0, muon_dtype=torch.float32
    )
    assert any(p is router for group in adam.param_groups for p in group["params"])
    before = stack.detach().clone()
    stack.grad = torch.randn_like(stack)
    stack.grad[1] = 0  # an expert that no token chose stays as it is
    stack.grad[2] *= 1000  # and one with large gradients moves no farther than the others
    gradient = stack.grad.clone()
    muon.step()
    for e in range(4):
        expected = 0.1 * orthogonalise(gradient[e : e + 1], dtype=torch.float32)[0] if e != 1 else torch.zeros(24, 32)
        torch.testing.assert_close(before[e] - stack[e], expected, atol=1e-4, rtol=1e-3)
    dense = CausalLM(tiny_config(qk_norm=True))
    attention = muon_cost(dense) - 2 * (2 * newton_schulz_flops(48, 32) + newton_schulz_flops(32, 48))
    assert muon_cost(model) == attention + 2 * 4 * 3 * newton_schulz_flops(24, 32)


def test_initial_experts_keep_the_variance() -> None:
    model = CausalLM(config(hidden_size=64, moe_intermediate_size=96))
    initialise(model, 0)
    named = dict(model.named_parameters())
    assert named["model.layers.0.mlp.experts.up_proj"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert named["model.layers.0.mlp.experts.down_proj"].std().item() == pytest.approx(96**-0.5 / 2, rel=0.05)
    assert named["model.layers.0.mlp.gate.weight"].std().item() == pytest.approx(0.02, rel=0.2)
