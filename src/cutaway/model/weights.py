"""Initial weights, and reading and writing checkpoints as safetensors (one file, or sharded with an index)."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.lora import (
    adapt,
    adapter_of,
    adapter_state,
    from_peft,
    load_adapter_state,
    merge,
    to_peft,
)
from cutaway.model.moe import is_router
from cutaway.model.rope import stretch
from cutaway.model.sharded import on_first, part_of
from cutaway.model.transformer import CausalLM
from cutaway.recipe.files import read_toml

Kind = TypeVar("Kind", bound=CausalLM)


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


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors so that a crash at any instant leaves the old file or the new one, never a torn one."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"} | (metadata or {}))
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


def load_model(directory: str | Path, device: torch.device | str = "cpu", rope_scaling: str = "") -> CausalLM:
    """Build the network that `config.json` describes and fill it from the safetensors beside it, in fp32.

    An adapter directory gives its base with the adapter merged: a plain model again. `rope_scaling` stretches the
    context, see `rope.stretch`; empty leaves it as the config has it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no model directory '{directory}'")
    if is_adapter(directory):
        model = load_adapted(directory, rope_scaling=rope_scaling)
        merge(model)
        return model.to(device)
    if is_reward_model(directory):
        raise UserError(f"{directory} is a reward model: it scores answers and cannot write any")
    config = ModelConfig.load(directory)
    config = stretch(config, rope_scaling, trained_length(directory, config))
    return read_model(CausalLM, config, directory).to(device)


def read_model(kind: type[Kind], config: ModelConfig, directory: Path) -> Kind:
    """A network of that class and shape with the weights of a directory."""
    with torch.device("meta"):
        model = kind(config)
    load_weights(model, directory)
    # The rotary table is a buffer that no checkpoint holds, so it is computed again off the meta device.
    model.model.rotary = type(model.model.rotary)(config)
    return model


def trained_length(directory: Path, config: ModelConfig) -> int:
    """Row length that a run directory's stage trained on; for a model from elsewhere the length that its config has."""
    original = config.rope_scaling.get("original_max_position_embeddings")
    if original is not None:
        return int(original)
    recipe = directory / "recipe.toml"
    if not recipe.is_file():
        return config.max_position_embeddings
    table = read_toml(str(recipe))
    stage = table.get(table.get("made", {}).get("stage", ""), {})
    return int(stage.get("row_length", config.max_position_embeddings))


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
        if not (directory / name).is_file():
            raise UserError(f"{directory}: no {name}")
        tensors |= read_safetensors_file(directory / name)[0]
    return tensors


def read_safetensors_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file: {error}") from None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, as PEFT writes it, and not a whole model."""
    return (directory / "adapter_config.json").is_file()


def is_reward_model(directory: Path) -> bool:
    """Whether a directory holds a model that scores, as `config.json` names it."""
    try:
        table = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return str(table["architectures"][0]).endswith("ForSequenceClassification")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def find_base(directory: Path, base: str | None = None) -> Path:
    """Where the base of an adapter is: `base`, or as `adapter_config.json` names it, from the adapter's own directory
    or from here. UserError where nothing is there."""
    path = directory / "adapter_config.json"
    named = Path(base or _adapter_table(path)["base_model_name_or_path"])
    places = (named,) if base else (directory / named, named)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"{path}: its base model '{named}' is not here; set base_model_name_or_path to where it is")
    if found.resolve() == directory.resolve():
        raise UserError(f"{path}: names itself as its base model")
    return found


def load_adapted(directory: Path, base: str | None = None, rope_scaling: str = "") -> CausalLM:
    """The base of an adapter with the adapter live on it, frozen but for the adapter.

    UserError where the base has other shapes, or (of an adapter made here) other weights than those it was trained on.
    """
    found, path = find_base(directory, base), directory / "adapter_config.json"
    model = load_model(found, rope_scaling=rope_scaling)
    adapt(model, from_peft(_adapter_table(path), model, str(path)))
    tensors, metadata = read_safetensors_file(directory / "adapter_model.safetensors")
    load_adapter_state(model, tensors, str(directory))
    if metadata.get("base", base_fingerprint(model)) != base_fingerprint(model):
        raise UserError(f"{directory}: an adapter for another base, not for the weights that are in {found} now")
    return model


def _adapter_table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table["base_model_name_or_path"], str):
            raise TypeError("base_model_name_or_path must be a text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no valid adapter configuration: {error}") from None
    assert isinstance(table, dict)
    return table


def save_adapter(model: CausalLM, directory: Path, base: str) -> None:
    """Write a live adapter as a PEFT directory that names `base`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not write {directory}: {error}") from error
    name, tensors, metadata = stored_weights(model)
    write_safetensors(tensors, directory / name, metadata)
    describe_model(model, directory, base)


def stored_weights(model: nn.Module) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """What a checkpoint of the model holds: file name, tensors, metadata. Of an adapted model only the adapter.

    Of a sharded model every rank must ask, and the first is told.
    """
    adapted = adapter_of(model) is not None
    tensors = adapter_state(model) if adapted else model.state_dict()
    on_cpu = {name: on_first(tensor) for name, tensor in tensors.items()}
    if adapted:
        return "adapter_model.safetensors", on_cpu, {"base": base_fingerprint(model)}
    return "model.safetensors", on_cpu, {}


def load_stored(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """The opposite of `stored_weights`."""
    if adapter_of(model) is not None:
        load_adapter_state(model, tensors, where)
        return
    own = model.state_dict()
    try:
        model.load_state_dict({name: part_of(rows, own.get(name, rows)) for name, rows in tensors.items()})
    except RuntimeError:
        raise UserError(f"{where}: made by a model of another shape than this recipe's") from None


def describe_model(model: CausalLM, directory: Path, base: str | None) -> None:
    """Write what says how to read the weights: `config.json`, or of an adapter on `base` `adapter_config.json`."""
    adapter = adapter_of(model)
    if adapter is None:
        write_text(json.dumps(model.config_dict(), indent=2) + "\n", directory / "config.json")
    else:
        assert base is not None
        table = to_peft(adapter, model, base)
        write_text(json.dumps(table, indent=2) + "\n", directory / "adapter_config.json")


def weights_fingerprint(model: CausalLM) -> str:
    """A hash of the shape and of all weights but an adapter's: equal for models that compute the same."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]


def base_fingerprint(model: nn.Module) -> str:
    """A hash of the beginnings of all frozen weights: tells a base from another, or from itself trained further."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
