"""Small networks with random weights that are large enough for every part to matter in the output."""

from typing import Any

import torch
from torch import Tensor

from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.training.precision import autocast

ROPE_SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


def tiny_config(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    return ModelConfig(**(shape | changes))


def random_model(config: ModelConfig, seed: int = 0) -> CausalLM:
    """Every weight drawn anew, the gains of the norms too: a swapped or forgotten one then shows."""
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model.eval()


def random_ids(config: ModelConfig, rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def pack(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Positions and document ids of one row that holds documents of these lengths."""
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    documents = torch.cat([torch.full((n,), i, dtype=torch.int32) for i, n in enumerate(lengths)]).unsqueeze(0)
    return positions, documents


def kept_bytes_of(model: CausalLM, rows: int, seq: int, dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps for the backward one, without weights, their copies and the logits."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {weight.shape for weight in model.parameters()} | {
        weight.mT.shape for weight in model.parameters() if weight.ndim > 1
    }
    kept: list[Tensor] = []
    ids = random_ids(model.config, rows, seq)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        autocast(torch.device("cpu"), dtype),
    ):
        model(ids, targets=ids, documents=torch.zeros(rows, seq, dtype=torch.int32))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in kept
        if tensor.untyped_storage().data_ptr() not in weights
        and not (tensor.dtype == torch.bfloat16 and tensor.shape in shapes)
        and tensor.shape[-1] != model.config.vocab_size
    }
    return sum(storages.values())
