"""onnxruntime computes from our ONNX files what we compute, for any batch and length."""

from pathlib import Path
from typing import Any

import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("gguf")

from cutaway.exporting.onnx_file import write_onnx  # noqa: E402
from cutaway.model.weights import save_model  # noqa: E402
from model_helpers import ROPE_SCALINGS, random_ids, random_model, tiny_config  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": ROPE_SCALINGS["llama3"], "tie_word_embeddings": False},
        {"qk_norm": True, "rope_scaling": ROPE_SCALINGS["yarn"]},
        {"qk_norm": True, "num_experts": 4, "moe_intermediate_size": 32},
    ],
    ids=["llama", "qwen3", "moe"],
)
@torch.no_grad()
def test_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(**changes)
    model = random_model(config)
    save_model(model, tmp_path / "run", config)
    session = onnxruntime.InferenceSession(str(write_onnx(tmp_path / "run", tmp_path / "model.onnx")))
    assert [entry.name for entry in session.get_inputs()] == ["input_ids"]
    for rows, length in ((1, 1), (1, 9), (3, 70), (5, 128)):
        ids = random_ids(config, rows, length)
        (found,) = session.run(["logits"], {"input_ids": ids.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(ids), atol=1e-3, rtol=0)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]
