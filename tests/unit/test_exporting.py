"""Names, order of rows, number formats and metadata of GGUF files; one clear line where a model cannot be exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

gguf = pytest.importorskip("gguf")

from safetensors.torch import load_file, save_file  # noqa: E402

from cutaway.cli.export import export  # noqa: E402
from cutaway.cli.main import main  # noqa: E402
from cutaway.errors import UserError  # noqa: E402
from cutaway.exporting.gguf_file import write_gguf  # noqa: E402
from cutaway.exporting.gguf_metadata import pre_tokenizer  # noqa: E402
from cutaway.exporting.gguf_tensors import gguf_name, in_llama_order  # noqa: E402
from cutaway.exporting.ollama import PLAIN, TEMPLATE  # noqa: E402
from cutaway.model.lora import LoRAConfig, adapt  # noqa: E402
from cutaway.model.rope import rotate  # noqa: E402
from cutaway.model.weights import save_adapter, save_model  # noqa: E402
from cutaway.recipe.base import TokenizerSettings  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402
from cutaway.tokenization.train import train_tokenizer  # noqa: E402
from model_helpers import random_model, tiny_config  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["hello world 12345"] * 3, TokenizerSettings(vocab_size=280))


@pytest.fixture
def run(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    config = tiny_config(vocab_size=tokenizer.vocab_size)
    save_model(random_model(config), folder, config)
    tokenizer.save(folder)
    return folder


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_every_parameter_has_a_name() -> None:
    for changes in ({"tie_word_embeddings": False}, {"qk_norm": True, "num_experts": 2, "moe_intermediate_size": 8}):
        names = [name.removesuffix(".weight") for name, _ in random_model(tiny_config(**changes)).named_parameters()]
        ours = {gguf_name(name) for name in names}
        arch = gguf.MODEL_ARCH.QWEN3MOE if "num_experts" in changes else gguf.MODEL_ARCH.LLAMA
        theirs = gguf.get_tensor_name_map(arch, 2)
        # The gguf package knows the stacks of experts by other names, so only the plain layers are looked up there.
        looked_up = {theirs.get_name(name) for name in names if "experts" not in name}
        assert looked_up <= ours and len(ours) == len(names)
    with pytest.raises(UserError, match="no tensor for score"):
        gguf_name("score")


def test_rows_of_a_llama_pair_as_llama_cpp_turns_them() -> None:
    """Turning neighbours of the reordered vector is reordering the vector whose halves were turned."""
    config = tiny_config(head_dim=8, num_attention_heads=1, num_key_value_heads=1)
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(4.0) + 0.3
    cos, sin = angles.cos(), angles.sin()
    halves = rotate(x.view(1, 1, 1, 8), cos.view(1, 1, 1, 4), sin.view(1, 1, 1, 4)).view(8, 1)
    first, second = in_llama_order(x.view(8, 1), "q_proj", config).view(4, 2).unbind(1)
    neighbours = torch.stack((first * cos - second * sin, second * cos + first * sin), 1).view(8, 1)
    torch.testing.assert_close(neighbours, in_llama_order(halves, "q_proj", config))
    for other, shape in (("v_proj", {}), ("q_proj", {"qk_norm": True})):
        assert in_llama_order(x.view(8, 1), other, tiny_config(head_dim=8, **shape)) is not None
        assert torch.equal(in_llama_order(x.view(8, 1), other, tiny_config(head_dim=8, **shape)), x.view(8, 1))


def test_formats(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = tensors_of(write_gguf(run, tmp_path / "a.gguf", "q4_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in written.items()}
    assert kinds["token_embd.weight"] == "Q8_0" and kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == kinds["blk.1.ffn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "F16", "rows of 48 are no multiple of 32"
    assert "blk.0.ffn_down.weight: rows of 48" in caplog.text
    exact = tensors_of(write_gguf(run, tmp_path / "b.gguf", "f32"))
    stored = load_file(run / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(torch.from_numpy(exact["blk.1.ffn_up.weight"].data.copy()), stored)


def test_an_infinite_weight_is_named(run: Path, tmp_path: Path) -> None:
    path = run / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    write_gguf(run, tmp_path / "fine.gguf", "bf16")
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight: .* too large for f16"):
        write_gguf(run, tmp_path / "model.gguf", "f16")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["fine.gguf"]


def published(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    table = json.loads(json.dumps(tokenizer.definition)) | changes
    return Tokenizer(json.dumps(table), {})


def test_pre_tokenizers(tokenizer: Tokenizer) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    llama3 = train_tokenizer(["hello 123"] * 3, TokenizerSettings(vocab_size=280, pattern="llama3"))
    assert pre_tokenizer(tokenizer) == "qwen2"
    assert pre_tokenizer(llama3) == "llama-bpe"
    assert pre_tokenizer(published(tokenizer, pre_tokenizer=byte_level)) == "gpt-2"
    smollm = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    assert pre_tokenizer(published(tokenizer, pre_tokenizer=smollm)) == "smollm"
    for wrong in (None, byte_level | {"add_prefix_space": True}, {"type": "Whitespace"}):
        with pytest.raises(UserError, match=r"none that llama\.cpp can be told of"):
            pre_tokenizer(published(tokenizer, pre_tokenizer=wrong))


def test_an_ollama_folder(run: Path, tmp_path: Path) -> None:
    export(run, "ollama", tmp_path / "out", "q8_0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./model.gguf\n") and f'TEMPLATE """{TEMPLATE}"""\n' in text
    assert 'PARAMETER stop "<|im_end|>"' in text and "PARAMETER num_ctx 128" in text
    (run / "recipe.toml").write_text('[made]\nstage = "pretrain"\n', encoding="utf-8")
    export(run, "ollama", tmp_path / "base", "f16")
    assert f'TEMPLATE """{PLAIN}"""' in (tmp_path / "base" / "Modelfile").read_text(encoding="utf-8")


def test_an_adapter_is_a_file_of_its_own(tmp_path: Path) -> None:
    config = tiny_config()
    for name, dora in (("lora", False), ("dora", True)):
        model = random_model(config)
        adapt(model, LoRAConfig(rank=2, targets=("q_proj",), dora=dora))
        save_model(random_model(config), tmp_path / "base", config)
        save_adapter(model, tmp_path / name, str(tmp_path / "base"))
    export(tmp_path / "lora", "gguf", tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    parts = {f"blk.{layer}.attn_q.weight.lora_{part}" for layer in range(2) for part in "ab"}
    assert {tensor.name for tensor in reader.tensors} == parts
    assert reader.fields["adapter.lora.alpha"].contents() == 32.0 and "general.architecture" in reader.fields
    with pytest.raises(UserError, match="cannot hold DoRA"):
        export(tmp_path / "dora", "gguf", tmp_path / "b.gguf")
    with pytest.raises(UserError, match="f32 or f16, not as q8_0"):
        export(tmp_path / "lora", "gguf", tmp_path / "b.gguf", "q8_0")


def damage(run: Path, how: str) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    weights = (run / "model.safetensors").read_bytes()
    tensors = load_file(run / "model.safetensors")
    if how == "truncated":
        (run / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif how == "header only":
        (run / "model.safetensors").write_bytes(weights[:5])
    elif how == "shape":
        (run / "config.json").write_text(json.dumps(config | {"intermediate_size": 47}), encoding="utf-8")
    elif how == "architecture":
        (run / "config.json").write_text(json.dumps(config | {"model_type": "gemma3"}), encoding="utf-8")
    elif how == "reward model":
        tensors["score.weight"] = torch.zeros(1, 32)
        save_file(tensors, run / "model.safetensors")
    elif how == "missing tensor":
        del tensors["model.norm.weight"]
        save_file(tensors, run / "model.safetensors")
    elif how == "no weights":
        (run / "model.safetensors").unlink()
    elif how == "tokenizer":
        (run / "tokenizer.json").write_text("{", encoding="utf-8")
    else:
        (run / "config.json").write_text(json.dumps(config)[:40], encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "not a complete safetensors file"),
        ("header only", "not a complete safetensors file"),
        ("shape", "has shape [48, 32], config.json asks for [47, 32]"),
        ("architecture", "model_type is 'gemma3'; supported: llama, qwen3, qwen3_moe"),
        ("reward model", "tensors this network does not have, such as score.weight"),
        ("missing tensor", "tensor model.norm.weight is missing"),
        ("no weights", "no model.safetensors"),
        ("tokenizer", "not a tokenizer file that can be read"),
        ("config", "not valid JSON"),
    ],
)
def test_a_damaged_model_is_one_line(
    how: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run, how)
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "x.gguf")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("cutaway: error: ") and message in error
    assert not list(tmp_path.glob("x.gguf*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "gguf", "--out", "."], ". is a folder: --out must name the file"),
        (["--to", "onnx", "--out", "x", "--quantize", "q8_0"], "writes f32 only, not q8_0"),
        (["--to", "ggml", "--out", "x"], "--to is 'ggml', must be one of"),
        (["--to", "gguf"], "--out is missing"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", str(run), "--to", "gguf", "--out", "x"]) == 2
    assert "pip install 'cutaway[export]'" in capsys.readouterr().err
