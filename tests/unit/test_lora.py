"""Adapters: what they compute, what they leave alone, and what their files say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, LoRALinear, adapt, adapter_of, from_peft, merge, switched_off, to_peft
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_adapted, load_model, save_adapter, save_model
from cutaway.recipe.files import load_recipe
from model_helpers import random_ids, random_model, tiny_config

EXPERTS: dict[str, Any] = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def randomise(model: CausalLM, seed: int = 1) -> None:
    """As if it had been trained: B is no longer 0, lengths are no longer those of the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@given(
    rank=st.integers(1, 9),
    alpha=st.floats(0.5, 64),
    rslora=st.booleans(),
    dora=st.booleans(),
    targets=st.sampled_from([("q_proj",), ("*_proj",), ("model.layers.1.mlp.*",), ("v_proj", "down_proj")]),
)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_merging_changes_nothing_that_is_computed(
    rank: int, alpha: float, rslora: bool, dora: bool, targets: tuple[str, ...]
) -> None:
    model = random_model(tiny_config(qk_norm=True))
    ids = random_ids(model.config, 2, 9)
    plain = model(ids)
    adapt(model, LoRAConfig(rank, alpha, 0.0, targets, rslora, dora))
    torch.testing.assert_close(model(ids), plain, **CLOSE)  # B is 0: the adapted model starts as its base
    randomise(model)
    adapted = model(ids)
    assert (adapted - plain).abs().max() > 1e-3
    with switched_off(model):
        torch.testing.assert_close(model(ids), plain, atol=0, rtol=0)
    merge(model)
    assert adapter_of(model) is None
    torch.testing.assert_close(model(ids), adapted, atol=1e-3, rtol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_adapter_gets_a_gradient() -> None:
    model = random_model(tiny_config())
    adapt(model, LoRAConfig(rank=2, dora=True))
    model(random_ids(model.config, 1, 8)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_every_matrix_of_a_layer_is_adapted_by_default() -> None:
    """Keys and values of grouped queries are narrow, the MLP's are wide: an adapter needs no square matrix."""
    config = tiny_config()
    names = adapt(random_model(config), LoRAConfig())
    assert config.num_key_value_heads < config.num_attention_heads
    assert len(names) == 7 * config.num_hidden_layers
    assert {name.rsplit(".", 1)[-1] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_the_scale() -> None:
    assert LoRAConfig(rank=16, alpha=32).scale == 2
    assert LoRAConfig(rank=16, alpha=32, rslora=True).scale == 8


def test_dropout_acts_while_training_only() -> None:
    model = random_model(tiny_config()).train()
    adapt(model, LoRAConfig(rank=4, dropout=0.5))
    randomise(model)
    ids = random_ids(model.config, 1, 8)
    assert not torch.equal(model(ids), model(ids))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), model(ids), atol=0, rtol=0)


def test_frozen_matrices_cost_four_flops() -> None:
    model = random_model(tiny_config())
    before = model.flops_per_token(16)
    adapt(model, LoRAConfig(rank=2))
    adapter = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    base = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2) - adapter
    assert model.flops_per_token(16) == before - 2 * base + 6 * adapter


def test_the_seed_alone_decides() -> None:
    drawn = []
    for seed in (3, 3, 4):
        model = random_model(tiny_config())
        adapt(model, LoRAConfig(rank=2), seed)
        layer = model.get_submodule("model.layers.0.self_attn.q_proj")
        assert isinstance(layer, LoRALinear)
        drawn.append(layer.lora_A.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("targets", [("nothing",), ("embed_tokens",), ("lm_head",)])
def test_a_name_that_is_no_linear_layer_is_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"no linear layer is named '{targets[0]}'"):
        adapt(random_model(tiny_config(tie_word_embeddings=False)), LoRAConfig(targets=targets))


def test_the_recipe_with_experts_names_layers_that_it_has() -> None:
    table, model = load_recipe("small-moe").lora, random_model(tiny_config(**EXPERTS))
    adapted = adapt(model, LoRAConfig(targets=table.targets))
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    plain = random_model(tiny_config(**EXPERTS))
    with pytest.raises(UserError, match="choose targets among gate k_proj o_proj q_proj v_proj"):
        adapt(plain, LoRAConfig())


def test_two_adapters_are_refused() -> None:
    model = random_model(tiny_config())
    adapt(model, LoRAConfig())
    with pytest.raises(UserError, match="merge it first"):
        adapt(model, LoRAConfig())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"targets": ()}])
def test_impossible_shapes(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        LoRAConfig(**wrong)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter directory beside its base."""
    base = random_model(tiny_config())
    save_model(base, tmp_path / "base", base.config)
    adapt(base, LoRAConfig(rank=3, alpha=6, targets=("q_proj", "v_proj"), dora=True))
    randomise(base)
    save_adapter(base, tmp_path / "adapter", str(tmp_path / "base"))
    return tmp_path / "adapter"


@torch.no_grad()
def test_what_is_read_is_what_was_written(saved: Path) -> None:
    live, plain = load_adapted(saved), load_model(saved)
    assert adapter_of(live) is not None and adapter_of(plain) is None
    ids = random_ids(plain.config, 2, 7)
    torch.testing.assert_close(plain(ids), live(ids), atol=1e-4, rtol=1e-4)
    assert not (saved / "model.safetensors").exists() and not (saved / "config.json").exists()
    written = json.loads((saved / "adapter_config.json").read_text())
    assert written["target_modules"] == ["q_proj", "v_proj"] and written["use_dora"] is True


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_model_name_or_path": "nowhere"}, "its base model 'nowhere' is not here"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"target_modules": ["q_proj", "wqkv"]}, "names wqkv"),
        ({"target_modules": ".*nothing"}, "names no linear layer"),
        ({"target_modules": "("}, "no valid regular expression"),
        ({"target_modules": ["q_proj"]}, "tensors that no adapted layer has"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "is missing"),
        ({"r": 4}, "an adapter for another base?"),
        ({"r": "4"}, "r must be a whole number"),
    ],
)
def test_a_directory_that_cannot_be_read_is_one_line(saved: Path, changes: dict[str, Any], says: str) -> None:
    edit(saved, **changes)
    with pytest.raises(UserError) as caught:
        load_model(saved)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_for_other_weights_is_refused(saved: Path) -> None:
    other = random_model(tiny_config(), seed=9)
    save_model(other, saved.parent / "base", other.config)
    with pytest.raises(UserError, match="another base"):
        load_model(saved)


def test_a_torn_file_is_one_line(saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_model(saved)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|k)_proj", ["q_proj"], ["layers.1.mlp.up_proj"]])
def test_target_modules_as_peft_writes_them(targets: Any) -> None:
    model = random_model(tiny_config())
    config = from_peft({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets}, model, "here")
    names = adapt(model, config)
    ends = {"all-linear": 14, ".*\\.(q|k)_proj": 4}
    assert len(names) == (ends[targets] if isinstance(targets, str) else 2 if targets == ["q_proj"] else 1)
    again = from_peft(to_peft(config, model, "base"), random_model(tiny_config()), "there")
    assert again == config
