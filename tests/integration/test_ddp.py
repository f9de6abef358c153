"""Two ranks are one process with twice the accumulation, whatever their micro-batches hold; and one may take over."""

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
from run_helpers import Town, environment
from safetensors.torch import load_file

from cutaway.data.cache import build_cache, split_holdout
from cutaway.data.loader import RowSource
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, save_model
from cutaway.recipe import ModelSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import derive_model

pytestmark = pytest.mark.slow
KINDS = ("adamw", "muon")
WORKER = str(Path(__file__).with_name("ddp_worker.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def model(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that fine-tuning starts from."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.load(town.tokenizer)
    settings = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    config, _ = derive_model(settings, tokenizer.vocab_size, 64, (tokenizer.im_end_id, tokenizer.eos_id))
    network = CausalLM(config)
    initialise(network, 0)
    tokenizer.save(folder)
    save_model(network, folder, config)
    return folder


def work(launcher: list[str], model: Path, town: Town, out: Path, *names: str, **more: str) -> None:
    command = [*launcher, WORKER, str(model), str(town.sft_data), str(out), *names]
    env = environment() | {"GLOO_SOCKET_IFNAME": "lo"} | more
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(model: Path, town: Town, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same runs by two ranks, and by one."""
    root = tmp_path_factory.mktemp("ddp")
    work(TORCHRUN, model, town, root / "two", *KINDS)
    work([sys.executable], model, town, root / "one", *KINDS)
    return root / "two", root / "one"


def exact(run: Path, key: str) -> list[float]:
    rows: list[dict[str, Any]] = json.loads((run / "exact.json").read_text(encoding="utf-8"))
    return [row[key] for row in rows if key in row]


def test_micro_batches_train_unequal_numbers_of_tokens(model: Path, town: Town) -> None:
    tokenizer = Tokenizer.load(model)
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


def test_one_process_goes_on_where_two_stopped(
    runs: tuple[Path, Path], model: Path, town: Town, tmp_path: Path
) -> None:
    shutil.copytree(runs[0] / "adamw", tmp_path / "adamw")
    shutil.rmtree(tmp_path / "adamw" / "state" / f"step-{STEPS:08d}")
    work([sys.executable], model, town, tmp_path, "adamw", RESUME="1")
    np.testing.assert_allclose(exact(tmp_path / "adamw", "loss"), exact(runs[1] / "adamw", "loss")[10:], atol=1e-5)
    ended, expected = (load_file(run / "adamw" / "model.safetensors") for run in (tmp_path, runs[1]))
    torch.testing.assert_close(ended, expected, atol=1e-5, rtol=0)


def test_two_go_on_where_one_stopped(runs: tuple[Path, Path], model: Path, town: Town, tmp_path: Path) -> None:
    shutil.copytree(runs[1] / "adamw", tmp_path / "adamw")
    shutil.rmtree(tmp_path / "adamw" / "state" / f"step-{STEPS:08d}")
    work(TORCHRUN, model, town, tmp_path, "adamw", RESUME="1")
    np.testing.assert_allclose(exact(tmp_path / "adamw", "loss"), exact(runs[1] / "adamw", "loss")[10:], atol=1e-5)
