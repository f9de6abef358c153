"""Shapes of networks on which Transformers and we must agree."""

from typing import Any

import torch
from torch import Tensor

from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rope_theta": 20000.0,
}
LENGTH = 120
"""Tokens a row: far beyond the original length of the scaled cases."""

LLAMA3 = {"rope_type": "llama3", "factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# With a base of 200, 16 channels and these lengths, some channels are kept, some blended and some slowed.
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64},
    "yarn-no-original": {"rope_type": "yarn", "factor": 3.0},
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 3.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 3.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
}
EXPERTS = {"qk_norm": True, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CASES: dict[str, dict[str, Any]] = {
    "llama-plain": {},
    "qwen3-plain": {"qk_norm": True},
    **{f"llama-{name}": {"rope_scaling": rope, "rope_theta": 200.0} for name, rope in ROPES.items()},
    **{f"qwen3-{name}": {"rope_scaling": rope, "rope_theta": 200.0, "qk_norm": True} for name, rope in ROPES.items()},
    "llama-untied": {"tie_word_embeddings": False},
    "qwen3-untied": {"tie_word_embeddings": False, "qk_norm": True},
    "llama-wide-heads": {"head_dim": 32},
    "qwen3-wide-heads": {"head_dim": 32, "qk_norm": True},
    "qwen3-narrow-heads": {"head_dim": 6, "qk_norm": True},
    "llama-no-groups": {"num_key_value_heads": 4},
    "qwen3-one-kv-head": {"num_key_value_heads": 1, "qk_norm": True},
    "llama-odd": {"rms_norm_eps": 1e-3, "rope_theta": 10000.0, "num_attention_heads": 1, "num_key_value_heads": 1},
    "moe-plain": {**EXPERTS, "norm_topk_prob": True},
    "moe-raw-weights": {**EXPERTS, "norm_topk_prob": False, "num_experts_per_tok": 5},
    "moe-one-expert": {**EXPERTS, "norm_topk_prob": False, "num_experts_per_tok": 1},
    "moe-all-experts": {**EXPERTS, "norm_topk_prob": True, "num_experts": 3, "num_experts_per_tok": 3},
    "moe-yarn": {**EXPERTS, "norm_topk_prob": True, "rope_scaling": ROPES["yarn"], "rope_theta": 200.0},
    "moe-untied": {**EXPERTS, "norm_topk_prob": True, "tie_word_embeddings": False, "moe_intermediate_size": 20},
}


def our_model(case: str, **changes: Any) -> CausalLM:
    """Random weights, the norms' gains too, of a size that gives logits of order one to ten."""
    model = CausalLM(ModelConfig(**(SHAPE | CASES[case] | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.12 * noise)
    return model.eval()


def their_settings(case: str) -> tuple[str, dict[str, Any]]:
    """Name of the class and keyword arguments, in the spelling of version 4, which 5 reads as well."""
    settings = {"tie_word_embeddings": True, "initializer_range": 0.12, "rms_norm_eps": 1e-6} | SHAPE | CASES[case]
    kind = "Qwen3" if settings.pop("qk_norm", False) else "Llama"
    kind += "Moe" if "num_experts" in settings else ""
    rope = settings.pop("rope_scaling", None)
    return kind, settings | ({"rope_scaling": rope} if rope else {})


def some_ids(rows: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
