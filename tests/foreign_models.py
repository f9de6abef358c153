"""Small checkpoints with the names, the config keys and the kinds of tokenizer of published models.

What their chat templates do is written here in our own words: who is named, what is put in front, what is dropped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from cutaway.tokenization.tokenizer import PATTERNS

TEXT = ["hello world how are you 123 ok", "the sun is a star", "你好世界，今天好嗎", "user assistant system"] * 4
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_LAST_QUESTION = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
_THOUGHT = "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
TEMPLATES = {
    # A system turn of its own where the conversation has none.
    "smollm2": "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    f"{{% endif %}}{_TURN}{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}",
    "tinyllama": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    # The last answer has a thinking block, and loses it once another question follows.
    "qwen3": f"{_LAST_QUESTION}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n"
    f"{{% if m.role == 'assistant' and loop.index0 > ns.last %}}{_THOUGHT}{{% endif %}}{{{{ m.content }}}}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    # Every answer has one, and the prompt writes an empty one unless `open_thinking` is set.
    "minimind3": f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n"
    f"{{% if m.role == 'assistant' %}}{_THOUGHT}{{% endif %}}{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if open_thinking is not defined or not open_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}",
}
TEMPLATES["minimind3-moe"] = TEMPLATES["minimind3"]
NAMES = tuple(TEMPLATES)

_COMMON = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "use_cache": True}
_LLAMA = _COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "pretraining_tp": 1}
_QWEN3 = _COMMON | {"max_window_layers": 28, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}
_SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2": _LLAMA
    | _SMALL
    | {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000}
    | {"initializer_range": 0.041666666666666664, "max_position_embeddings": 8192, "mlp_bias": False}
    | {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "4.42.3"}
    | {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}},
    "tinyllama": _LLAMA
    | _SMALL
    | {"num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0}
    | {"max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    | {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "transformers_version": "4.35.0"},
    "qwen3": _QWEN3
    | _SMALL
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2}
    | {"max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000, "tie_word_embeddings": True}
    | {"initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.51.0"},
    "minimind3": _QWEN3
    | _SMALL
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 3}
    | {"max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1e6, "tie_word_embeddings": True}
    | {"dtype": "float16", "layer_types": ["full_attention"] * 2, "bos_token_id": None, "eos_token_id": None},
}
CONFIGS["minimind3-moe"] = (
    CONFIGS["minimind3"]
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "moe_intermediate_size": 64}
    | {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": True, "decoder_sparse_step": 1}
    | {"mlp_only_layers": [], "router_aux_loss_coef": 0.001, "output_router_logits": False}
)
_DTYPES = {"minimind3": torch.float16, "minimind3-moe": torch.float16}


def make_foreign(name: str, folder: Path) -> Path:
    """Write the checkpoint. Its vocabulary is one of a few hundred tokens, its weights are random."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = _TOKENIZERS[name.removesuffix("-moe")]()
    trained.save(str(folder / "tokenizer.json"))
    ends = "</s>" if name == "tinyllama" else "<|im_end|>"
    spoken = {"chat_template": TEMPLATES[name], "eos_token": ends, "tokenizer_class": "PreTrainedTokenizerFast"}
    if name == "tinyllama":
        spoken |= {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "</s>"}
    # Qwen3 and its kin have more rows in the embedding than tokens.
    vocabulary = trained.get_vocab_size() + (5 if "qwen3" in CONFIGS[name]["model_type"] else 0)
    config = CONFIGS[name] | {"vocab_size": vocabulary}
    if name == "qwen3":
        ids = {"bos_token_id": trained.token_to_id(CHATML[0]), "eos_token_id": trained.token_to_id(CHATML[2])}
        config |= ids
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", spoken)
    generator = torch.Generator().manual_seed(0)
    dtype = _DTYPES.get(name, torch.bfloat16)
    tensors = {key: _draw(shape, generator).to(dtype) for key, shape in published(config)}
    if name == "qwen3":
        _save_shards(tensors, folder)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a Llama, Qwen3 or Qwen3-MoE checkpoint, and its shape."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    rows, keys = heads * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for part, shape in (("q", (rows, hidden)), ("k", (keys, hidden)), ("v", (keys, hidden)), ("o", (hidden, rows))):
            yield f"{start}.self_attn.{part}_proj.weight", shape
        if config["model_type"] != "llama":
            yield f"{start}.self_attn.q_norm.weight", (dim,)
            yield f"{start}.self_attn.k_norm.weight", (dim,)
        places = [f"{start}.mlp"]
        if config["model_type"] == "qwen3_moe":
            yield f"{start}.mlp.gate.weight", (config["num_experts"], hidden)
            places = [f"{start}.mlp.experts.{expert}" for expert in range(config["num_experts"])]
        inner = config.get("moe_intermediate_size", config["intermediate_size"])
        for place in places:
            yield f"{place}.gate_proj.weight", (inner, hidden)
            yield f"{place}.up_proj.weight", (inner, hidden)
            yield f"{place}.down_proj.weight", (hidden, inner)
        yield f"{start}.input_layernorm.weight", (hidden,)
        yield f"{start}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.1 * noise if len(shape) == 1 else 0.2 * noise


def _save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    names = list(tensors)
    places = {name: f"model-0000{1 + 2 * i // len(names)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _byte_level(before: list[Any], specials: list[str], use_regex: bool) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    parts = [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    trained.pre_tokenizer = pre_tokenizers.Sequence(parts) if before else parts[0]
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXT, trainer)
    return trained


def _smollm2() -> Tokenizer:
    return _byte_level([pre_tokenizers.Digits(individual_digits=True)], [*CHATML, "<repo_name>"], use_regex=True)


def _qwen3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(PATTERNS["qwen2"]), behavior="isolated")
    trained = _byte_level([split], [], use_regex=False)
    trained.normalizer = normalizers.NFC()
    trained.add_special_tokens(CHATML)
    trained.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return trained


def _minimind3() -> Tokenizer:
    trained = _byte_level([], CHATML, use_regex=True)
    trained.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return trained


def _tinyllama() -> Tokenizer:
    """SentencePiece's BPE: a blank in front of the text, bytes for characters it does not know."""
    trained = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [text.replace(" ", " ▁").split(" ") for text in TEXT]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    trained.train_from_iterator([piece for text in words for piece in text], trainer)
    table = json.loads(trained.to_str())
    # The bytes are plain tokens; only the trainer wanted them as special ones to give them the first ids.
    table["added_tokens"] = [token for token in table["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(table))


_TOKENIZERS = {"smollm2": _smollm2, "tinyllama": _tinyllama, "qwen3": _qwen3, "minimind3": _minimind3}


def _write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=2), encoding="utf-8")
