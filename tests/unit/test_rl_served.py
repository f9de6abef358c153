"""A server in the policy's place: it is handed the weights, and refusals are one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.weights import load_model, save_model
from cutaway.rl.served import ServedPolicy
from cutaway.training.distributed import Ranks
from generation_helpers import tiny_model, tiny_tokenizer
from http_helpers import StandIn, stand_in

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(lambda path, body: (200, {"success": True})) as one:
        yield one


def test_the_server_is_handed_the_present_weights(server: StandIn, tmp_path: Path) -> None:
    model = load_copy(tmp_path)
    served = ServedPolicy(model, tiny_tokenizer(), tmp_path / "served", server.url, ALONE, slots=2)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    served.refresh()
    assert [(call.path, call.body) for call in server.asked] == [
        ("/update_weights_from_disk", {"model_path": str(tmp_path / "served")})
    ]
    written = load_model(tmp_path / "served")
    assert torch.equal(written.model.norm.weight, model.model.norm.weight)
    server.reply = lambda path, body: (200, {"success": False, "message": "no room"})
    with pytest.raises(UserError, match=r"did not take the weights: .*no room"):
        served.refresh()
    served.close()


def test_vllm_reads_the_weights_and_forgets_what_it_has_cached(server: StandIn, tmp_path: Path) -> None:
    def reply(path: str, body: Any) -> tuple[int, Any]:
        return 200, {"results": [None]} if path == "/collective_rpc" else b""

    server.reply = reply
    folder = tmp_path / "served"
    served = ServedPolicy(load_copy(tmp_path), tiny_tokenizer(), folder, server.url, ALONE, 2, dialect="vllm")
    served.refresh()
    assert [(call.path, call.body) for call in server.asked] == [
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}),
        ("/reset_prefix_cache", {}),
    ]
    server.reply = lambda path, body: (404, {"detail": "Not Found"})  # not in development mode
    with pytest.raises(UserError, match="collective_rpc: HTTP 404"):
        served.refresh()
    server.reply = lambda path, body: (200, b"")
    with pytest.raises(UserError, match="did not take the weights: None"):
        served.refresh()
    served.close()


def test_an_adapter_is_merged_on_the_way_and_stays_apart_here(server: StandIn, tmp_path: Path) -> None:
    model = load_copy(tmp_path)
    adapt(model, LoRAConfig(rank=2, targets=("q_proj",)))
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B.fill_(0.1)  # type: ignore[union-attr]
    served = ServedPolicy(model, tiny_tokenizer(), tmp_path / "served", server.url, ALONE, slots=2)
    served.refresh()
    written = load_file(tmp_path / "served" / "model.safetensors")
    assert not any("lora" in key for key in written)
    assert torch.equal(written[f"{name}.weight"], layer.merged().weight)  # type: ignore[operator]
    assert model.get_submodule(name) is layer
    served.close()


def load_copy(tmp_path: Path) -> Any:
    save_model(tiny_model(), tmp_path / "model", tiny_model().config)
    return load_model(tmp_path / "model")
