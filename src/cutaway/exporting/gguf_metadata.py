"""What a GGUF file says about its model: the shape of the network, the vocabulary, how text is cut and rendered."""

import logging
import math
from typing import Any

import gguf

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.rope import inverse_frequencies
from cutaway.tokenization.tokenizer import END_OF_TEXT, IM_END, PATTERNS, Tokenizer

log = logging.getLogger("cutaway")

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""`model_type` of config.json, and what llama.cpp calls it."""


def add_network(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """The keys that llama.cpp computes by. All are written: for some it has silent defaults, such as 10000 for RoPE.

    UserError for what its graphs cannot express.
    """
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    _add_rope_scaling(writer, config)
    if config.num_experts:
        assert config.moe_intermediate_size is not None
        if not config.norm_topk_prob:
            raise UserError("norm_topk_prob is false, and llama.cpp always normalises a Qwen3-MoE's expert weights")
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_rope_scaling(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind == "llama3" and config.model_type != "llama":
        raise UserError(f"llama.cpp has Llama-3 RoPE scaling for a Llama only, this is {config.architecture}")
    elif kind == "yarn":
        if not scaling.get("truncate", True):
            raise UserError("rope_scaling: llama.cpp has YaRN with truncate = true only")
        factor = float(scaling["factor"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        length = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(length))
        writer.add_rope_scaling_yarn_beta_fast(float(scaling.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(scaling.get("beta_slow") or 1))
        # llama.cpp multiplies by YaRN's own factor, so that only what departs from it is written.
        own = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        writer.add_rope_scaling_attn_factors(inverse_frequencies(config)[1] / own)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Tokens, merges, their kinds, the named ones, the chat template.

    A file without token types makes control tokens text, and one without `add_bos_token` gets a token in front of
    every prompt. UserError where the tokenizer is of a kind that llama.cpp would cut text differently with.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    names, types = _tokens(tokenizer, config.vocab_size)
    writer.add_token_list(names)
    writer.add_token_types(types)
    merges = tokenizer.definition["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    named = _named(tokenizer, config)
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("eot", writer.add_eot_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (index := named[name]) is not None:
            add(index)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Every id's token and its kind. Ids that the model has and the tokenizer has not are filled up as unused."""
    kinds = gguf.TokenType
    names = [f"[PAD{index}]" for index in range(size)]
    types = [int(kinds.UNUSED)] * size
    for token, index in tokenizer.definition["model"]["vocab"].items():
        names[index], types[index] = token, int(kinds.NORMAL)
    for token, index in tokenizer.control_ids.items():
        names[index] = token
        types[index] = int(kinds.CONTROL if index in tokenizer.special_ids else kinds.USER_DEFINED)
    return names, types


def _named(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, int | None]:
    """What begins a document, ends an answer, ends a turn, fills a row; llama.cpp would guess at what is left out."""

    def token(name: str) -> int | None:
        return tokenizer.control_ids.get(tokenizer.named_token(name) or "")

    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    eos = token("eos_token") if token("eos_token") is not None else ends[0]
    bos = token("bos_token") if token("bos_token") is not None else tokenizer.control_ids.get(END_OF_TEXT, eos)
    pad = token("pad_token") if token("pad_token") is not None else config.pad_token_id
    return {"bos": bos, "eos": eos, "eot": tokenizer.control_ids.get(IM_END, eos), "pad": pad}


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for how this tokenizer cuts text before the merges. UserError where it has none."""
    model, normalizer = tokenizer.definition["model"], tokenizer.definition.get("normalizer")
    parts = _parts(tokenizer.definition.get("pre_tokenizer"))
    last = parts[-1] if parts else {}
    byte_level = model.get("type") == "BPE" and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    name = None
    if byte_level and last.get("use_regex", True):
        name = {(): "gpt-2", ("Digits",): "smollm"}.get(tuple(part["type"] for part in parts[:-1]))
        name = None if name == "smollm" and not parts[0].get("individual_digits") else name
    elif byte_level and len(parts) == 2 and parts[0]["type"] == "Split":
        regex, ignore = parts[0]["pattern"].get("Regex"), bool(model.get("ignore_merges"))
        known = {(PATTERNS["qwen2"], False): "qwen2", (PATTERNS["llama3"], True): "llama-bpe"}
        name = known.get((regex, ignore))
    if name is None:
        raise UserError(
            "the tokenizer is none that llama.cpp can be told of here: needed is a byte-level BPE "
            "with the pre-tokenizer of Qwen2, Llama 3, GPT-2 or SmolLM"
        )
    if normalizer is not None:
        log.warning("the tokenizer normalises text (%s), llama.cpp does not", normalizer.get("type"))
    return name


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    return node["pretokenizers"] if node["type"] == "Sequence" else [node]
