"""A tokenizer and untrained models small enough that hundreds of steps take a second."""

from functools import cache

import torch

from cutaway.generation.engine import Completion, Engine
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the cat", "你好，今天天氣很好，天气很好。", "🧑‍🚀 naïve café"] * 20


@cache
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300))


@cache
def tiny_model(qk_norm: bool = True, seed: int = 0) -> CausalLM:
    """Random weights large enough that greedy choices are clear and differ from token to token."""
    config = ModelConfig(
        vocab_size=tiny_tokenizer().vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        qk_norm=qk_norm,
    )
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def finish(engine: Engine) -> dict[int, Completion]:
    """Steps until nothing is left to do; the completions by the number of their request."""
    while engine.busy:
        engine.step()
    return {done.id: done for done in engine.collect()}
