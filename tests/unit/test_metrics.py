"""metrics.jsonl: what a line looks like, what a resume keeps, and what a torn line costs."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.model import weights
from cutaway.training.metrics import MetricsLog, matmul_rate, read_metrics
from training_helpers import rows_of


def write(run: Path, resume_step: int | None, *rows: dict[str, Any]) -> None:
    metrics = MetricsLog(run, resume_step)
    for row in rows:
        metrics.write(row)
    metrics.close()


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / (step + 3)}


def test_numbers_are_rounded_to_six_digits_and_stay_json(tmp_path: Path) -> None:
    row = {"step": 7, "loss": 1 / 3, "tokens": 123456789, "grad_norm": float("inf"), "kl": float("nan"), "name": "x"}
    write(tmp_path, None, row)
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "step": 7,
        "loss": 0.333333,
        "tokens": 123456789,
        "grad_norm": None,
        "kl": None,
        "name": "x",
    }


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, None, line(1), line(2))
    write(tmp_path, 1, line(2), line(3))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(step, pytest.approx(1 / (step + 3))) for step in (1, 2, 3)]


def test_a_resumed_log_has_no_step_twice_and_drops_torn_lines(tmp_path: Path) -> None:
    write(tmp_path, None, *map(line, range(1, 9)))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 9, "lo', encoding="utf-8")
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))
    write(tmp_path, 5, *map(line, range(6, 8)))
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 8))


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    write(tmp_path, None, line(1), line(2))
    write(tmp_path, None, line(1))
    assert [row["step"] for row in rows_of(tmp_path)] == [1]


def test_a_crash_while_resuming_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, None, *map(line, range(1, 6)))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(UserError, match=r"could not write .*metrics.jsonl.*No space"):
        MetricsLog(tmp_path, 3)
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 6))


def test_the_matrix_rate_is_a_plausible_number() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32, seconds=0.02)
    assert 1e8 < rate < 1e15


@pytest.mark.long
def test_a_busy_second_does_not_lower_the_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [0.2, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2]  # of four products each
    ticks = itertools.chain.from_iterable((2.0 * number, 2.0 * number + span) for number, span in enumerate(spans))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    rate = matmul_rate(torch.device("cpu"), torch.float32, seconds=1.25)
    assert rate == pytest.approx(4 * 2 * 4096 * 512 * 1408 / 0.1)
