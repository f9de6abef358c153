"""Tokenise once: documents as memory-mapped token ids, in a directory named by the hash of all that decides them.

The directory is written beside its final place and renamed when complete, so a crash or a race leaves no half cache.
Files: `tokens.bin` (uint16 or uint32), `trained.bin` (uint8, conversations only), `offsets.bin` (int64, documents + 1),
`bytes.bin` and `targets.bin` (uint32 a document), `hashes.bin` (uint64 a document), `meta.json`.
"""

import hashlib
import json
import logging
import operator
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex

import numpy as np
from jaxtyping import Bool, Integer

from cutaway.data.formats import BadCounter, check_readable
from cutaway.data.hashing import mix64
from cutaway.data.scripts import opencc_version, parse_scripts
from cutaway.data.tokenize import CacheKind, Encoding, encode_files
from cutaway.errors import UserError
from cutaway.tokenization.tokenizer import Tokenizer

FORMAT_VERSION = 1
# Under this many bytes of input, starting processes costs more than it saves.
SMALL_INPUT = 4 * 2**20
MAX_HOLDOUT_SHARE = 0.1
PER_DOCUMENT = {"bytes": np.uint32, "targets": np.uint32, "hashes": np.uint64}
Progress = Callable[[float, int], None]
log = logging.getLogger("cutaway")


@dataclass(frozen=True)
class TokenCache:
    """Tokenised documents: `flat_tokens[offsets[i]:offsets[i + 1]]` is document i; arrays map files, read only."""

    kind: CacheKind
    flat_tokens: Integer[np.ndarray, "tokens"]
    flat_trained: Integer[np.ndarray, "tokens"] | None
    offsets: Integer[np.ndarray, "documents_1"]
    bytes_per_document: Integer[np.ndarray, "documents"]
    targets_per_document: Integer[np.ndarray, "documents"]
    """Pairs whose target is trained on: n-1 for text, the assistant's tokens for a conversation."""
    hashes: Integer[np.ndarray, "documents"]
    """Hash of each document as it stands in its file: equal for duplicates, the same for every tokenizer."""
    meta: dict[str, Any]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integer[np.ndarray, "documents"]:
        """Tokens in each document."""
        return np.diff(self.offsets)

    def tokens(self, index: SupportsIndex) -> Integer[np.ndarray, "length"]:
        """Token ids of a document."""
        return self.flat_tokens[self._span(index)]

    def trained(self, index: SupportsIndex) -> Bool[np.ndarray, "length"] | None:
        """Which tokens of a document are trained targets (never the first); None where all others are."""
        if self.flat_trained is None:
            return None
        return self.flat_trained[self._span(index)].astype(bool)

    def _span(self, index: SupportsIndex) -> slice:
        place = operator.index(index)
        return slice(int(self.offsets[place]), int(self.offsets[place + 1]))

    def num_bytes(self, index: SupportsIndex) -> int:
        """UTF-8 bytes of the text whose tokens are trained targets; bits per byte = nll / ln 2 / these, both summed."""
        return int(self.bytes_per_document[index])


