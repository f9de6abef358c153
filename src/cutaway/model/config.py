"""The shape of a model, read from and written to the `config.json` of Llama, Qwen3 and Qwen3-MoE checkpoints."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import UserError

log = logging.getLogger("cutaway")

ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
"""Supported kinds of RoPE scaling and the keys that each needs."""


@dataclass(frozen=True)
class ModelConfig:
    """A Llama, with `qk_norm` a Qwen3, with experts too a Qwen3-MoE. Names as in `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    """Empty, or `rope_type` with that type's keys, as transformers 4 writes it."""
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    num_experts: int = 0
    """0: every layer is dense. Otherwise every layer has this many experts, and `intermediate_size` is not used."""
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001
    router_z_loss_coef: float = 0.0
    """Ours: other readers of `config.json` ignore it."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
        for name in (*sizes, "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, must be at least 1")
        if not self.rope_theta > 1:
            raise UserError(f"rope_theta is {self.rope_theta}, must be above 1")
        if min(self.num_attention_heads, self.num_key_value_heads) < 1 or (
            self.num_attention_heads % self.num_key_value_heads
        ):
            raise UserError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}, must be even: RoPE turns pairs of channels")
        if self.num_experts:
            self._check_experts()

    def _check_experts(self) -> None:
        if not self.qk_norm:
            raise UserError("num_experts needs qk_norm: experts without it are no Qwen3-MoE")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, "
                f"must be between 1 and num_experts {self.num_experts}"
            )
        if self.moe_intermediate_size is None or self.moe_intermediate_size < 1:
            raise UserError(f"moe_intermediate_size is {self.moe_intermediate_size}, must be at least 1")
        for name in ("router_aux_loss_coef", "router_z_loss_coef"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, must be 0 or more")

    @property
    def architecture(self) -> str:
        """Class name that `transformers` knows this network by."""
        return _KINDS[self.model_type]

    @property
    def model_type(self) -> str:
        """`model_type` of `config.json`."""
        return ("qwen3_moe" if self.num_experts else "qwen3") if self.qk_norm else "llama"

    def to_dict(self) -> dict[str, Any]:
        """A `config.json` that transformers 4.57 and 5 read alike: 4 wants `rope_theta` at the top and `rope_scaling`,
        5 wants both in `rope_parameters`; with one of them missing the other silently takes 10000."""
        rope = {"rope_type": "default"} | self.rope_scaling | {"rope_theta": self.rope_theta}
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling or None,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "attention_bias": False,
            "hidden_act": "silu",
            "torch_dtype": "float32",
            "use_cache": True,
        }
        return config | self._experts() | ({"use_sliding_window": False} if self.qk_norm else {"mlp_bias": False})

    def _experts(self) -> dict[str, Any]:
        """Keys of a Qwen3-MoE; transformers 5 reads `num_experts` too, though it writes `num_local_experts`."""
        if not self.num_experts:
            return {}
        every_layer = {"decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False}
        return every_layer | {name: getattr(self, name) for name in _EXPERTS}

    @classmethod
    def from_dict(cls, config: dict[str, Any], where: str = "config.json") -> "ModelConfig":
        """Read a Llama, Qwen3 or Qwen3-MoE `config.json`.

        What we could not compute is refused, what we do not know is named.
        """
        kind = config.get("model_type")
        if kind not in tuple(_KINDS):
            raise UserError(f"{where}: model_type is {kind!r}; supported: {', '.join(_KINDS)}")
        if kind == "qwen3_moe":
            config = _read_experts(config, where)
        _check_types(config, where)
        _refuse_unsupported(config, where)
        unknown = sorted(set(config) - _USED - _HARMLESS)
        if unknown:
            log.warning("%s: keys not known here and ignored: %s", where, ", ".join(unknown))
        missing = sorted(key for key in _REQUIRED if config.get(key) is None)
        missing += sorted(key for key in _SIZES if kind == "qwen3_moe" and config.get(key) is None)
        if missing:
            raise UserError(f"{where}: missing {', '.join(missing)}")
        config = {key: value for key, value in config.items() if value is not None}
        heads = max(config["num_attention_heads"], 1)
        theta, scaling = _read_rope(config, where)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads),
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            qk_norm=kind != "llama",
            **({name: config[name] for name in _EXPERTS if name in config} if kind == "qwen3_moe" else {}),
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=config.get("eos_token_id"),
            pad_token_id=config.get("pad_token_id"),
        )

    @classmethod
    def load(cls, directory: Path) -> "ModelConfig":
        """Read `directory/config.json`."""
        path = directory / "config.json"
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{directory}: no config.json, so this is no model directory") from None
        except OSError as error:
            raise UserError(f"{path}: could not be read: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(table, dict):
            raise UserError(f"{path}: must hold one JSON object")
        return cls.from_dict(table, where=str(path))


_KINDS = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_EXPERTS = (*_SIZES, "norm_topk_prob", "router_aux_loss_coef", "router_z_loss_coef")
_REQUIRED = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
_USED = _REQUIRED | {
    *("model_type", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    *("rope_scaling", "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("hidden_act", "attention_bias", "mlp_bias", "use_sliding_window", "sliding_window", "layer_types"),
    *("partial_rotary_factor", "rope_interleaved", "quantization_config", *_EXPERTS),
    *("decoder_sparse_step", "mlp_only_layers"),
}
_HARMLESS = {
    *("architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range"),
    *(
        "output_router_logits",
        "attention_dropout",
        "pretraining_tp",
        "max_window_layers",
        "return_dict",
        "output_attentions",
        "auto_map",
        "is_llama_config",
        "transformers.js_config",
    ),
    *(
        "_name_or_path",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
    ),
}
"""Keys that change nothing we compute (attention dropout acts in training only, and every published value is 0)."""


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"), (int,)),
    **dict.fromkeys((*_SIZES, "decoder_sparse_step"), (int,)),
    **dict.fromkeys(("router_aux_loss_coef", "router_z_loss_coef"), (int, float)),
    "norm_topk_prob": (bool,),
    "mlp_only_layers": (list,),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), (int,)),
    "eos_token_id": (int, list),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), (int, float)),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), (dict,)),
    "tie_word_embeddings": (bool,),
    "layer_types": (list,),
}


def _check_types(config: dict[str, Any], where: str) -> None:
    """Refuse a value of another type than its key has; `null` means the default."""
    for key, types in _TYPES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise UserError(f"{where}: {key} is {value!r}, must be of type {' or '.join(t.__name__ for t in types)}")


def _read_experts(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A Qwen3-MoE's config with one spelling of the number of experts; layers without experts are refused."""
    counts = {config[key] for key in ("num_experts", "num_local_experts") if isinstance(config.get(key), int)}
    if len(counts) > 1:
        raise UserError(f"{where}: num_experts and num_local_experts differ")
    config = {key: value for key, value in config.items() if key != "num_local_experts"}
    if counts:
        config["num_experts"] = counts.pop()
        if config["num_experts"] < 1:
            raise UserError(f"{where}: num_experts is {config['num_experts']}, must be at least 1")
    for key, whole in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(key, whole) not in (whole, None):
            raise UserError(f"{where}: {key} = {config[key]!r} asks for dense layers between those with experts")
    # transformers takes false where the key is missing.
    return {"norm_topk_prob": False} | config


def _refuse_unsupported(config: dict[str, Any], where: str) -> None:
    """Refuse a key whose value asks for a computation we do not have, rather than compute something else."""
    windowed = config.get("use_sliding_window", config.get("sliding_window") is not None)
    asks = {
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "sliding_window": bool(windowed) and config.get("sliding_window") is not None,
        "layer_types": any(kind != "full_attention" for kind in config.get("layer_types") or ()),
        "partial_rotary_factor": (config.get("partial_rotary_factor") or 1.0) != 1.0,
        "rope_interleaved": bool(config.get("rope_interleaved")),
        "attention_dropout": bool(config.get("attention_dropout")),
        "quantization_config": config.get("quantization_config") is not None,
    }
    for key, refused in asks.items():
        if refused:
            raise UserError(f"{where}: {key} = {config.get(key)!r} asks for a computation this network does not have")


def _read_rope(config: dict[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    """Base and scaling from `rope_theta` and `rope_scaling` (transformers 4) or from `rope_parameters` (5).

    Where a config has both, `rope_scaling` decides, as in both versions: it is what people add by hand.
    """
    parameters = config.get("rope_parameters") or {}
    table = dict(config.get("rope_scaling") or parameters)
    kind = table.pop("rope_type", None) or table.pop("type", None) or "default"
    table.pop("type", None)
    theta = table.pop("rope_theta", None) or config.get("rope_theta") or parameters.get("rope_theta") or 10000.0
    if (table.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor asks for a computation this network does not have")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise UserError(f"{where}: rope_type is {kind!r}; supported: {', '.join(ROPE_TYPES)}")
    missing = [key for key in ROPE_TYPES[kind] if table.get(key) is None]
    if missing:
        raise UserError(f"{where}: rope_type {kind!r} needs {', '.join(missing)}")
    wrong = [key for key, value in [("rope_theta", theta), *table.items()] if not isinstance(value, int | float | None)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} of the rotary embedding must be a number")
    if kind != "default" and not table["factor"] > 0:
        raise UserError(f"{where}: factor of the rotary embedding is {table['factor']}, must be above 0")
    return float(theta), {} if kind == "default" else {"rope_type": kind} | table
