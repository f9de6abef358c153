"""A small tokenizer, token caches without files, and files of records for the data tests."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data.cache import TokenCache
from cutaway.data.hashing import content_hash
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "今天天氣很好", "今天天气很好"]


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 4, TokenizerSettings(vocab_size=300))


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def text_cache(lengths: Sequence[int]) -> TokenCache:
    """Documents whose tokens are all different, so that every (input, target) pair has one place."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenCache(
        kind="pretrain",
        flat_tokens=np.arange(offsets[-1], dtype=np.uint32),
        flat_trained=None,
        offsets=offsets,
        bytes_per_document=np.array(lengths, dtype=np.uint32),
        targets_per_document=np.maximum(np.array(lengths, dtype=np.int64) - 1, 0).astype(np.uint32),
        hashes=np.array([content_hash(str(number)) for number in range(len(lengths))], dtype=np.uint64),
        meta={},
    )


def chat_cache(masks: Sequence[Sequence[bool]]) -> TokenCache:
    """Conversations with the given masks and tokens that are all different."""
    plain = text_cache([len(mask) for mask in masks])
    flat = np.array([on for mask in masks for on in mask], dtype=np.uint8)
    flat[plain.offsets[:-1]] = 0
    counts = np.array(
        [flat[a:b].sum() for a, b in zip(plain.offsets, plain.offsets[1:], strict=False)], dtype=np.uint32
    )
    fields = plain.__dict__ | {"kind": "sft", "flat_trained": flat, "targets_per_document": counts}
    return TokenCache(**fields)
