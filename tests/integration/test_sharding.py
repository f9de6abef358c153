"""Weights in halves on two ranks train as whole ones do, compiled or not; Muon's work is shared."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import environment
from sharding_worker import CONFIG

from cutaway.errors import UserError
from cutaway.training.distributed import check_sharding

pytestmark = pytest.mark.slow
WORKER = str(Path(__file__).with_name("sharding_worker.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sharding") / "found.json"
    env = environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*TORCHRUN, WORKER, str(out)], env=env, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ranks_share_the_matrices_that_muon_orthogonalises(count: int, found: dict[str, Any]) -> None:
    assert found[f"orthogonalise_{count}"] < 1e-5


@pytest.mark.parametrize(
    ("name", "tolerance"), [("fp32", 1e-5), ("recomputed", 1e-5), ("compiled", 1e-5), ("bf16", 5e-3)]
)
def test_sharded_weights_are_trained_as_whole_ones(name: str, tolerance: float, found: dict[str, Any]) -> None:
    assert found[name] < tolerance
    assert found[f"{name}_moved"] > 2 * tolerance


def test_each_rank_holds_half(found: dict[str, Any]) -> None:
    # Vocabularies and layers need not halve evenly: 61 rows are 31 and 30.
    assert 0.45 < found["fp32_held"] / found["fp32_all"] < 0.55


def test_each_rank_holds_its_part_of_the_gradients_between_micro_batches(found: dict[str, Any]) -> None:
    assert found["gradients_held"] == found["compiled_held"]


def test_ranks_time_what_they_send(found: dict[str, Any]) -> None:
    assert found["exchange_s"] > 0


def test_a_whole_copy_and_a_part_are_what_they_are_made_of(found: dict[str, Any]) -> None:
    assert found["copy"] == 0
    assert found["part"]


@pytest.mark.parametrize(
    ("experts", "dtype", "said"), [(0, torch.float16, "use bf16 or fp32"), (4, torch.bfloat16, "leave --sharding off")]
)
def test_what_cannot_be_sharded_is_refused_in_one_line(experts: int, dtype: torch.dtype, said: str) -> None:
    config = replace(CONFIG, num_experts=experts, moe_intermediate_size=32)
    with pytest.raises(UserError, match=said):
        check_sharding(config, dtype)
