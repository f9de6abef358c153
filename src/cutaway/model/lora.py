"""Low-rank adapters on the linear layers of a decoder: LoRA, rsLoRA and DoRA, in the files of PEFT.

An adapted model computes with frozen weights and two thin matrices a layer. Only these are trained and saved: a run is
a PEFT directory (`adapter_config.json`, `adapter_model.safetensors`) that names its base.
"""

import contextlib
import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import UserError

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a dense decoder."""
PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of a layer in its files."""


@dataclass(frozen=True)
class LoRAConfig:
    """Shape of an adapter."""

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """Strength: the update is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank)."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are set to 0 while it trains."""
    targets: tuple[str, ...] = ALL_LINEAR
    """Layers: the last part of a name (`q_proj`) or a whole one, `*` and `?` standing for anything."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski, arXiv 2312.03732)."""
    dora: bool = False
    """Magnitude and direction apart (Liu et al., arXiv 2402.09353)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}, must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, must be at least 0 and below 1")
        if not self.targets:
            raise UserError("targets is empty: name at least one layer, such as q_proj")

    @property
    def scale(self) -> float:
        """What the product B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoRALinear(nn.Module):
    r"""A frozen linear layer and a trained update of low rank.

    LoRA (Hu et al., arXiv 2106.09685, equation 3), $r$ being the rank and $s$ the scale:

    $$h = W x + s\, B A\, \mathrm{dropout}(x), \qquad A \in R^{r \times in},\ B \in R^{out \times r}$$

    $A$ starts random and $B$ at 0, so that the adapted model starts as the base. DoRA (arXiv 2402.09353, equation 5)
    gives every output row a trained length $m$; no gradient flows through the norm (its section 4.3):

    $$h = \frac{m}{\lVert W + s B A \rVert_{row}} \odot (W + s B A)\, x$$

    `weight` keeps its name, so the state of an adapted model is the base's and the adapter's side by side.
    """

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.enabled = config, True
        self.weight = base.weight
        self.weight.requires_grad_(False)
        rows, columns = base.weight.shape
        # Drawn on the CPU: a seed gives the same adapter everywhere. The bound is that of nn.Linear and of PEFT.
        drawn = torch.rand(config.rank, columns, generator=generator) * 2 - 1
        self.lora_A = nn.Parameter((drawn / math.sqrt(columns)).to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(rows, config.rank))
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(base.weight.detach().norm(dim=1))

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        plain = F.linear(x, self.weight)
        if not self.enabled:
            return plain
        # Evaluation and sampling run without gradients, and so without dropout.
        dropping = self.config.dropout > 0 and self.training and torch.is_grad_enabled()
        dropped = F.dropout(x, self.config.dropout) if dropping else x
        update = self.config.scale * F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        if not self.config.dora:
            return plain + update
        # As PEFT does it: the rescaling of the frozen part is an update too, so it sees the dropped input.
        frozen = F.linear(dropped, self.weight) if dropping else plain
        length = self._relative_length().to(plain.dtype)
        return plain + (length - 1) * frozen + length * update

    def _relative_length(self) -> Float[Tensor, " out"]:
        """Trained length of every row as a multiple of the length it has."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            length = (self.weight + self.config.scale * self.lora_B @ self.lora_A).norm(dim=1)
        relative: Tensor = self.lora_magnitude_vector / length
        return relative

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same: $W + sBA$, rows rescaled under DoRA."""
        weight = self.weight + self.config.scale * self.lora_B @ self.lora_A
        if self.config.dora:
            weight = self._relative_length().unsqueeze(1) * weight
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight)
        return plain


def adapt(model: nn.Module, config: LoRAConfig, seed: int = 0) -> list[str]:
    """Put adapters on the layers that `config.targets` name and freeze everything else; gives back their names.

    UserError where a pattern names no linear layer of the decoder, or where the model has adapters already.
    """
    if adapter_of(model) is not None:
        raise UserError("the model has an adapter already: merge it first (cutaway merge)")
    linear = _linear_layers(model)
    for pattern in config.targets:
        if not any(_matches(name, pattern) for name in linear):
            known = " ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"no linear layer is named '{pattern}': choose targets among {known}")
    chosen = [name for name in linear if any(_matches(name, pattern) for pattern in config.targets)]
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in chosen:
        model.set_submodule(name, LoRALinear(linear[name], config, generator))
    return chosen


def merge(model: nn.Module) -> None:
    """Replace every adapted layer by the plain one that computes the same; all weights can be trained again."""
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


