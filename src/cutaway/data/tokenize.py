"""From raw records to token ids and loss masks: chunks of lines, in this process or in several."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cutaway.data.formats import RawRecord, raw_records
from cutaway.data.hashing import content_hash
from cutaway.data.records import BadRecordError, parse_record
from cutaway.data.scripts import ScriptMix, convert_conversation, convert_document
from cutaway.errors import UserError
from cutaway.tokenization.chat import render_to_fit
from cutaway.tokenization.foreign import foreign_to_fit
from cutaway.tokenization.tokenizer import Tokenizer

CHUNK_BYTES = 2**20
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


_process_encoding: Encoding | None = None


def start_process(encoding: Encoding) -> None:
    """Runs once in each worker process, which keeps to one thread."""
    global _process_encoding
    # Ctrl-C reaches the whole process group: only the parent acts on it; a worker killed in its queue would block it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process_encoding = encoding


def encode_in_process(records: list[RawRecord]) -> Chunk:
    """`encode_chunk` in a worker process."""
    assert _process_encoding is not None
    return encode_chunk(_process_encoding, records)


@dataclass(frozen=True)
class Place:
    """Where a chunk came from: the number of its file, and the bytes of input read when it was complete."""

    file: int
    position: int


def encode_files(files: list[Path], encoding: Encoding, workers: int) -> Iterator[tuple[Place, Chunk]]:
    """Encode all records in order, with `workers` processes (1: in this one); few chunks are in memory at once."""
    jobs = _jobs(files)
    if workers > 1:
        yield from _encode_in_pool(jobs, encoding, workers)
        return
    for place, records in jobs:
        yield place, encode_chunk(encoding, records)


def _jobs(files: list[Path]) -> Iterator[tuple[Place, list[RawRecord]]]:
    before = position = 0
    for number, file in enumerate(files):

        def note(read: int, before: int = before) -> None:
            nonlocal position
            position = before + read

        records: list[RawRecord] = []
        size = 0
        for record in raw_records(file, note):
            records.append(record)
            size += len(record.raw) if isinstance(record.raw, bytes) else 1000
            if size >= CHUNK_BYTES or len(records) >= 4096:
                yield Place(number, position), records
                records, size = [], 0
        before += file.stat().st_size
        if records:
            yield Place(number, before), records


def _encode_in_pool(
    jobs: Iterator[tuple[Place, list[RawRecord]]], encoding: Encoding, workers: int
) -> Iterator[tuple[Place, Chunk]]:
    pool = ProcessPoolExecutor(workers, _context(), initializer=start_process, initargs=(encoding,))
    try:
        waiting: deque[tuple[Place, Future[Chunk]]] = deque()
        for place, records in jobs:
            waiting.append((place, pool.submit(encode_in_process, records)))
            if len(waiting) > 2 * workers:
                place, future = waiting.popleft()
                yield place, future.result()
        for place, future in waiting:
            yield place, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a tokenising process died (out of memory, or a script without `if __name__ == '__main__':`); "
            "try with workers = 1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Fork is quick and needs no importable main module; with threads or CUDA in this process it is not safe."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    safe = sys.platform == "linux" and threading.active_count() == 1 and not cuda
    return multiprocessing.get_context("fork" if safe else "spawn")
