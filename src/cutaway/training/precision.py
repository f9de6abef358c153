"""Which device, which arithmetic, and one allocator setting that a CPU needs."""

import ctypes
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

log = logging.getLogger("cutaway")


DTYPE_NAMES: dict[torch.dtype, Literal["fp32", "bf16", "fp16"]] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def pick_device(local_rank: int = 0) -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_memory(device: torch.device) -> float:
    """Bytes that this process may hold on the device; infinite for a processor, whose memory is not counted here."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return total * torch.cuda.get_per_process_memory_fraction(device)
    return float(torch.mps.recommended_max_memory()) if device.type == "mps" else math.inf


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the device computes it natively, fp16 on older GPUs, fp32 on CPUs without bf16 units."""
    if setting != "auto":
        return next(dtype for dtype, name in DTYPE_NAMES.items() if name == setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "mps":
        return torch.bfloat16
    fast = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return torch.bfloat16 if fast else torch.float32


def arithmetic(setting: str, device: torch.device, dtype: torch.dtype) -> str:
    """Device and arithmetic in words, and why it is that one where it is not the usual bf16."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    whys = {torch.float16: " (this GPU has no bf16)", torch.float32: " (this processor has no bf16 units)"}
    why = whys.get(dtype, "") if setting == "auto" else " (as set)"
    return f"{name}, matrix products in {DTYPE_NAMES[dtype]}{why}"


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in `dtype`; weights stay fp32, and so do the loss and everything that sums many terms."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory instead of returning it to the kernel; true where that was possible.

    By default every tensor over 32 MB is mapped anew and its pages are zeroed by the kernel one fault at a time, in
    every step, which can take as long as the arithmetic. One arena for all threads, since each would keep memory of its
    own: of the same steps one process then held 2.4 GB, another 3.3 GB.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # names of <malloc.h>
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, 1))
    return all(mallopt(name, value) for name, value in settings)
