"""Killed at random moments and resumed each time, a run ends with the bytes of an uninterrupted one."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_helpers import write_model, write_prompts
from run_helpers import (
    ROOT,
    Town,
    check_same,
    cutaway,
    environment,
    final_bytes,
    finish,
    kill_and_resume,
    last_step,
)

from cutaway.training.checkpoint import Checkpoints
from training_helpers import CXX

pytestmark = pytest.mark.slow
PRETRAIN_STEPS, SFT_STEPS, RL_STEPS = 300, 100, 80


@pytest.fixture(scope="module")
def base(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted pretraining run."""
    run = tmp_path_factory.mktemp("whole") / "base"
    finish(town.pretrain(run, PRETRAIN_STEPS, "--save-every", "7"), run.with_suffix(".log"))
    return run


def test_pretraining_survives_over_twenty_kills(town: Town, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = town.pretrain(run, PRETRAIN_STEPS, "--save-every", "7")
    resumed_from = kill_and_resume(first, run, base, kills=24, save_every=7, seed=0)
    assert len(resumed_from) >= 20
    assert len(set(resumed_from)) > 5
    check_same(run, base)


def test_fine_tuning_survives_kills(town: Town, base: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"

    def arguments(out: Path) -> list[str]:
        return town.sft(base, out, SFT_STEPS, "--save-every", "7")

    finish(arguments(whole), whole.with_suffix(".log"))
    kill_and_resume(arguments(run), run, whole, kills=6, save_every=7, seed=1)
    check_same(run, whole)


def test_reinforcement_learning_survives_kills(tmp_path: Path) -> None:
    """Tracker, prompt order and answers too; its checkpoints fall between rollouts, of two updates each."""
    model, data = write_model(tmp_path / "model"), write_prompts(tmp_path / "prompts.jsonl")
    whole, run = tmp_path / "whole", tmp_path / "run"

    def arguments(out: Path) -> list[str]:
        files = ("--data", str(data), "--init", str(model), "--out", str(out), "--workers", "1")
        sizes = ("--row-length", "96", "--max-new-tokens", "12", "--prompts-per-rollout", "6", "--slots", "16")
        rhythm = ("--steps", str(RL_STEPS), "--save-every", "4", "--log-every", "1", "--eval-every", "20")
        return ["spo", *files, *sizes, *rhythm, "--holdout-prompts", "4", "--adam-lr", "1e-3", "--precision", "fp32"]

    finish(arguments(whole), whole.with_suffix(".log"))
    resumed_from = kill_and_resume(arguments(run), run, whole, kills=8, save_every=4, seed=2)
    assert len(set(resumed_from)) > 1 and not any(step % 2 for step in resumed_from)
    check_same(run, whole, ("reward", "rollout_tokens", "tracker_value", "tracker_drift"), heldout="heldout_success")


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
    check_same(run, base)


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
@pytest.mark.parametrize("how", ["on", "layers"])
def test_a_compiled_run_resumes_exactly(how: str, town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes only, since each takes half a minute to compile: the second goes on from within the first's run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("--compile", how, "--save-every", "10", "--keep-checkpoints", "9", "--holdout-tokens", "0")
    one_layer = [argument if argument != "2" else "1" for argument in town.pretrain(whole, 40, *options)]
    done = cutaway(*one_layer)
    assert done.returncode == 0, done.stderr
    assert f"compile: {how}" in done.stderr
    shutil.copytree(whole, run)
    for step in (20, 30, 40):
        shutil.rmtree(run / "state" / f"step-{step:08d}")
    done = cutaway("pretrain", "--resume", "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert final_bytes(run, 40) == final_bytes(whole, 40)
