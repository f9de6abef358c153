"""Reading and writing checkpoints: what comes back is what was saved, and every broken directory is one clear line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model, load_weights, save_model, write_safetensors, write_text
from model_helpers import random_ids, random_model, tiny_config

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model() -> CausalLM:
    return random_model(tiny_config(qk_norm=True, tie_word_embeddings=False))


@pytest.fixture
def saved(model: CausalLM, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model", model.config)
    return tmp_path / "model"


def shard(directory: Path, **index_changes: str) -> dict[str, Tensor]:
    """Turn a single file into two shards and an index, as large checkpoints have them."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map | index_changes}
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return tensors


def refused(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert directory.name in message
    return message


def change(directory: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) drop tensors of a saved checkpoint; dots in names are written as double underscores."""
    tensors: dict[str, Any] = load_file(directory / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rope", [{}, {"rope_type": "yarn", "factor": 4.0}], ids=["plain", "yarn"])
def test_a_model_comes_back_as_it_was(tied: bool, rope: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(tiny_config(tie_word_embeddings=tied, rope_scaling=rope))
    save_model(model, tmp_path, model.config)
    back = load_model(tmp_path)
    assert back.config == model.config
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs)
    ids = random_ids(model.config, 2, 12)
    assert torch.equal(back(ids), model(ids))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in back.parameters())
    assert not any(tensor.is_meta for tensor in (*back.parameters(), *back.buffers()))
    back(ids).sum().backward()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_loaded_weights_live_on_without_their_file(saved: Path, model: CausalLM) -> None:
    back = load_model(saved)
    size = (saved / "model.safetensors").stat().st_size
    (saved / "model.safetensors").write_bytes(b"\0" * size)
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_saving_twice_replaces(saved: Path, model: CausalLM) -> None:
    other = random_model(model.config, seed=5)
    save_model(other, saved, other.config)
    assert torch.equal(load_model(saved).lm_head.weight, other.lm_head.weight)


def test_shards_are_joined(saved: Path, model: CausalLM) -> None:
    shard(saved)
    back = load_model(saved)
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_model_saved_over_shards_is_the_one_that_loads(saved: Path, model: CausalLM) -> None:
    shard(saved)
    other = random_model(model.config, seed=5)
    save_model(other, saved, other.config)
    assert torch.equal(load_model(saved).lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_load_as_fp32(saved: Path, model: CausalLM, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(saved / "model.safetensors").items()}
    save_file(tensors, saved / "model.safetensors")
    for name, tensor in load_model(saved).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].to(dtype).float())


def test_a_bf16_model_is_saved_as_fp32(model: CausalLM, tmp_path: Path) -> None:
    save_model(model.bfloat16(), tmp_path, model.config)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_additions_that_older_checkpoints_carry_are_no_mistake(tmp_path: Path) -> None:
    model = random_model(tiny_config(tie_word_embeddings=True))
    save_model(model, tmp_path, model.config)
    change(tmp_path, lm_head__weight=model.head_weight.detach().clone())
    change(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert torch.equal(load_model(tmp_path).head_weight, model.head_weight)


def test_missing_tensor(saved: Path) -> None:
    change(saved, model__norm__weight=None)
    assert "model.norm.weight is missing" in refused(saved)


def test_missing_shard(saved: Path) -> None:
    shard(saved)
    (saved / "model-00002-of-00002.safetensors").unlink()
    assert "no model-00002-of-00002.safetensors" in refused(saved)


def test_tensor_missing_from_its_shard(saved: Path) -> None:
    tensors = shard(saved)
    first = sorted(tensors)[::2]
    path = saved / "model-00001-of-00002.safetensors"
    save_file({name: tensors[name] for name in first[1:]}, path)
    assert f"{first[0]} is missing" in refused(saved)


def test_misshapen_tensor_names_both_shapes(saved: Path) -> None:
    change(saved, model__layers__1__mlp__up_proj__weight=torch.zeros(48, 31))
    message = refused(saved)
    assert "model.layers.1.mlp.up_proj.weight" in message and "[48, 31]" in message and "[48, 32]" in message


def test_additional_tensor(saved: Path) -> None:
    change(saved, model__layers__0__self_attn__q_proj__bias=torch.zeros(32))
    assert "model.layers.0.self_attn.q_proj.bias" in refused(saved)


def test_a_layer_too_many(saved: Path) -> None:
    table = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    (saved / "config.json").write_text(json.dumps(table | {"num_hidden_layers": 1}), encoding="utf-8")
    assert "model.layers.1." in refused(saved)
    (saved / "config.json").write_text(json.dumps(table | {"num_hidden_layers": 3}), encoding="utf-8")
    assert "model.layers.2." in refused(saved)


def test_an_untied_model_needs_its_head(saved: Path) -> None:
    change(saved, lm_head__weight=None)
    assert "lm_head.weight is missing" in refused(saved)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_file(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a complete safetensors file" in refused(saved)


def test_garbage_and_pickles_are_not_read(saved: Path, model: CausalLM) -> None:
    torch.save(model.state_dict(), saved / "model.safetensors")
    assert "not a complete safetensors file" in refused(saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "no model.safetensors" in refused(saved)


def test_foreign_architecture(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "gpt2", "n_embd": 768}', encoding="utf-8")
    assert "gpt2" in refused(saved) and "llama" in refused(saved)


def test_corrupt_config(saved: Path) -> None:
    text = (saved / "config.json").read_text(encoding="utf-8")
    (saved / "config.json").write_text(text[: len(text) // 2], encoding="utf-8")
    assert "not valid JSON" in refused(saved)


def test_no_directory(saved: Path) -> None:
    assert "no model directory" in refused(saved / "elsewhere")
    assert "no model directory" in refused(saved / "config.json")


@pytest.mark.parametrize(
    "path", ["../stolen.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", ".", "../../x"]
)
def test_an_index_cannot_point_outside(saved: Path, path: str) -> None:
    tensors = shard(saved)
    save_file(tensors, saved.parent / "stolen.safetensors")
    index = json.loads((saved / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = dict.fromkeys(tensors, path)
    (saved / INDEX).write_text(json.dumps(index), encoding="utf-8")
    message = refused(saved)
    assert "outside the directory" in message or f"no {path}" in message


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": {}}}'],
)
def test_corrupt_index(saved: Path, content: str) -> None:
    shard(saved)
    (saved / INDEX).write_text(content, encoding="utf-8")
    assert "no valid index" in refused(saved)


def test_an_empty_index_names_a_missing_tensor(saved: Path) -> None:
    shard(saved)
    (saved / INDEX).write_text('{"weight_map": {}}', encoding="utf-8")
    assert "is missing" in refused(saved)


def test_loading_into_a_model_of_another_shape_leaves_it_alone(saved: Path) -> None:
    other = random_model(ModelConfig(**{**vars(load_model(saved).config), "hidden_size": 40}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match="shape"):
        load_weights(other, saved)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    write_text("old", tmp_path / "a.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_safetensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="No space left"):
        write_text("new", tmp_path / "a.json")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(3))
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_writing_where_there_is_no_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not write"):
        write_safetensors({"a": torch.ones(1)}, tmp_path / "none" / "a.safetensors")
    with pytest.raises(UserError, match="could not write"):
        write_text("x", tmp_path / "none" / "a.json")
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = random_model(tiny_config())
    with pytest.raises(UserError, match="could not write"):
        save_model(model, tmp_path / "file" / "model", model.config)
