"""From raw records to token ids and loss masks: chunks of lines, in this process or in several."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cutaway.data.formats import RawRecord
from cutaway.data.hashing import content_hash
from cutaway.data.parallel import Place, chunks_of_files, map_chunks
from cutaway.data.records import BadRecordError, parse_record
from cutaway.data.scripts import ScriptMix, convert_conversation, convert_document
from cutaway.errors import UserError
from cutaway.tokenization.chat import render_to_fit
from cutaway.tokenization.foreign import foreign_to_fit
from cutaway.tokenization.tokenizer import Tokenizer

CacheKind = Literal["pretrain", "sft"]


@dataclass(frozen=True)
class Encoding:
    """What decides a record's tokens, besides the record."""

    tokenizer: Tokenizer
    kind: CacheKind
    scripts: ScriptMix
    seed: int
    max_tokens: int | None = None

    @property
    def dtype(self) -> "np.dtype[Any]":
        """uint16 where every id fits, else uint32."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32)


@dataclass
class Chunk:
    """Tokens of consecutive documents, and what happened to the records that gave none."""

    tokens: Any
    trained: Any
    lengths: Any
    num_bytes: Any
    num_trained: Any
    hashes: Any
    bad: list[tuple[int, str]] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0


def encode_chunk(encoding: Encoding, records: list[RawRecord]) -> Chunk:
    """Validate, convert and tokenise records. A bad one is reported as (line, reason) in `bad`."""
    values, lines, bad = [], [], []
    for record in records:
        try:
            if record.reason:
                raise BadRecordError(record.reason)
            values.append(parse_record(record.raw, encoding.kind))
            lines.append(record.line)
        except BadRecordError as error:
            bad.append((record.line, str(error)))
    if encoding.kind == "pretrain":
        chunk = _encode_texts(encoding, values)
    else:
        chunk = _encode_conversations(encoding, values, lines)
    chunk.bad = sorted(bad + chunk.bad)
    return chunk


def _encode_texts(encoding: Encoding, values: list[dict[str, Any]]) -> Chunk:
    """`[eos] + ids + [eos]`: the first is context only, so that the first token is predicted too."""
    texts = [convert_document(value["text"], encoding.scripts, encoding.seed) for value in values]
    eos = encoding.tokenizer.eos_id
    ids = [[eos, *piece, eos] for piece in encoding.tokenizer.encode_batch(texts)] if texts else []
    return Chunk(
        tokens=_flat(ids, encoding.dtype),
        trained=None,
        lengths=np.array([len(piece) for piece in ids], dtype=np.int64),
        num_bytes=np.array([len(text.encode("utf-8")) for text in texts], dtype=np.uint32),
        num_trained=np.array([len(piece) - 1 for piece in ids], dtype=np.uint32),
        hashes=np.array([content_hash(value["text"]) for value in values], dtype=np.uint64),
    )


def _encode_conversations(encoding: Encoding, values: list[dict[str, Any]], lines: list[int]) -> Chunk:
    """By the tokenizer's own chat format; a conversation that a foreign template cannot render is a bad record."""
    ids: list[list[int]] = []
    masks: list[list[bool]] = []
    hashes: list[int] = []
    bad: list[tuple[int, str]] = []
    cut = dropped = 0
    fit = render_to_fit if encoding.tokenizer.is_native else foreign_to_fit
    for value, line in zip(values, lines, strict=True):
        turns = convert_conversation(value["conversations"], encoding.scripts, encoding.seed)
        try:
            rendered = fit(turns, encoding.tokenizer, encoding.max_tokens or sys.maxsize)
        except UserError as error:
            bad.append((line, str(error)))
            continue
        if rendered is None:
            dropped += 1
            continue
        # Answers end where a stretch of trained tokens does: headers, which are not trained, lie between.
        answers = sum(on and not after for on, after in zip(rendered.mask, [*rendered.mask[1:], False], strict=True))
        cut += answers < sum(turn["role"] == "assistant" for turn in turns)
        ids.append(rendered.ids)
        masks.append(rendered.mask)
        hashes.append(content_hash(json.dumps(value["conversations"], ensure_ascii=False, sort_keys=True)))
    tokens, trained = _flat(ids, encoding.dtype), _flat(masks, np.dtype(np.uint8))
    lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    trained[starts] = 0  # a document's first token is never a target
    token_bytes = _token_lengths(encoding.tokenizer)[tokens] * trained
    return Chunk(
        tokens=tokens,
        trained=trained,
        lengths=lengths,
        num_bytes=np.add.reduceat(token_bytes, starts).astype(np.uint32) if ids else np.zeros(0, np.uint32),
        num_trained=np.add.reduceat(trained, starts, dtype=np.uint32) if ids else np.zeros(0, np.uint32),
        hashes=np.array(hashes, dtype=np.uint64),
        bad=bad,
        cut=cut,
        dropped=dropped,
    )


def _flat(pieces: list[Any], dtype: "np.dtype[Any]") -> Any:
    return np.fromiter(chain.from_iterable(pieces), dtype=dtype, count=sum(map(len, pieces)))


_lengths: tuple[str, Any] = ("", None)


def _token_lengths(tokenizer: Tokenizer) -> Any:
    """Bytes of text that each token id stands for; control tokens stand for none."""
    global _lengths
    if _lengths[0] != tokenizer.fingerprint:
        table = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)], dtype=np.int64)
        _lengths = (tokenizer.fingerprint, table)
    return _lengths[1]


def encode_files(files: list[Path], encoding: Encoding, workers: int) -> Iterator[tuple[Place, Chunk]]:
    """Encode all records in order, with `workers` processes (1: in this one); few chunks are in memory at once."""
    return map_chunks(encode_chunk, encoding, chunks_of_files(files), workers)