def build_cache(
    paths: Iterable[str | Path],
    tokenizer: Tokenizer,
    kind: CacheKind,
    *,
    scripts: str = "keep",
    seed: int = 0,
    skip_bad: int = 0,
    workers: int | None = None,
    max_tokens: int | None = None,
    root: str | Path | None = None,
    progress: Progress | None = None,
) -> TokenCache:
    """Tokenise files, or open the cache that an earlier run made of the same contents with the same settings.

    Args:
        scripts, seed: script mix (see `scripts.parse_scripts`) and the seed of its draw.
        skip_bad: bad records tolerated; each is logged with `file:line: reason`.
        workers: processes; None for one a core.
        max_tokens: conversations are cut at a turn to at most this many tokens, and counted.
        root: where caches live; None for `cache_root()`.
        progress: called with the share of the input that is done, and the number of documents.

    Raises UserError for unreadable input, too many bad records, no usable document, a full or unwritable disk.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise UserError("no data files given")
    for file in files:
        check_readable(file)
    folder = Path(root or cache_root())
    encoding = Encoding(tokenizer, kind, parse_scripts(scripts), seed, max_tokens if kind == "sft" else None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / cache_key(files, encoding, folder)
        if not _is_complete(final):
            _remove_abandoned(folder)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
            try:
                _write_cache(building, files, encoding, skip_bad, workers or os.cpu_count() or 1, progress)
                _publish(building, final)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the token cache: {error.strerror or error}; "
            "set CUTAWAY_CACHE to a folder with room, about as large as the unpacked text"
        ) from None
    cache = load_cache(final)
    bad = BadCounter(skip_bad)
    for number, line, reason in cache.meta["bad"]:
        bad.add(str(files[number]), line, reason)
    _report(cache)
    return cache


def cache_root() -> Path:
    """Where what was computed once is kept: $CUTAWAY_CACHE, or ~/.cache/cutaway."""
    return Path(os.environ.get("CUTAWAY_CACHE") or Path.home() / ".cache" / "cutaway")


def load_cache(path: Path) -> TokenCache:
    """Open a complete cache directory. Raises UserError where it is not one."""
    if not _is_complete(path):
        raise UserError(f"{path}: not a complete token cache")
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))

    def array(name: str, dtype: Any) -> Any:
        return np.memmap(path / f"{name}.bin", dtype=dtype, mode="r")

    return TokenCache(
        kind=meta["kind"],
        flat_tokens=array("tokens", np.dtype(meta["dtype"])),
        flat_trained=array("trained", np.uint8) if meta["kind"] == "sft" else None,
        offsets=array("offsets", np.int64),
        bytes_per_document=array("bytes", np.uint32),
        targets_per_document=array("targets", np.uint32),
        hashes=array("hashes", np.uint64),
        meta=meta,
        path=path,
    )


def split_holdout(
    cache: TokenCache, holdout_tokens: int, seed: int, max_share: float = MAX_HOLDOUT_SHARE
) -> tuple[Integer[np.ndarray, "train"], Integer[np.ndarray, "heldout"]]:
    """Indices of the documents to train on and of those held out for evaluation, both ascending.

    Documents are ordered by a hash of (seed, content) and held out from the first on, all copies of one together, until
    there are `holdout_tokens` of them, or `max_share` of the data; at least one document, unless nothing would be left
    to train on. The choice depends on neither the order of the documents nor the files' names; more data of the
    same kind only makes it a smaller part of the same order.
    """
    everything = np.arange(len(cache), dtype=np.int64)
    if holdout_tokens <= 0:
        return everything, everything[:0]
    groups, group_of = np.unique(mix64(np.asarray(cache.hashes), seed), return_inverse=True)
    if len(groups) < 2:
        return everything, everything[:0]
    sizes = np.bincount(group_of, weights=cache.lengths - 1).astype(np.int64)
    limit = int(sizes.sum() * max_share)
    taken = np.cumsum(sizes)
    enough = int(np.searchsorted(taken, min(holdout_tokens, limit))) + 1
    within = int(np.searchsorted(taken, limit, side="right"))
    heldout = group_of < max(1, min(enough, within, len(groups) - 1))
    return everything[~heldout], everything[heldout]


def cache_key(files: Sequence[Path], encoding: Encoding, root: Path) -> str:
    """Name of the cache: hash of the files' contents in order and of everything that decides the tokens."""
    parts: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "kind": encoding.kind,
        "tokenizer": encoding.tokenizer.fingerprint,
        "files": _hash_files(files, root),
    }
    if encoding.scripts:
        parts |= {"scripts": encoding.scripts, "seed": encoding.seed, "opencc": opencc_version()}
    if encoding.kind == "sft":
        parts |= {"max_tokens": encoding.max_tokens, "template": encoding.tokenizer.chat_template}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _hash_files(files: Sequence[Path], root: Path) -> list[str]:
    """SHA-256 of each file, remembered by path, size and time of change."""
    memory = root / "hashes.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    hashes = []
    for file in files:
        status = file.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = known.get(str(file.resolve()))
        if not entry or entry[:2] != stamp:
            with open(file, "rb") as handle:
                entry = [*stamp, hashlib.file_digest(handle, "sha256").hexdigest()]
            # A file that changed this moment may change again without a new time stamp.
            if time.time_ns() - status.st_mtime_ns > 2 * 10**9:
                known[str(file.resolve())] = entry
        hashes.append(entry[2])
    try:
        part = root / f".hashes-{os.getpid()}-{threading.get_ident()}"
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(memory)
    except OSError:
        pass  # only a memory; a cache that exists can be read from a read-only disk
    return hashes


