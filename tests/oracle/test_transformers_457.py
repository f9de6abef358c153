"""Transformers 4.57, in an environment of its own, agrees with us on the same cases as version 5, both ways."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from network_cases import CASES, our_model, some_ids, their_settings
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutaway.model.weights import load_model, save_model

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("transformers_457.py")


@pytest.fixture(scope="module")
def folder(python457: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process for every case, since importing takes longer than computing."""
    folder = tmp_path_factory.mktemp("transformers-457")
    save_file({"ids": some_ids()}, folder / "ids.safetensors")
    for case in CASES:
        model = our_model(case)
        save_model(model, folder / "ours" / case, model.config)
    settings = {case: their_settings(case) for case in CASES}
    (folder / "theirs.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run([python457, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def logits(folder: Path, name: str) -> Tensor:
    with safe_open(folder / "logits.safetensors", framework="pt") as file:
        assert file.metadata()["transformers"].startswith("4.57.")
        tensor: Tensor = file.get_tensor(name)
    assert tensor.std() > 0.5, "logits too flat to prove anything"
    return tensor


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_reads_ours(case: str, folder: Path) -> None:
    torch.testing.assert_close(logits(folder, f"ours/{case}"), our_model(case)(some_ids()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_we_read_its(case: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(folder / "theirs" / case)
    assert not [record for record in caplog.records if record.name == "cutaway"]
    torch.testing.assert_close(model(some_ids()), logits(folder, f"theirs/{case}"), atol=1e-4, rtol=0)
