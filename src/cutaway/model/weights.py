"""Initial weights, and reading and writing checkpoints as safetensors (one file, or sharded with an index)."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.moe import is_router
from cutaway.model.transformer import CausalLM


@torch.no_grad()
def initialise(model: CausalLM, seed: int) -> None:
    r"""Fill a new model's weights, on any device the same for the same seed.

    Matrices are normal with standard deviation $1/\sqrt{n_{in}}$ (a unit-variance input gives a unit-variance output);
    the projections that write to the residual stream (`o_proj`, `down_proj`) are smaller by $1/\sqrt{2L}$, so that $L$
    layers of two writes each leave its variance of order one (GPT-2's rule; Radford et al. 2019, section 2.3). The
    embedding has standard deviation 0.02: tied to the head, it then starts the logits near 0, the loss near
    $\ln V$. A router has 0.02 as well, which starts the weights of the experts near equal. Norm gains start at 1.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        std = 0.02 if "embed_tokens" in name or "lm_head" in name else parameter.shape[-1] ** -0.5
        if is_router(name):
            std = 0.02
        if name.removesuffix(".weight").endswith(("o_proj", "down_proj")):
            std *= residual
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def save_model(model: nn.Module, directory: Path, config: ModelConfig) -> None:
    """Write `model.safetensors` (fp32) and `config.json`, each replaced atomically."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not write {directory}: {error}") from error
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(tensors, directory / "model.safetensors")
    write_text(json.dumps(config.to_dict(), indent=2) + "\n", directory / "config.json")


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors so that a crash at any instant leaves the old file or the new one, never a torn one."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        _replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"could not write {path}: {error}") from error


def write_text(text: str, path: Path) -> None:
    """Write a small file atomically."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"could not write {path}: {error}") from error


def _replace(partial: Path, path: Path) -> None:
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_model(directory: str | Path, device: torch.device | str = "cpu") -> CausalLM:
    """Build the network that `config.json` describes and fill it from the safetensors beside it, in fp32."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no model directory '{directory}'")
    config = ModelConfig.load(directory)
    with torch.device("meta"):
        model = CausalLM(config)
    load_weights(model, directory)
    # The rotary table is a buffer that no checkpoint holds, so it is computed again off the meta device.
    model.model.rotary = type(model.model.rotary)(config)
    return model.to(device)


def load_weights(model: CausalLM, directory: Path) -> None:
    """Fill a model of the same shape from a directory; a missing, additional or misshapen tensor is refused."""
    tensors = read_safetensors(directory)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{directory}: tensor {name} is missing")
        if tensors[name].shape != shape:
            raise UserError(
                f"{directory}: {name} has shape {list(tensors[name].shape)}, config.json asks for {list(shape)}"
            )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise UserError(f"{directory}: {len(extra)} tensors this network does not have, such as {extra[0]}")
    # Copied, because safetensors maps the file: weights that are not would change or crash with it.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def read_safetensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or else of the shards that `model.safetensors.index.json` lists."""
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    # The single file first, as transformers does: saving into a directory that held shards leaves their index behind.
    if index.is_file() and not (directory / names[0]).is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            outside = any(Path(name).name != name for name in names)
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: no valid index: {error}") from None
        if outside:
            raise UserError(f"{index}: a shard lies outside the directory")
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = directory / name
        if not path.is_file():
            raise UserError(f"{directory}: no {name}")
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file: {error}") from None
    return tensors
