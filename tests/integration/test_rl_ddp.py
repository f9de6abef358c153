"""Two ranks train what one process trains: the same answers, advantages over all of them, the same gradients."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_ddp_worker import CASES
from rl_helpers import rows_of, trained, write_model, write_prompts
from run_helpers import environment
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
WORKER = str(Path(__file__).with_name("rl_ddp_worker.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same runs by two ranks, and by one."""
    root = tmp_path_factory.mktemp("rl-ddp")
    model, data = write_model(root / "model", ends=40), write_prompts(root / "prompts.jsonl")
    for launcher, name in ((TORCHRUN, "two"), ([sys.executable], "one")):
        command = [*launcher, WORKER, str(model), str(data), str(root / name), *CASES]
        env = environment() | {"GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    return root / "two", root / "one"


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_the_first_update_agree(case: str, runs: tuple[Path, Path]) -> None:
    two, one = (load_file(run / case / "gradients.safetensors") for run in runs)
    assert two.keys() == one.keys()
    assert any(name.startswith("critic") for name in one) == (case == "ppo")
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_every_line_of_the_metrics_agrees(case: str, runs: tuple[Path, Path]) -> None:
    two, one = (trained(rows_of(run / case)) for run in runs)
    assert len(two) == len(one) == 4
    keys = ("loss", "reward", "success", "advantage_mean", "entropy", "kl_old_k3", "response_length", "rollouts")
    for key in (*keys, "turns", "tool_errors", "success_level_1", "success_level_2"):
        values = [[row.get(key, 0.0) for row in rows] for rows in (two, one)]
        np.testing.assert_allclose(*values, atol=1e-5, rtol=1e-4, err_msg=key)
    assert (one[0]["turns"] > 1.1 and "tool_errors" in one[0]) == (case == "agent")
