"""Two ranks are one process with twice the accumulation, whatever their micro-batches hold; and one may take over.

With `fsdp_` in front each rank holds half of every weight (one process alone then holds all of it).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddp_worker import SETTINGS, STEPS
from run_helpers import Town, blank_model, environment
from safetensors.torch import load_file

from cutaway.data.cache import build_cache, split_holdout
from cutaway.data.loader import RowSource
from cutaway.tokenization.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
KINDS = ("adamw", "muon", "again_adamw", "fsdp_adamw", "fsdp_muon")
STAGES = (
    *("lora", "dpo", "dpo_lora", "dpo_experts", "kto", "reward", "reward_experts"),
    *("distill", "distill_top_k", "distill_on_policy"),
)
WORKER = str(Path(__file__).with_name("ddp_worker.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def work(launcher: list[str], blank: Path, town: Town, out: Path, *names: str, **more: str) -> None:
    command = [*launcher, WORKER, str(blank), str(town.sft_data), str(out), *names]
    env = environment() | {"GLOO_SOCKET_IFNAME": "lo"} | more
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(blank: Path, town: Town, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same runs by two ranks, and by one."""
    root = tmp_path_factory.mktemp("ddp")
    work(TORCHRUN, blank, town, root / "two", *KINDS)
    work([sys.executable], blank, town, root / "one", *KINDS)
    return root / "two", root / "one"


def exact(run: Path, key: str) -> list[float]:
    rows: list[dict[str, Any]] = json.loads((run / "exact.json").read_text(encoding="utf-8"))
    return [row[key] for row in rows if key in row]


def test_micro_batches_train_unequal_numbers_of_tokens(blank: Path, town: Town) -> None:
    tokenizer = Tokenizer.load(blank)
    cache = build_cache([town.sft_data], tokenizer, "sft", workers=1, max_tokens=SETTINGS.row_length + 1)
    train, _ = split_holdout(cache, SETTINGS.holdout_tokens, SETTINGS.seed)
    source = RowSource(cache, train, rows=2, seq=SETTINGS.row_length, seed=SETTINGS.seed)
    counts = [next(source).trained_tokens() for _ in range(4)]
    assert len(set(counts)) > 1
    assert counts[0] + counts[2] != counts[1] + counts[3]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_the_first_step_agree(kind: str, runs: tuple[Path, Path]) -> None:
    two, one = (load_file(run / kind / "gradients.safetensors") for run in runs)
    assert two.keys() == one.keys()
    for name, gradient in one.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_every_step_agrees(kind: str, runs: tuple[Path, Path]) -> None:
    two, one = (exact(run / kind, "loss") for run in runs)
    assert len(one) == STEPS
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)
    assert one[-1] < one[0] - 0.3
    assert exact(runs[0] / kind, "tokens") == exact(runs[1] / kind, "tokens")
    two, one = (exact(run / kind, "heldout_bpb") for run in runs)
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


def test_activation_checkpointing_changes_no_gradient_of_two_ranks(runs: tuple[Path, Path]) -> None:
    again, plain = (load_file(runs[0] / kind / "gradients.safetensors") for kind in ("again_adamw", "adamw"))
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", ["fsdp_adamw", "fsdp_muon"])
def test_sharded_weights_write_the_texts_and_the_files_of_whole_ones(kind: str, runs: tuple[Path, Path]) -> None:
    two, one = ((run / kind / "samples.jsonl").read_text(encoding="utf-8") for run in runs)
    assert two == one
    assert two.count("\n") == 6
    for file in ("model.safetensors", f"state/step-{STEPS:08d}/optimizer.safetensors"):
        two_tensors, one_tensors = (load_file(run / kind / file) for run in runs)
        assert two_tensors.keys() == one_tensors.keys()
        for name, tensor in one_tensors.items():
            if not name.startswith("rng"):
                torch.testing.assert_close(two_tensors[name], tensor, atol=1e-5, rtol=1e-4)


def resumed(source: Path, kind: str, target: Path) -> None:
    """A copy of a run as it was ten steps before its end."""
    shutil.copytree(source / kind, target / kind)
    shutil.rmtree(target / kind / "state" / f"step-{STEPS:08d}")


@pytest.mark.parametrize("kind", ["adamw", "fsdp_adamw", "fsdp_muon"])
def test_one_process_goes_on_where_two_stopped(
    kind: str, runs: tuple[Path, Path], blank: Path, town: Town, tmp_path: Path
) -> None:
    resumed(runs[0], kind, tmp_path)
    work([sys.executable], blank, town, tmp_path, kind, RESUME="1")
    np.testing.assert_allclose(exact(tmp_path / kind, "loss"), exact(runs[1] / kind, "loss")[10:], atol=1e-5)
    ended, expected = (load_file(run / kind / "model.safetensors") for run in (tmp_path, runs[1]))
    torch.testing.assert_close(ended, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["adamw", "fsdp_adamw", "fsdp_muon"])
def test_two_go_on_where_one_stopped(
    kind: str, runs: tuple[Path, Path], blank: Path, town: Town, tmp_path: Path
) -> None:
    resumed(runs[1], kind, tmp_path)
    work(TORCHRUN, blank, town, tmp_path, kind, RESUME="1")
    np.testing.assert_allclose(exact(tmp_path / kind, "loss"), exact(runs[1] / kind, "loss")[10:], atol=1e-5)


@pytest.fixture(scope="module")
def stages(
    blank: Path, wide: Path, pairs: Path, town: Town, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two steps of every other stage by two ranks, and by one."""
    root = tmp_path_factory.mktemp("stages")
    (root / "experts").mkdir()
    experts = blank_model(town, root / "experts", num_experts=4, router_aux_loss_coef=0.5)
    more = {"PAIRS": str(pairs), "TEACHER": str(wide), "EXPERTS": str(experts)}
    work(TORCHRUN, blank, town, root / "two", *STAGES, **more)
    work([sys.executable], blank, town, root / "one", *STAGES, **more)
    return root / "two", root / "one"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_gradients_of_one_process(stage: str, stages: tuple[Path, Path]) -> None:
    two, one = (load_file(run / stage / "gradients.safetensors") for run in stages)
    assert two.keys() == one.keys()
    # Before the first step LoRA's A has no gradient, since B is 0; of a new reward model only the score has one.
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-4
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=1e-5)
    for key in ("loss", "heldout_loss"):
        np.testing.assert_allclose(exact(stages[0] / stage, key), exact(stages[1] / stage, key), atol=1e-4, rtol=0)
