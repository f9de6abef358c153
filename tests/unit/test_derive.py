"""The rules that fill in a recipe: bounds for every size, and a given value is never touched."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.recipe.base import ModelSettings, TrainSettings
from cutaway.recipe.files import builtin_recipes, load_recipe
from cutaway.recipe.stages import SFTSettings
from cutaway.training.derive import (
    MUON_SHARE,
    MUON_SHARE_SHORT,
    Rule,
    derive_batch,
    derive_intervals,
    derive_model,
    derive_optimizer,
)
from cutaway.training.optim import muon_cost
from model_helpers import random_model, tiny_config

IDS = (2, 0)


def test_a_rule_says_value_reason_and_source() -> None:
    assert str(Rule("adam_lr", 0.0123456, "because", "paper")) == "adam_lr = 0.01235: because [paper]"


@given(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.sampled_from([8, 16, 64]), st.sampled_from([128, 512]))
def test_a_derived_shape_fits_together(heads: int, head_dim: int, row_length: int) -> None:
    settings = ModelSettings(hidden_size=heads * head_dim, num_attention_heads=heads)
    config, rules = derive_model(settings, 300, row_length, IDS)
    assert config.head_dim * heads == config.hidden_size
    assert heads % config.num_key_value_heads == 0
    assert config.intermediate_size % 128 == 0
    assert config.intermediate_size >= 8 * config.hidden_size / 3
    assert config.max_position_embeddings == 4 * row_length
    assert (config.eos_token_id, config.pad_token_id) == IDS
    named = {rule.name: rule.value for rule in rules}
    assert named == {name: getattr(config, name) for name in named}
    assert len(named) == 4


def test_a_given_shape_is_kept_and_an_impossible_one_refused() -> None:
    given_shape = {
        "num_key_value_heads": 4,
        "head_dim": 10,
        "intermediate_size": 77,
        "max_position_embeddings": 99,
    }
    config, rules = derive_model(ModelSettings(hidden_size=30, **given_shape), 300, 64, IDS)
    assert {name: getattr(config, name) for name in given_shape} == given_shape
    assert rules == []
    with pytest.raises(UserError, match="hidden_size 30 is no multiple of num_attention_heads 4"):
        derive_model(ModelSettings(hidden_size=30), 300, 64, IDS)


@given(st.floats(1, 1e12), st.sampled_from([64, 512, 4096]), st.sampled_from(["cpu", "cuda", "mps"]))
def test_a_derived_batch_is_a_power_of_two_that_grows_with_the_horizon(horizon: float, row: int, device: str) -> None:
    settings, rules = derive_batch(TrainSettings(row_length=row), horizon, device)
    assert settings.batch_tokens and settings.micro_batch_tokens
    assert math.log2(settings.batch_tokens).is_integer()
    assert settings.batch_tokens >= max(2048, row)
    assert row <= settings.micro_batch_tokens <= max(row, min(settings.batch_tokens, 65536))
    more, _ = derive_batch(TrainSettings(row_length=row), 4 * horizon, device)
    assert more.batch_tokens and more.batch_tokens >= settings.batch_tokens
    assert [rule.name for rule in rules] == ["batch_tokens", "micro_batch_tokens"]


def test_sixteen_million_tokens_take_steps_of_sixteen_thousand() -> None:
    settings, _ = derive_batch(TrainSettings(), 16e6, "cpu")
    assert (settings.batch_tokens, settings.micro_batch_tokens) == (16384, 8192)


def test_a_micro_batch_is_no_larger_than_what_fits_the_device() -> None:
    settings, rules = derive_batch(TrainSettings(), 375e6, "cuda", 16384)
    assert (settings.batch_tokens, settings.micro_batch_tokens) == (65536, 16384)
    assert "80% of the device's memory" in str(rules[1])
    assert derive_batch(TrainSettings(), 375e6, "cuda")[0].micro_batch_tokens == 65536
    assert derive_batch(TrainSettings(), 375e6, "cpu", 4096)[0].micro_batch_tokens == 8192


def test_given_batches_are_kept() -> None:
    given_sizes = TrainSettings(batch_tokens=3000, micro_batch_tokens=700)
    assert derive_batch(given_sizes, 1e9, "cpu") == (given_sizes, [])


@pytest.mark.parametrize("batch_tokens", [64, 1 << 20])
def test_muon_is_taken_where_it_is_cheap(batch_tokens: int) -> None:
    model = random_model(tiny_config())
    settings, rules = derive_optimizer(TrainSettings(batch_tokens=batch_tokens, row_length=64), model, 1.0, 1e12)
    cheap = muon_cost(model) <= MUON_SHARE * batch_tokens * model.flops_per_token(64)
    assert settings.optimizer == ("muon" if cheap else "adamw")
    assert cheap == (batch_tokens > 64)
    assert "% of a step (limit 8%)" in str(rules[0])


def test_a_short_run_may_spend_more_on_muon() -> None:
    model, settings = random_model(tiny_config()), TrainSettings(batch_tokens=512, row_length=64)
    share = muon_cost(model) / (512 * model.flops_per_token(64))
    assert MUON_SHARE < share < MUON_SHARE_SHORT
    for tokens, peak, expected in ((1e5, 1.0, "muon"), (1e6, 1.0, "adamw"), (1e5, 0.5, "adamw")):
        assert derive_optimizer(settings, model, peak, tokens)[0].optimizer == expected


@given(st.integers(10, 22), st.booleans())
def test_derived_rates_grow_with_the_batch_and_halve_for_fine_tuning(power: int, muon: bool) -> None:
    model = random_model(tiny_config())
    base: Any = {"optimizer": "muon" if muon else "adamw"}
    small, _ = derive_optimizer(TrainSettings(batch_tokens=2**power, **base), model, 1.0, 1e9)
    large, _ = derive_optimizer(TrainSettings(batch_tokens=2 ** (power + 2), **base), model, 1.0, 1e9)
    tuned, _ = derive_optimizer(SFTSettings(batch_tokens=2**power, **base), model, 0.5, 1e9)
    assert muon or small.muon_lr is None
    for name in ("muon_lr", "adam_lr") if muon else ("adam_lr",):
        rate = getattr(small, name)
        assert 0 < rate <= getattr(large, name) <= 2 * rate + 1e-12
        assert getattr(tuned, name) == pytest.approx(rate / 2)
    assert small.optimizer == base["optimizer"]


def test_given_rates_are_kept() -> None:
    settings = TrainSettings(batch_tokens=4096, optimizer="adamw", muon_lr=1.0, adam_lr=2.0, weight_decay=0.0)
    assert derive_optimizer(settings, random_model(tiny_config()), 0.5, 1e9) == (settings, [])


@given(st.integers(1, 10**6))
def test_intervals_are_whole_steps_and_given_ones_are_kept(steps: int) -> None:
    settings, rules = derive_intervals(TrainSettings(), steps)
    values = [settings.log_every, settings.eval_every, settings.save_every, settings.sample_every]
    assert all(value is not None and 1 <= value <= max(1, steps) for value in values)
    assert steps / (settings.log_every or 1) <= 1000
    assert len(rules) == 4
    fixed = TrainSettings(log_every=3, eval_every=4, save_every=5, sample_every=0)
    assert derive_intervals(fixed, steps) == (fixed, [])


@pytest.mark.parametrize("name", builtin_recipes())
def test_the_built_in_recipes_derive(name: str) -> None:
    recipe = load_recipe(name)
    config, _ = derive_model(recipe.model, recipe.tokenizer.vocab_size, recipe.pretrain.row_length, IDS)
    assert config.num_hidden_layers == recipe.model.num_hidden_layers
