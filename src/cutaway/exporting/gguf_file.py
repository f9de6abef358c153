"""GGUF, the file of llama.cpp and Ollama, straight from a model or adapter directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gguf

from cutaway.errors import UserError
from cutaway.exporting.gguf_metadata import ARCHITECTURES, add_network, add_vocabulary
from cutaway.exporting.gguf_tensors import encode, gguf_name, in_llama_order, tensor_type, tensors
from cutaway.model.lora import PEFT_PREFIX, adapter_of, adapter_state
from cutaway.model.weights import find_base, is_adapter, load_adapted, load_model
from cutaway.tokenization.tokenizer import Tokenizer

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


def write_gguf(run: Path, out: Path, quantize: Quantization = "f16") -> Path:
    """Write the model of `run` as one GGUF file that needs no further hand: weights, shape, vocabulary, template.

    An adapter is merged. UserError where the directory is no complete model, or has something that llama.cpp cannot
    compute.
    """
    model, tokenizer = load_model(run), tokenizer_of(run)
    writer = gguf.GGUFWriter(None, ARCHITECTURES[model.config.model_type])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(run.resolve().name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if quantize == "f32" else f"MOSTLY_{quantize.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_network(writer, model.config)
    add_vocabulary(writer, tokenizer, model.config)
    for name, weight in tensors(model):
        kind = tensor_type(name, weight, quantize)
        writer.add_tensor(name, encode(name, weight, kind), raw_dtype=kind)
    return write_file(writer, out)


def write_gguf_lora(run: Path, out: Path, quantize: Quantization = "f16") -> Path:
    """Write the adapter of `run` as a GGUF file that llama.cpp lays over its base's GGUF file.

    llama.cpp multiplies an update by `alpha / rank`, so rsLoRA's scale is written as the alpha that gives it. UserError
    for DoRA, whose lengths have no place there.
    """
    if quantize not in ("f32", "f16"):
        raise UserError(f"an adapter is written as f32 or f16, not as {quantize}: `cutaway merge` it to quantise both")
    model = load_adapted(run)
    adapter = adapter_of(model)
    assert adapter is not None
    if adapter.dora:
        raise UserError(f"{run}: a GGUF adapter cannot hold DoRA's lengths: `cutaway merge` it, then export the model")
    writer = gguf.GGUFWriter(None, ARCHITECTURES[model.config.model_type])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(run.resolve().name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.scale * adapter.rank)
    kind = gguf.GGMLQuantizationType[quantize.upper()]
    for name, tensor in adapter_state(model).items():
        module, part = name.removeprefix(PEFT_PREFIX).removesuffix(".weight").rsplit(".", 1)
        weight = tensor.detach().float()
        if part == "lora_B":
            weight = in_llama_order(weight, module, model.config)
        full = f"{gguf_name(module)}.weight.{part.lower()}"
        writer.add_tensor(full, encode(full, weight, kind), raw_dtype=kind)
    return write_file(writer, out)


def tokenizer_of(run: Path) -> Tokenizer:
    """A directory's tokenizer; of an adapter without one, its base's."""
    bare = is_adapter(run) and not (run / "tokenizer.json").is_file()
    return Tokenizer.load(find_base(run) if bare else run)


def write_file(writer: gguf.GGUFWriter, out: Path) -> Path:
    """Write what was added, as a whole or not at all."""

    def write(partial: Path) -> None:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return replace_file(out, write)


def replace_file(out: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside `out`, then put it in its place: a reader sees the old one or the new one."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: --out must name the file to write")
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"could not write {out}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return out
