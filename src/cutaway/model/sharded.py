"""Tensors of which every rank holds some rows (DTensors, which FSDP2 makes of parameters): put together, taken apart.

`whole` and `on_first` are collective for such a tensor: every rank must call, in the same order. A plain tensor passes
through all of them.
DTensor is imported where there is one, since that takes as long as the rest of a short command.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every rank."""
    shard: Any = tensor
    return shard.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this rank holds, in their own memory."""
    shard: Any = tensor
    return shard.to_local() if is_sharded(tensor) else tensor


def on_first(tensor: Tensor) -> Tensor:
    """All rows in the first rank's CPU memory; of a sharded tensor the others, who write nothing, keep none."""
    rows = whole(tensor.detach())
    if is_sharded(tensor) and dist.get_rank():
        return rows.new_empty(0, device="cpu")
    return rows.cpu().contiguous()


def part_of(rows: Tensor, pattern: Tensor) -> Tensor:
    """The part of a whole tensor that this rank holds where it is sharded as `pattern` is. Sends nothing."""
    if not is_sharded(pattern):
        return rows
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(pattern, DTensor)
    mesh = pattern.device_mesh
    held = DTensor.from_local(rows.to(pattern.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    # A copy, because the part would otherwise keep the memory of the whole.
    return held.redistribute(placements=pattern.placements).clone()
