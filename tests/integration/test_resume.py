"""Killed at random moments and resumed each time, a run ends with the bytes of an uninterrupted one."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import (
    ROOT,
    Town,
    cutaway,
    environment,
    final_bytes,
    finish,
    last_step,
    rows_of,
    start,
)

from cutaway.model.weights import read_safetensors
from cutaway.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
PRETRAIN_STEPS, SFT_STEPS = 300, 100


@pytest.fixture(scope="module")
def base(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted pretraining run."""
    run = tmp_path_factory.mktemp("whole") / "base"
    finish(town.pretrain(run, PRETRAIN_STEPS, "--save-every", "7"), run.with_suffix(".log"))
    return run


def kill_and_resume(
    first: list[str], run: Path, steps: int, kills: int, step_s: float, draw: random.Random
) -> list[int]:
    """Kill the run `kills` times and let it finish; gives back the steps of the checkpoints it went on from."""
    log, resumed_from = run.with_suffix(".log"), []
    for left in range(kills, 0, -1):
        saved = Checkpoints(run, 1).steps()[-1:]
        resumed_from += saved
        metrics = run / "metrics.jsonl"
        before = metrics.stat().st_ino if metrics.exists() else 0
        process = start([first[0], "--resume", "--out", str(run)] if saved else first, log)
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 1))  # while it starts: nothing is trained yet
        else:
            while process.is_alive() and (
                not metrics.exists() or metrics.stat().st_ino == before or last_step(run) <= max(saved, default=0)
            ):
                time.sleep(0.002)
            rest = (steps - max(saved, default=0)) * step_s
            time.sleep(draw.uniform(0, min(0.5, 0.7 * rest / left)))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text(encoding="utf-8")
        if (run / "model.safetensors").exists():
            assert read_safetensors(run)
    finish([first[0], "--resume", "--out", str(run)], log)
    return resumed_from


def seconds_a_step(run: Path) -> float:
    rows = [row for row in rows_of(run) if "loss" in row]
    return (rows[-1]["elapsed_s"] - rows[0]["elapsed_s"]) / len(rows)


def check_same(run: Path, whole: Path, steps: int) -> None:
    assert final_bytes(run, steps) == final_bytes(whole, steps)
    trained = [row for row in rows_of(run) if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, steps + 1))
    expected = [row for row in rows_of(whole) if "loss" in row]
    for key in ("loss", "tokens", "lr", "grad_norm"):
        assert [row[key] for row in trained] == [row[key] for row in expected]
    held = [(row["step"], row["heldout_bpb"]) for row in rows_of(run) if "heldout_bpb" in row]
    assert held == [(row["step"], row["heldout_bpb"]) for row in rows_of(whole) if "heldout_bpb" in row]
    assert not list(run.rglob("*.partial"))


def test_pretraining_survives_over_twenty_kills(town: Town, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = town.pretrain(run, PRETRAIN_STEPS, "--save-every", "7")
    resumed_from = kill_and_resume(first, run, PRETRAIN_STEPS, 24, seconds_a_step(base), random.Random(0))
    assert len(resumed_from) >= 20
    assert len(set(resumed_from)) > 5
    check_same(run, base, PRETRAIN_STEPS)


def test_fine_tuning_survives_kills(town: Town, base: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"

    def arguments(out: Path) -> list[str]:
        return town.sft(base, out, SFT_STEPS, "--save-every", "7")

    finish(arguments(whole), whole.with_suffix(".log"))
    kill_and_resume(arguments(run), run, SFT_STEPS, 6, seconds_a_step(whole), random.Random(1))
    check_same(run, whole, SFT_STEPS)


def test_a_polite_signal_writes_a_checkpoint(town: Town, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "cutaway", *town.pretrain(run, PRETRAIN_STEPS, "--save-every", "7")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and last_step(run) < 10:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    stopped_at = Checkpoints(run, 2).steps()[-1]
    expected = f"cutaway: stopped by SIGTERM after step {stopped_at} of {PRETRAIN_STEPS}; go on with --resume"
    assert errors.splitlines()[-1] == expected
    finish(["pretrain", "--resume", "--out", str(run)], run.with_suffix(".log"))
    check_same(run, base, PRETRAIN_STEPS)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compiling needs a C++ compiler")
def test_a_compiled_run_resumes_exactly(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes only, since each takes half a minute to compile: the second goes on from within the first's run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("--compile", "on", "--save-every", "10", "--keep-checkpoints", "9", "--holdout-tokens", "0")
    one_layer = [argument if argument != "2" else "1" for argument in town.pretrain(whole, 40, *options)]
    done = cutaway(*one_layer)
    assert done.returncode == 0, done.stderr
    assert "compile: on" in done.stderr
    shutil.copytree(whole, run)
    for step in (20, 30, 40):
        shutil.rmtree(run / "state" / f"step-{step:08d}")
    done = cutaway("pretrain", "--resume", "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert final_bytes(run, 40) == final_bytes(whole, 40)
