"""`cutaway export`: a model as a file of another runtime."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
_NEEDED = {"gguf": ("gguf",), "ollama": ("gguf",), "onnx": ("onnx", "onnxscript")}


@dataclass(frozen=True)
class ExportFlags:
    """Write a model for another runtime. Transformers, vLLM, SGLang and LLaMA-Factory read the run directory itself."""

    run: tyro.conf.Positional[str]
    """Run directory, or any model or adapter directory of the Llama, Qwen3 or Qwen3-MoE kind."""
    to: Literal["gguf", "ollama", "onnx"]
    """gguf: one file for llama.cpp (of an adapter, a GGUF LoRA for its base's file). ollama: a folder with such a file
    and a Modelfile. onnx: one file, ids to logits. The last two merge an adapter."""
    out: str
    """File to write; for ollama, the folder."""
    quantize: Quantization | None = None
    """Number format of the matrices; default f16, for onnx f32, which is the only one there."""


def main(argv: Sequence[str]) -> int:
    """Write, and say what and how large."""
    flags = parse(ExportFlags, argv, prog="cutaway export")
    missing = [name for name in _NEEDED[flags.to] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to {flags.to} needs the package {missing[0]}: pip install 'cutaway[export]'")
    export(Path(flags.run), flags.to, Path(flags.out), flags.quantize)
    files = [path for path in Path(flags.out).rglob("*") if path.is_file()] or [Path(flags.out)]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{flags.out}: {size:.1f} MB", file=sys.stderr)
    return 0


def export(run: Path, to: str, out: Path, quantize: Quantization | None = None) -> None:
    """Write `run` to `out`; torch is imported after the flags are known to be right."""
    if to == "onnx":
        from cutaway.exporting.onnx_file import write_onnx

        if quantize not in (None, "f32"):
            raise UserError(f"--to onnx writes f32 only, not {quantize}: quantise the file with a tool of your runtime")
        write_onnx(run, out)
        return
    from cutaway.exporting.gguf_file import write_gguf, write_gguf_lora
    from cutaway.exporting.ollama import write_ollama
    from cutaway.model.weights import is_adapter

    if to == "ollama":
        write_ollama(run, out, quantize or "f16")
    elif is_adapter(run):
        write_gguf_lora(run, out, quantize or "f16")
    else:
        write_gguf(run, out, quantize or "f16")
