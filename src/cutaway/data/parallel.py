"""Chunks of raw records through a function, in this process or in several, in order, few of them in memory at once."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cutaway.data.formats import RawRecord, raw_records
from cutaway.errors import UserError

CHUNK_BYTES = 2**20
Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Where a chunk came from: the number of its file, and the bytes of input read when it was complete."""

    file: int
    position: int


def chunks_of_files(files: list[Path]) -> Iterator[tuple[Place, list[RawRecord]]]:
    """About a megabyte of consecutive records of one file at a time."""
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


def map_chunks(
    work: Callable[[Given, list[RawRecord]], Result],
    given: Given,
    chunks: Iterator[tuple[Place, list[RawRecord]]],
    workers: int,
) -> Iterator[tuple[Place, Result]]:
    """`work(given, records)` of every chunk, in their order, with `workers` processes (1: in this one).

    `given` is handed to each process once. Raises UserError where a process dies.
    """
    if workers <= 1:
        for place, records in chunks:
            yield place, work(given, records)
        return
    pool = ProcessPoolExecutor(workers, _context(), initializer=_start_process, initargs=(work, given))
    try:
        waiting: deque[tuple[Place, Future[Result]]] = deque()
        for place, records in chunks:
            waiting.append((place, pool.submit(_work_in_process, records)))
            if len(waiting) > 2 * workers:
                place, future = waiting.popleft()
                yield place, future.result()
        for place, future in waiting:
            yield place, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory, or a script without `if __name__ == '__main__':`); "
            "try with workers = 1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_process_work: tuple[Callable[[Any, list[RawRecord]], Any], Any] | None = None


def _start_process(work: Callable[[Any, list[RawRecord]], Any], given: Any) -> None:
    """Runs once in each worker process, which keeps to one thread."""
    global _process_work
    # Ctrl-C reaches the whole process group: only the parent acts on it; a worker killed in its queue would block it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process_work = work, given


def _work_in_process(records: list[RawRecord]) -> Any:
    assert _process_work is not None
    work, given = _process_work
    return work(given, records)


def _context() -> Any:
    """Fork is quick and needs no importable main module; with threads or CUDA in this process it is not safe."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    safe = sys.platform == "linux" and threading.active_count() == 1 and not cuda
    return multiprocessing.get_context("fork" if safe else "spawn")
