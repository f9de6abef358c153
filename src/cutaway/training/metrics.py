"""What a run measures: `metrics.jsonl` (one object a log line) and TensorBoard events beside it."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cutaway.model.weights import write_text
from cutaway.training.trackers import Tracker

log = logging.getLogger("cutaway")


class MetricsLog:
    """Appends metrics; on resume, lines later than the checkpoint are dropped so that no step stands twice."""

    def __init__(self, run: Path, resume_step: int | None, tracker: Tracker | None = None) -> None:
        self.tracker = tracker
        self.path = run / "metrics.jsonl"
        kept = _lines_until(self.path, resume_step) if resume_step is not None else []
        write_text("".join(kept), self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = _tensorboard(run, resume_step)

    def write(self, metrics: dict[str, Any]) -> None:
        """One line; numbers also go to TensorBoard. What is not finite is null, as JSON has no word for it."""
        rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in metrics.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()
        if self.tracker is not None:
            self.tracker.write(metrics)
        if self._writer is not None:
            for key, value in metrics.items():
                if key != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(key, value, metrics["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self.tracker is not None:
            self.tracker.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; a line torn by a crash is left out."""
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _lines_until(path: Path, step: int) -> list[str]:
    if not path.is_file():
        return []
    return [json.dumps(row) + "\n" for row in read_metrics(path.parent) if row.get("step", 0) <= step]


def _tensorboard(run: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: metrics.jsonl only")
        return None
    purge = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(run / "tensorboard"), purge_step=purge)


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of a plain matrix product here and now: what MFU is measured against.

    The shapes are those of a small model's feed-forward layer; on a GPU, large enough to fill it. A quarter of the
    measurements were faster: what else the machine does can only slow them.
    """
    m, k, n = (8192, 4096, 4096) if device.type == "cuda" else (4096, 512, 1408)
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(n, k, device=device, dtype=dtype)
    for _ in range(3):
        F.linear(a, b)
    synchronise(device)
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        for _ in range(4):
            F.linear(a, b)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 4 * 2 * m * k * n / sorted(times)[len(times) // 4]


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock reads what was done and not what was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
