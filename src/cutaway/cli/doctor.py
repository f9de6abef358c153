"""`cutaway doctor`: what this machine can do, measured in a few seconds."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.cli.common import parse
from cutaway.errors import UserError

if TYPE_CHECKING:
    import torch

_OPTIONAL = {
    "opencc": "Chinese script conversion",
    "pyarrow": "parquet files (extra: parquet)",
    "zstandard": ".zst files (extra: zstd)",
    "fastapi": "serving (extra: serve)",
    "gguf": "GGUF export (extra: export)",
    "tensorboard": "TensorBoard events",
    "transformers": "oracle tests (extra: oracle)",
}


@dataclass(frozen=True)
class DoctorFlags:
    """Say what this machine can do: versions, devices, number formats, compiler, measured speed, room on disk."""

    seconds: float = 0.3
    """Time to measure each matrix product."""


def main(argv: Sequence[str]) -> int:
    """Print the table, a line as soon as it is known."""
    flags = parse(DoctorFlags, argv, prog="cutaway doctor")
    if not 0 < flags.seconds <= 60:
        raise UserError(f"cutaway doctor: --seconds is {flags.seconds}, must be above 0 and at most 60")
    for name, value in findings(flags.seconds):
        print(f"{name:<14} {value}", flush=True)
    return 0


def findings(seconds: float) -> Iterator[tuple[str, str]]:
    """Name and value of everything worth knowing."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.machine()}, {_cores()} cores, {_memory()}"
    import torch

    from cutaway import __version__
    from cutaway.training.metrics import matmul_rate

    yield "cutaway", __version__
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    device = _device()
    yield "device", _describe(device)
    yield "compile", _compiler(device)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            rate = matmul_rate(device, dtype, seconds)
        except RuntimeError as error:
            yield name, f"not supported: {str(error).splitlines()[0]}"
        else:
            yield name, f"{rate / 1e12:.2f} TFLOP/s measured on a matrix product"
    cache = Path(os.environ.get("CUTAWAY_CACHE") or Path.home() / ".cache" / "cutaway")
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    yield "cache", f"{cache}, {shutil.disk_usage(existing).free / 2**30:.1f} GB free"
    for package, purpose in _OPTIONAL.items():
        yield package, f"{_version(package)} - {purpose}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB memory"
    except (AttributeError, ValueError, OSError):
        return "memory unknown"


def _device() -> "torch.device":
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _describe(device: "torch.device") -> str:
    import torch

    from cutaway.training.precision import pick_dtype

    if device.type != "cuda":
        return f"{device.type} (no CUDA device)"
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    cards = ", ".join(f"{card.name} {card.total_memory / 2**30:.0f} GB" for card in names)
    native = pick_dtype("auto", device) == torch.bfloat16
    return f"{cards}; bf16 {'yes' if native else 'no, fp16 with loss scaling'}"


def _compiler(device: "torch.device") -> str:
    compiler = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
    if device.type == "cuda":
        return "triton" if importlib.util.find_spec("triton") else "off: triton is not installed"
    return compiler or "off: no C++ compiler found (g++ would make training on the processor faster)"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
