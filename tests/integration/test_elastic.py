"""torchrun starts all ranks again when one is killed; the run goes on from its last checkpoint and ends as it would."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_helpers import ROOT, Town, environment, last_step, rows_of
from safetensors.torch import load_file

from cutaway.training.checkpoint import Checkpoints

STEPS, SAVE_EVERY = 120, 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc"),
]


def launch(torchrun: list[str], arguments: list[str], log: Path, **more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "--monitor-interval", "0.1"]
    command += ["-m", "cutaway", *arguments]
    env = environment() | {"GLOO_SOCKET_IFNAME": "lo"} | more
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


def kill_last_worker(launcher: "subprocess.Popen[bytes]", run: Path) -> int:
    """Kill a worker when a quarter of the run is done; gives back the step that it had come to."""
    deadline = time.monotonic() + 900
    while last_step(run) < STEPS // 4 and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(workers_of(launcher.pid)[-1], signal.SIGKILL)
    return last_step(run)


def went_on(log: str, run: Path) -> int:
    """The checkpoint from which the run went on, once, to its end."""
    (again,) = [int(step) for step in re.findall(r"going on from step (\d+) of", log)]
    assert again % SAVE_EVERY == 0
    steps = [row["step"] for row in rows_of(run) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert Checkpoints(run, 1).steps()[-1] == STEPS
    return again


@pytest.mark.parametrize("sharding", ["off", "on"])
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(sharding: str, town: Town, tmp_path: Path) -> None:
    flags = ("--save-every", str(SAVE_EVERY), "--precision", "fp32", "--optimizer", "muon", "--sharding", sharding)
    for name in ("whole", "killed"):
        log, run = tmp_path / f"{name}.log", tmp_path / name
        restarts = ["--max-restarts", "1" if name == "killed" else "0"]
        launcher = launch(["--standalone", "--nproc-per-node", "2", *restarts], town.pretrain(run, STEPS, *flags), log)
        if name == "killed":
            reached = kill_last_worker(launcher, run)
        assert launcher.wait(timeout=900) == 0, log.read_text(encoding="utf-8")
    # A step is logged before its checkpoint is written, which the signal may have come between.
    assert went_on(log.read_text(encoding="utf-8"), run) >= reached - SAVE_EVERY
    ended, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    torch.testing.assert_close(ended, expected, atol=1e-5, rtol=0)


def test_a_worker_killed_on_one_node_starts_the_others_again(town: Town, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "town", "--rdzv-endpoint", f"localhost:{port}"]
    node = ["--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "localhost", "--max-restarts", "2", *meeting]
    run, logs = tmp_path / "run", [tmp_path / "first.log", tmp_path / "second.log"]
    arguments = town.pretrain(run, STEPS, "--save-every", str(SAVE_EVERY), "--precision", "fp32")
    nodes = [launch(node, arguments, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") for log in logs]
    reached = kill_last_worker(nodes[1], run)
    for launcher in nodes:
        launcher.wait(timeout=900)
    said = "".join(log.read_text(encoding="utf-8") for log in logs)
    assert [launcher.returncode for launcher in nodes] == [0, 0], said
    assert "already holds a run" not in said
    assert went_on(said, run) >= reached - SAVE_EVERY