def _write_cache(
    folder: Path, files: list[Path], encoding: Encoding, skip_bad: int, workers: int, progress: Progress | None
) -> None:
    total_bytes = sum(file.stat().st_size for file in files)
    bad = BadCounter(skip_bad)
    bad_list: list[tuple[int, int, str]] = []
    offset = documents = cut = dropped = 0
    with ExitStack() as stack:
        names = ["tokens", "offsets", *PER_DOCUMENT] + (["trained"] if encoding.kind == "sft" else [])
        out: dict[str, BinaryIO] = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names}
        out["offsets"].write(np.zeros(1, np.int64).tobytes())
        for place, chunk in encode_files(files, encoding, workers if total_bytes > SMALL_INPUT else 1):
            for line, reason in chunk.bad:
                bad.add(str(files[place.file]), line, reason)
                bad_list.append((place.file, line, reason))
            out["tokens"].write(chunk.tokens.tobytes())
            out["offsets"].write((offset + np.cumsum(chunk.lengths)).tobytes())
            out["bytes"].write(chunk.num_bytes.tobytes())
            out["targets"].write(chunk.num_trained.tobytes())
            out["hashes"].write(chunk.hashes.tobytes())
            if "trained" in out:
                out["trained"].write(chunk.trained.tobytes())
            offset += len(chunk.tokens)
            documents += len(chunk.lengths)
            cut, dropped = cut + chunk.cut, dropped + chunk.dropped
            if progress is not None:
                progress(place.position / total_bytes, documents)
    if not documents:
        why = f": all {dropped} are longer than {encoding.max_tokens} tokens, raise --row-length" if dropped else ""
        raise UserError(f"{', '.join(map(str, files))}: no usable record, nothing to train on{why}")
    sizes = {name: (folder / f"{name}.bin").stat().st_size for name in names}
    meta: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "kind": encoding.kind,
        "dtype": encoding.dtype.name,
    }
    meta |= {"documents": documents, "tokens": offset, "cut": cut, "dropped": dropped, "bad": bad_list}
    meta |= {"max_tokens": encoding.max_tokens}
    meta |= {"files": [str(file) for file in files], "tokenizer": encoding.tokenizer.fingerprint, "sizes": sizes}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")


def _publish(building: Path, final: Path) -> None:
    if final.exists() and not _is_complete(final):
        shutil.rmtree(final, ignore_errors=True)
    try:
        building.rename(final)
    except OSError:
        if not _is_complete(final):  # otherwise another process was first
            raise


def _is_complete(path: Path) -> bool:
    try:
        sizes = json.loads((path / "meta.json").read_text(encoding="utf-8"))["sizes"]
        return all((path / f"{name}.bin").stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _remove_abandoned(root: Path) -> None:
    """Remove what killed processes left a day or more ago."""
    for folder in root.glob(".building-*"):
        try:
            if time.time() - folder.stat().st_mtime > 86400:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def _report(cache: TokenCache) -> None:
    cut, dropped, limit = (cache.meta[key] for key in ("cut", "dropped", "max_tokens"))
    if cut:
        log.info("%d conversations were longer than %s tokens and cut at a turn", cut, limit)
    if dropped:
        log.info("%d conversations left out: nothing to train on within %s tokens", dropped, limit)
