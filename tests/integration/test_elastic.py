"""torchrun starts all ranks again when one is killed; the run goes on from its last checkpoint and ends as it would."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_helpers import ROOT, Town, environment, last_step, rows_of
from safetensors.torch import load_file

from cutaway.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
STEPS, SAVE_EVERY = 120, 6
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(arguments: list[str], log: Path, restarts: int) -> "subprocess.Popen[bytes]":
    command = [*TORCHRUN, "--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", "cutaway", *arguments]
    env = environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def workers_of(launcher: int) -> list[int]:
    """Processes whose parent is the launcher, in the order of their numbers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if folder.name.isdigit() and int(fields[1]) == launcher:
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize("sharding", ["off", "on"])
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(sharding: str, town: Town, tmp_path: Path) -> None:
    flags = ("--save-every", str(SAVE_EVERY), "--precision", "fp32", "--optimizer", "muon", "--sharding", sharding)
    for name in ("whole", "killed"):
        log, run = tmp_path / f"{name}.log", tmp_path / name
        launcher = launch(town.pretrain(run, STEPS, *flags), log, restarts=1 if name == "killed" else 0)
        if name == "killed":
            deadline = time.monotonic() + 900
            while last_step(run) < STEPS // 4 and launcher.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            victim = workers_of(launcher.pid)[-1]
            os.kill(victim, signal.SIGKILL)
            reached = last_step(run)
        assert launcher.wait(timeout=900) == 0, log.read_text(encoding="utf-8")
    again = [int(step) for step in re.findall(r"going on from step (\d+) of", log.read_text(encoding="utf-8"))]
    assert len(again) == 1
    # A step is logged before its checkpoint is written, which the signal may have come between.
    assert again[0] >= reached - SAVE_EVERY
    assert again[0] % SAVE_EVERY == 0
    steps = [row["step"] for row in rows_of(run) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert Checkpoints(run, 1).steps()[-1] == STEPS
    ended, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    torch.testing.assert_close(ended, expected, atol=1e-5, rtol=0)
