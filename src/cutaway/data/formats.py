"""Streaming readers: .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst and .parquet, one record at a time, with file and line.

Memory stays flat: a file is never read whole, and a line over MAX_LINE_BYTES is skipped and reported as a bad record.
"""

import gzip
import io
import logging
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cutaway.data.records import BadRecordError, Kind, parse_record
from cutaway.errors import UserError

MAX_LINE_BYTES = 64 * 2**20
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet")
log = logging.getLogger("cutaway")


class Record(NamedTuple):
    """A valid record and where it came from (`line` counts from 1; the row number in a parquet file)."""

    file: str
    line: int
    value: dict[str, Any]


class RawRecord(NamedTuple):
    """A line before parsing; `reason` is set where the reader itself refuses it."""

    line: int
    raw: bytes | dict[str, Any]
    reason: str = ""


class BadCounter:
    """Counts bad records over all files, logs each with its reason, and stops the run past `allowed`."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.count = 0

    @classmethod
    def of(cls, allowed: "int | BadCounter") -> "BadCounter":
        """A new counter, or the one given, which others count with."""
        return allowed if isinstance(allowed, BadCounter) else cls(allowed)

    def add(self, file: str, line: int, reason: str) -> None:
        """Raises UserError `file:line: reason` when there are more than allowed."""
        self.count += 1
        if self.count > self.allowed:
            hint = f" (bad record {self.count}, --skip-bad {self.allowed} allows no more)" if self.allowed else ""
            raise UserError(f"{file}:{line}: {reason}{hint}")
        log.warning("%s:%d: %s (skipped)", file, line, reason)


def read_records(paths: Iterable[str | Path], kind: Kind | None, skip_bad: int | BadCounter = 0) -> Iterator[Record]:
    """Valid records of all files in order, of that kind or of any.

    Raises UserError for a missing, empty or corrupt file, and `file:line: reason` for a bad record beyond `skip_bad`.
    """
    bad = BadCounter.of(skip_bad)
    for path in paths:
        for item in raw_records(path):
            try:
                if item.reason:
                    raise BadRecordError(item.reason)
                value = parse_record(item.raw, kind)
            except BadRecordError as error:
                bad.add(str(path), item.line, str(error))
                continue
            yield Record(str(path), item.line, value)


def suffix_of(path: str | Path) -> str:
    """The supported suffix of a file name. Raises UserError for any other."""
    for suffix in SUFFIXES:
        if str(path).endswith(suffix):
            return suffix
    raise UserError(f"{path}: unknown kind of file, must end with one of {', '.join(SUFFIXES)}")


def check_readable(path: str | Path) -> None:
    """Raises UserError for a missing file, a directory, an unknown suffix or a file of no bytes."""
    suffix_of(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: {'this is a directory, a file is needed' if Path(path).is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as handle:
            if not handle.read(1):
                raise UserError(f"{path}: the file is empty")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def raw_records(path: str | Path, on_read: Callable[[int], None] | None = None) -> Iterator[RawRecord]:
    """Unparsed records of one file; blank lines are passed over. `on_read(bytes)` hears how far into the file we are.

    Raises UserError for a missing, empty, unreadable, truncated or corrupt file, with the line reached.
    """
    check_readable(path)
    suffix = suffix_of(path)
    line = 0
    found = False
    try:
        with open(path, "rb") as handle:
            records = _parquet_rows(handle) if suffix == ".parquet" else _lines(_decompress(handle, suffix))
            for item in records:
                line, found = item.line, True
                if on_read is not None and line % 256 == 1:
                    on_read(handle.tell())
                yield item
            if on_read is not None:
                on_read(Path(path).stat().st_size)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, _CorruptFileError) as error:
        raise UserError(f"{path}: truncated or corrupt file, readable up to line {line}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read after line {line}: {error}") from None
    if not found:
        raise UserError(f"{path}: the file holds no records")


def _lines(stream: io.BufferedIOBase) -> Iterator[RawRecord]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := stream.readline(2**20)) and not rest.endswith(b"\n"):
                pass
            yield RawRecord(number, b"", f"the line is longer than {MAX_LINE_BYTES // 2**20} MB")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw := raw.strip():
            yield RawRecord(number, raw)


class _CorruptFileError(Exception):
    pass


def _decompress(handle: BinaryIO, suffix: str) -> io.BufferedIOBase:
    if suffix == ".jsonl.gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=handle), 2**20)
    if suffix == ".jsonl.xz":
        return io.BufferedReader(lzma.LZMAFile(handle), 2**20)
    if suffix == ".jsonl.zst":
        return io.BufferedReader(_Blocks(_zstd_blocks(handle)), 2**20)
    return handle  # type: ignore[return-value]


class _Blocks(io.RawIOBase):
    """An iterator of byte blocks as a readable stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.rest = memoryview(block)
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


def _zstd_blocks(handle: BinaryIO) -> Iterator[bytes]:
    """Decompress frame after frame. The library's own stream reader takes a truncated file for a complete one."""
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{handle.name}: reading .zst needs the zstd extra: pip install 'cutaway[zstd]'") from None
    try:
        frame = None
        # 2 KB of input bounds what one call can unfold to (a run-length block is 4 bytes for 128 KB).
        while chunk := handle.read(2048):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = None
        if frame is not None:
            raise _CorruptFileError("the last frame is not complete")
    except zstandard.ZstdError as error:
        raise _CorruptFileError(str(error)) from None


def _parquet_rows(handle: BinaryIO) -> Iterator[RawRecord]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{handle.name}: reading .parquet needs an extra: pip install 'cutaway[parquet]'") from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(handle).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield RawRecord(number, _without_nulls(row))
    except pyarrow.ArrowException as error:
        raise _CorruptFileError(str(error).splitlines()[0]) from None


def _without_nulls(value: Any) -> Any:
    """A column gives every row every key; a key that is null was absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
