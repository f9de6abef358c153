"""Activation checkpointing inside a compiled network."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.data.loader import Batch
from cutaway.training.network import Network
from model_helpers import pack, random_ids, random_model, tiny_config
from training_helpers import ALONE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compiling needs a C++ compiler"),
]
ROUTED = {"qk_norm": True, "num_experts": 4, "moe_intermediate_size": 32, "router_aux_loss_coef": 0.5}


@pytest.mark.parametrize(
    ("changes", "dtype", "tolerance"),
    [({"qk_norm": True}, torch.float32, 1e-5), (ROUTED, torch.float32, 1e-5), (ROUTED, torch.bfloat16, 0.05)],
)
def test_gradients_are_those_of_the_plain_network(
    changes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    positions, documents = pack([9, 7, 16])
    found: list[dict[str, Tensor]] = []
    for checkpointing, compiled in ((False, False), (True, True)):
        torch._dynamo.reset()
        network = Network(random_model(tiny_config(**changes)), ALONE, dtype)
        network.model.model.checkpointing = checkpointing
        if compiled:
            network.compile()
        ids = random_ids(network.model.config, 1, 33)
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions, documents)
        torch.autograd.backward(network.training_loss(batch)[0])
        found.append(
            {name: weight.grad for name, weight in network.model.named_parameters() if weight.grad is not None}
        )
    plain, again = found
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert (again[name] - gradient).norm() <= tolerance * gradient.norm()
