"""Activation checkpointing: the gradients of the plain network from a fraction of its memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cutaway.data.loader import Batch
from cutaway.model import transformer
from cutaway.model.config import ModelConfig
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.transformer import CausalLM
from cutaway.rl.policy import ActorCritic, value_model
from cutaway.training.network import Network
from cutaway.training.plan import activation_bytes, kept_bytes, layer_bytes, step_memory
from model_helpers import kept_bytes_of, random_ids, random_model, tiny_config
from training_helpers import ALONE

EXPERTS = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = EXPERTS | {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}
SHAPES = [{"qk_norm": True}, {"qk_norm": False, "tie_word_embeddings": False}, ROUTED]
SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "head_dim": 16}


def packed_batch(config: ModelConfig) -> Batch:
    ids = random_ids(config, 3, 17)
    positions = torch.arange(8).repeat(3, 2)
    documents = torch.tensor([[0] * 8 + [1] * 8] * 3, dtype=torch.int32)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions, documents)


def gradients(model: CausalLM, checkpointing: bool, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.model.checkpointing = checkpointing
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    for _ in range(2):  # gradients of two micro-batches are added up
        torch.autograd.backward(loss())
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", SHAPES)
def test_gradients_are_those_of_the_plain_network_to_the_bit(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = random_model(tiny_config(**changes))
    network, batch = Network(model, ALONE, dtype), packed_batch(model.config)
    sums: list[dict[str, Tensor]] = []

    def loss() -> Tensor:
        found, more = network.training_loss(batch)
        sums.append({"loss": found.detach()} | more)
        return found

    plain, again = (gradients(model, checkpointing, loss) for checkpointing in (False, True))
    assert plain.keys() == again.keys() and all(torch.equal(again[name], plain[name]) for name in plain)
    assert sums[0].keys() == sums[3].keys() and all(torch.equal(sums[3][key], sums[0][key]) for key in sums[0])


def test_dropout_of_adapters_falls_on_the_same_inputs_again() -> None:
    model = random_model(tiny_config(qk_norm=True)).train()
    adapt(model, LoRAConfig(rank=2, dropout=0.5), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    network, batch = Network(model, ALONE, torch.float32), packed_batch(model.config)
    plain, again = (gradients(model, on, lambda: network.training_loss(batch)[0]) for on in (False, True))
    assert plain and all("lora_" in name for name in plain)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_a_policy_and_its_value_model_too() -> None:
    found = []
    for checkpointing in (False, True):
        model = random_model(tiny_config())
        model.model.checkpointing = checkpointing
        critic = value_model(model)
        assert critic.model.checkpointing == checkpointing
        with torch.no_grad():
            critic.score.weight.fill_(0.1)
        ids = random_ids(model.config, 2, 11)
        outputs = ActorCritic(model, 0.7, critic)(ids[:, :-1], ids[:, 1:], torch.ones(2, 10, dtype=torch.bool))
        torch.autograd.backward((outputs[0] + outputs[2]).sum())
        found.append([weight.grad for module in (model, critic) for weight in module.parameters()])
    assert all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 6}, {"num_hidden_layers": 6} | EXPERTS])
def test_of_every_layer_only_the_input_is_kept(changes: dict[str, Any], dtype: torch.dtype) -> None:
    config, rows, seq = tiny_config(**(SHAPE | changes)), 3, 40
    model = random_model(config)
    plain = kept_bytes_of(model, rows, seq, dtype) / (rows * seq)
    model.model.checkpointing = True
    kept = kept_bytes_of(model, rows, seq, dtype) / (rows * seq)
    assert kept_bytes(config, seq, dtype.itemsize) == pytest.approx(kept, rel=0.03)
    assert kept < plain / 5
    assert activation_bytes(config, seq, dtype.itemsize) == pytest.approx(plain, rel=0.02)


def test_the_memory_of_a_step_counts_one_layer_or_the_head_whichever_is_more() -> None:
    model = CausalLM(tiny_config(num_hidden_layers=6, **SHAPE))
    plain = step_memory(model, 4, 64, 2, "adamw")
    model.model.checkpointing = True
    found = step_memory(model, 4, 64, 2, "adamw")
    assert plain.recomputed == 0 and plain.total == sum(vars(plain).values())
    assert found.recomputed == 256 * layer_bytes(model.config, 64, 2)
    assert found.activations < plain.activations / 5
    rest = found.weights + found.gradients + found.optimizer + found.activations
    assert found.total == rest + max(found.recomputed, found.head)


@pytest.mark.parametrize("on", [False, True])
def test_the_layers_forward_pass_is_counted_once_more(on: bool) -> None:
    model = random_model(tiny_config(num_hidden_layers=3, num_key_value_heads=4))
    model.model.checkpointing = on
    ids = random_ids(model.config, 1, 64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.autograd.backward(model(ids, targets=ids, documents=torch.zeros(1, 64, dtype=torch.int32)).sum())
    expected = model.flops_per_token(64) + model.recomputed_flops_per_token(64)
    assert (model.recomputed_flops_per_token(64) > 0) == on
    assert counter.get_total_flops() == pytest.approx(64 * expected, rel=1e-6)


def test_nothing_is_computed_again_where_there_is_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(transformer, "recomputed", refuse)
    model = random_model(tiny_config())
    model.model.checkpointing = True
    ids = random_ids(model.config, 1, 8)
    with torch.no_grad():
        model(ids)
    with pytest.raises(AssertionError):
        model(ids)