def adapter_of(model: nn.Module) -> LoRAConfig | None:
    """The shape of the model's adapter, if it has one."""
    return next((layer.config for layer in _adapted(model).values()), None)


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within, the model computes as its base: what preference and RL stages take as the reference."""
    layers = _adapted(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names."""
    tensors: dict[str, Tensor] = {}
    for name, layer in _adapted(model).items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B
        if layer.config.dora:
            tensors[f"{PEFT_PREFIX}{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector
    return tensors


@torch.no_grad()
def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill the adapters from tensors under PEFT's names; a missing, additional or misshapen one is refused."""
    expected = adapter_state(model)
    for name, parameter in expected.items():
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing")
        if tensors[name].shape != parameter.shape:
            shapes = f"has shape {list(tensors[name].shape)}, this base asks for {list(parameter.shape)}"
            raise UserError(f"{where}: {name} {shapes}: an adapter for another base?")
        parameter.copy_(tensors[name])
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise UserError(f"{where}: {len(extra)} tensors that no adapted layer has, such as {extra[0]}")


def to_peft(config: LoRAConfig, model: nn.Module, base: str) -> dict[str, Any]:
    """The `adapter_config.json` of the model's adapter, for the base directory or hub name `base`."""
    names, plain = list(_adapted(model)), list(_linear_layers(model))
    ends = sorted({name.rpartition(".")[2] for name in names})
    # PEFT matches the ends of names: short ones say it all unless only some layers of a kind were chosen.
    targets = names if any(_ends_with(name, end) for name in plain for end in ends) else ends
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


_READ = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
_MEANINGLESS = (
    *("peft_type", "task_type", "base_model_name_or_path", "auto_mapping", "revision", "inference_mode"),
    *("init_lora_weights", "peft_version", "runtime_config", "megatron_core", "loftq_config"),
    *("ensure_weight_tying", "qalora_group_size"),
)
"""Keys that do not change what a finished adapter computes."""


def from_peft(table: Mapping[str, Any], model: nn.Module, where: str) -> LoRAConfig:
    """Read an `adapter_config.json`. A key whose value asks for a computation we lack is refused by name."""
    if table.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {table.get('peft_type')!r}, only LORA is known")
    for key, value in table.items():
        harmless = key in _READ or key in _MEANINGLESS or not value or (key == "bias" and value == "none")
        if not harmless:
            raise UserError(f"{where}: {key} = {value!r} asks for something that is not built here")
    initial = table.get("init_lora_weights", True)
    if not isinstance(initial, bool) and initial not in ("gaussian", "orthogonal", "eva"):
        raise UserError(f"{where}: init_lora_weights = {initial!r} changes the base's weights")
    rank, alpha, dropout = table.get("r"), table.get("lora_alpha"), table.get("lora_dropout", 0.0)
    if not isinstance(rank, int) or not all(isinstance(value, (int, float)) for value in (alpha, dropout)):
        raise UserError(f"{where}: r must be a whole number, lora_alpha and lora_dropout numbers")
    targets = _peft_targets(table.get("target_modules"), model, where)
    flags = bool(table.get("use_rslora")), bool(table.get("use_dora"))
    return LoRAConfig(rank, float(alpha or 0), float(dropout), targets, *flags)


def _peft_targets(value: Any, model: nn.Module, where: str) -> tuple[str, ...]:
    """Whole names of the layers that PEFT would adapt: a list holds ends of names, a text is a regular expression."""
    linear = list(_linear_layers(model))
    if value == "all-linear":
        return tuple(linear)
    if isinstance(value, str):
        try:
            chosen = [name for name in linear if re.fullmatch(value, name)]
        except re.error as error:
            raise UserError(f"{where}: target_modules is no valid regular expression: {error}") from None
    elif isinstance(value, list):
        unknown = [end for end in value if not any(_ends_with(name, end) for name in linear)]
        if unknown:
            raise UserError(f"{where}: target_modules names {unknown[0]}, which is no linear layer of this base")
        chosen = [name for name in linear if any(_ends_with(name, end) for end in value)]
    else:
        chosen = []
    if not chosen:
        raise UserError(f"{where}: target_modules names no linear layer of this base")
    return tuple(chosen)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rpartition(".")[2], pattern)


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of the decoder's layers; the head is none of them, since the loss is computed from its weight."""
    modules = model.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.Linear) and ".layers." in f".{name}"}


def _adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
