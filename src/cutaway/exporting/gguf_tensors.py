"""Tensors as llama.cpp wants them: its names, its order of query and key rows, its number formats."""

import logging
from collections.abc import Iterator
from typing import Any

import gguf
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.rope import inverse_frequencies
from cutaway.model.transformer import CausalLM

log = logging.getLogger("cutaway")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
"""A module of a checkpoint, without its layer, and llama.cpp's name for its weight."""


def tensors(model: CausalLM) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """llama.cpp's name and the weight in fp32, one after the other."""
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().cpu()
        module = name.removesuffix(".weight")
        yield gguf_name(module) + ".weight", in_llama_order(weight, module, model.config)
    if model.config.rope_scaling.get("rope_type") == "llama3":
        yield "rope_freqs.weight", rope_divisors(model.config)


def gguf_name(module: str) -> str:
    """`model.layers.3.self_attn.q_proj` is `blk.3.attn_q`. UserError for a module that llama.cpp has no name for."""
    layer, inner = "", module
    if module.startswith("model.layers."):
        number, inner = module.removeprefix("model.layers.").split(".", 1)
        layer = f"blk.{number}."
    if inner not in NAMES:
        raise UserError(f"llama.cpp has no tensor for {module}")
    return layer + NAMES[inner]


def in_llama_order(
    weight: Float[Tensor, "rows *columns"], module: str, config: ModelConfig
) -> Float[Tensor, "rows *columns"]:
    """The rows of a Llama's query and key projections in llama.cpp's order; any other weight as it is.

    RoPE turns channel pairs. A checkpoint pairs channel $i$ of a head with $i + d/2$; for the architecture `llama`,
    llama.cpp pairs $2i$ with $2i + 1$, and for `qwen3` and `qwen3moe` it pairs as the checkpoint does.
    """
    if config.model_type != "llama" or not module.endswith(("q_proj", "k_proj")):
        return weight
    pairs = weight.reshape(-1, 2, config.head_dim // 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def rope_divisors(config: ModelConfig) -> Float[Tensor, " half"]:
    """By what llama.cpp divides each channel pair's angle: the rates without scaling over the rates with it."""
    scaled, _ = inverse_frequencies(config)
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    return plain / scaled


def tensor_type(name: str, weight: Float[Tensor, "..."], quantize: str) -> gguf.GGMLQuantizationType:
    """Number format of one tensor in a file of the kind `quantize`.

    Norms, routers and RoPE's divisors stay fp32, since they are small and everything passes through them. In `q4_0`
    the embedding and the head are `q8_0`: a rounding there reaches every token's logit, and llama.cpp's own quantiser
    keeps them finer too. A row that blocks of 32 do not fill stays `f16`.
    """
    types = gguf.GGMLQuantizationType
    if weight.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        return types.F32
    kind = types[quantize.upper()]
    if kind == types.Q4_0 and name in ("token_embd.weight", "output.weight"):
        kind = types.Q8_0
    if kind in (types.Q8_0, types.Q4_0) and weight.shape[-1] % 32:
        log.warning("%s: rows of %d are no multiple of 32, kept as f16", name, weight.shape[-1])
        kind = types.F16
    return kind


def encode(name: str, weight: Float[Tensor, "..."], kind: gguf.GGMLQuantizationType) -> Any:
    """A tensor as numpy array in a number format. UserError where a weight is not finite, or too large for fp16."""
    limit = 65504.0 if kind == gguf.GGMLQuantizationType.F16 else torch.inf
    if not bool((weight.abs() < limit).all()):
        raise UserError(f"{name}: a weight is not finite, or too large for {kind.name.lower()}")
    return gguf.quants.quantize(weight.contiguous().numpy(), kind)
