"""Bits per byte of any text file or of conversations, by language and by domain, with intervals over documents.

`bpb.py` measures the same over a whole held-out slice while a model trains; here every document keeps its own sum, so
that tables, intervals and paired comparisons of two models can be made of them.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cutaway.data.batch import assemble, pack_rows
from cutaway.data.cache import TokenCache
from cutaway.data.formats import RawRecord, read_records
from cutaway.data.scripts import HAN, HANS, HANT, KANA, LATIN, count_scripts
from cutaway.data.tokenize import CacheKind, Encoding, encode_chunk
from cutaway.errors import UserError
from cutaway.evals.intervals import bootstrap_ratio
from cutaway.model.transformer import CausalLM
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import Ranks
from cutaway.training.network import Network

ROW = 512
ROWS = 16
DOMAIN_KEYS = ("domain", "source", "subject")
"""Keys of a record that say where it is from; the first that is there counts."""


@dataclass(frozen=True)
class TextScores:
    """Of each document: what it cost in nats, the UTF-8 bytes and tokens of its trained text, and its labels."""

    name: str
    kind: CacheKind
    nats: Float[np.ndarray, "documents"]
    bytes: Float[np.ndarray, "documents"]
    tokens: Float[np.ndarray, "documents"]
    languages: list[str]
    domains: list[str]
    keys: list[str]
    dropped: int
    """Conversations without an answer that fits the model."""


def language_of(text: str) -> str:
    """`zh-Hans`, `zh-Hant`, `en` (Latin letters), or `other`, by the characters of a text."""
    counts = count_scripts(text)
    chinese = int(counts[HAN] + counts[HANS] + counts[HANT])
    if counts[KANA] > 0.05 * max(1, chinese):
        return "other"
    # A Chinese word is two characters, a Latin one about five letters.
    if chinese * 2 > counts[LATIN] / 2:
        return "zh-Hant" if counts[HANT] > counts[HANS] else "zh-Hans"
    return "en" if counts[LATIN] else "other"


def score_text(
    model: CausalLM,
    tokenizer: Tokenizer,
    name: str,
    path: str | Path,
    kind: CacheKind,
    *,
    dtype: torch.dtype = torch.float32,
    megabytes: float | None = None,
    skip_bad: int = 0,
    row: int = ROW,
    progress: Callable[[int, int], None] | None = None,
) -> TextScores:
    """Score every document of a file (of `kind` sft, the assistant's tokens), or its first `megabytes` of text.

    Documents are cut into rows of `row` tokens (at most what the model holds), so a token sees at most so much before
    it: figures of different row lengths do not compare. Raises UserError for an unusable file or vocabulary.
    """
    row = min(row, model.config.max_position_embeddings)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}: not its own"
        )
    values = list(_records(path, kind, megabytes, skip_bad))
    cache, kept, dropped = _encode(values, tokenizer, kind, row)
    nats, tokens = _losses(Network(model, Ranks(0, 1, model.head_weight.device), dtype), cache, row, progress)
    texts = [_text(values[i]) for i in kept]
    return TextScores(
        name,
        kind,
        nats,
        cache.bytes_per_document.astype(np.float64),
        tokens,
        [language_of(text) for text in texts],
        [_domain(values[i]) for i in kept],
        [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts],
        dropped,
    )


def _records(path: str | Path, kind: CacheKind, megabytes: float | None, skip_bad: int) -> Iterator[dict[str, Any]]:
    left = math.inf if megabytes is None else megabytes * 1e6
    for record in read_records([path], kind, skip_bad):
        yield record.value
        left -= len(_text(record.value).encode("utf-8", "replace"))
        if left <= 0:
            return


def _text(value: dict[str, Any]) -> str:
    if "text" in value:
        return str(value["text"])
    return "\n".join(str(turn.get("content") or "") for turn in value["conversations"])


def _domain(value: dict[str, Any]) -> str:
    return next((str(value[key]) for key in DOMAIN_KEYS if value.get(key)), "")


def _encode(
    values: Sequence[dict[str, Any]], tokenizer: Tokenizer, kind: CacheKind, row: int
) -> tuple[TokenCache, list[int], int]:
    """A token cache in memory, which record each of its documents is, and how many records gave none."""
    encoding = Encoding(tokenizer, kind, {}, 0, row + 1 if kind == "sft" else None)
    chunks, kept = [], []
    for number, value in enumerate(values):
        chunk = encode_chunk(encoding, [RawRecord(number + 1, value)])
        if len(chunk.lengths):
            chunks.append(chunk)
            kept.append(number)
    if not chunks:
        raise UserError("no document with a token to score")
    lengths = np.concatenate([chunk.lengths for chunk in chunks])
    trained = [chunk.trained for chunk in chunks]
    cache = TokenCache(
        kind=kind,
        flat_tokens=np.concatenate([chunk.tokens for chunk in chunks]),
        flat_trained=None if kind == "pretrain" else np.concatenate(trained),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        bytes_per_document=np.concatenate([chunk.num_bytes for chunk in chunks]),
        targets_per_document=np.concatenate([chunk.num_trained for chunk in chunks]),
        hashes=np.concatenate([chunk.hashes for chunk in chunks]),
        meta={},
    )
    return cache, kept, len(values) - len(kept)


@torch.inference_mode()
def _losses(
    network: Network, cache: TokenCache, row: int, progress: Callable[[int, int], None] | None
) -> tuple[Float[np.ndarray, "documents"], Float[np.ndarray, "documents"]]:
    """Nats and trained tokens of every document."""
    packed = pack_rows(cache, np.arange(len(cache), dtype=np.int64), row, None)
    nats, tokens = np.zeros(len(cache)), np.zeros(len(cache))
    for first in range(0, len(packed), ROWS):
        part = packed.part(first, min(first + ROWS, len(packed)))
        batch = assemble(cache, [part], len(part), row)
        losses = network.token_losses(batch.to(network.ranks.device), local=True).double().cpu()
        # Row by row, the tokens that are not padding stand in the order of the pieces.
        used = batch.documents >= 0
        owner = np.repeat(part.document, part.pairs)
        np.add.at(nats, owner, losses[used].numpy())
        np.add.at(tokens, owner, (batch.targets[used] != -100).numpy().astype(np.float64))
        if progress is not None:
            progress(first + len(part), len(packed))
    return nats, tokens


def summarise_text(scores: TextScores) -> dict[str, Any]:
    """Bits per byte of all, by language and by domain, each with its interval; plain values."""
    everything = np.arange(len(scores.nats))
    return {
        "kind": "text",
        "of": "the assistant's tokens" if scores.kind == "sft" else "text",
        **_figures(scores, everything),
        "dropped": scores.dropped,
        "languages": _table(scores, scores.languages),
        "domains": _table(scores, scores.domains) if any(scores.domains) else {},
    }


def _table(scores: TextScores, labels: Sequence[str]) -> dict[str, Any]:
    array = np.array(labels)
    return {label: _figures(scores, np.flatnonzero(array == label)) for label in sorted(set(labels))}


def _figures(scores: TextScores, chosen: Any) -> dict[str, Any]:
    r"""$\mathrm{bpb} = \frac{1}{\ln 2} \frac{\sum_d \mathrm{nats}_d}{\sum_d \mathrm{bytes}_d}$ of some documents."""
    bits, size = scores.nats[chosen] / math.log(2), scores.bytes[chosen]
    low, high = bootstrap_ratio(bits, size)
    return {
        "documents": len(chosen),
        "bytes": int(size.sum()),
        "bpb": float(bits.sum() / max(1.0, size.sum())),
        "low": low,
        "high": high,
        "nats_per_token": float(scores.nats[chosen].sum() / max(1.0, scores.tokens[chosen].sum())),
        "bytes_per_token": float(size.sum() / max(1.0, scores.tokens[chosen].sum())),
    }
