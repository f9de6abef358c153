"""A server in the policy's place: it is handed the weights, and refusals are one line."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_helpers import tiny_model, tiny_tokenizer
from safetensors.torch import load_file

from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.weights import load_model, save_model
from cutaway.rl.served import ServedPolicy
from cutaway.training.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, Any]] = []  # noqa: RUF012 (one server a test)
    success = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked.append((self.path, body))
        answer = json.dumps({"success": Handler.success, "message": "no room"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.asked, Handler.success = [], True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_server_is_handed_the_present_weights(url: str, tmp_path: Path) -> None:
    model = load_copy(tmp_path)
    served = ServedPolicy(model, tiny_tokenizer(), tmp_path / "served", url, ALONE, slots=2)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    served.refresh()
    assert Handler.asked == [("/update_weights_from_disk", {"model_path": str(tmp_path / "served")})]
    written = load_model(tmp_path / "served")
    assert torch.equal(written.model.norm.weight, model.model.norm.weight)
    Handler.success = False
    with pytest.raises(UserError, match=r"did not take the weights: .*no room"):
        served.refresh()
    served.close()


def test_an_adapter_is_merged_on_the_way_and_stays_apart_here(url: str, tmp_path: Path) -> None:
    model = load_copy(tmp_path)
    adapt(model, LoRAConfig(rank=2, targets=("q_proj",)))
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B.fill_(0.1)  # type: ignore[union-attr]
    served = ServedPolicy(model, tiny_tokenizer(), tmp_path / "served", url, ALONE, slots=2)
    served.refresh()
    written = load_file(tmp_path / "served" / "model.safetensors")
    assert not any("lora" in key for key in written)
    assert torch.equal(written[f"{name}.weight"], layer.merged().weight)  # type: ignore[operator]
    assert model.get_submodule(name) is layer
    served.close()


def load_copy(tmp_path: Path) -> Any:
    save_model(tiny_model(), tmp_path / "model", tiny_model().config)
    return load_model(tmp_path / "model")
