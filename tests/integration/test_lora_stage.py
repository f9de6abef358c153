"""`cutaway lora` and `cutaway merge` from the command line: files, resume, and mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import SIZES, Town, cutaway, rows_of

from cutaway.errors import UserError
from cutaway.model.weights import load_model, read_safetensors_file
from cutaway.recipe.recipe import RunSettings
from cutaway.stages.shared import prepare_out


@pytest.fixture(scope="module")
def base(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lora") / "base"
    done = cutaway(*town.pretrain(run, 20))
    assert done.returncode == 0, done.stderr
    return run


def lora(town: Town, base: Path, out: Path, steps: int, *more: str) -> list[str]:
    files = ("--data", str(town.sft_data), "--init", str(base), "--out", str(out))
    return ["lora", *files, "--steps", str(steps), *SIZES, "--save-every", "10", "--rank", "4", *more]


@pytest.fixture(scope="module")
def adapter(town: Town, base: Path) -> Path:
    run = base.parent / "adapter"
    done = cutaway(*lora(town, base, run, 30))
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_is_a_peft_directory_that_chats(adapter: Path, base: Path) -> None:
    assert not (adapter / "model.safetensors").exists() and not (adapter / "config.json").exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == f"../{base.name}"
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert size < 0.6 * (base / "model.safetensors").stat().st_size
    bits = [row["heldout_bpb"] for row in rows_of(adapter) if "heldout_bpb" in row]
    assert bits[-1] < bits[0]
    done = cutaway("chat", str(adapter), "--prompt", "hello", "--max-new-tokens", "4", "--seed", "1")
    assert done.returncode == 0, done.stderr


def test_resume_is_exact(town: Town, base: Path, adapter: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cutaway(*lora(town, base, run, 30, "--keep-checkpoints", "9"))
    assert done.returncode == 0, done.stderr
    for step in (20, 30):
        for file in (run / "state" / f"step-{step:08d}").iterdir():
            file.unlink()
        (run / "state" / f"step-{step:08d}").rmdir()
    done = cutaway("lora", "--resume", "--out", str(run))
    assert done.returncode == 0, done.stderr
    expected, _ = read_safetensors_file(adapter / "adapter_model.safetensors")
    for name, tensor in read_safetensors_file(run / "adapter_model.safetensors")[0].items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_that_had_not_yet_a_checkpoint_begins_again(adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state")
    run = RunSettings(init=str(base), out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds a model that is not a run of this kind"):
        prepare_out(run)  # a finished adapter without its state is not overwritten
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    assert prepare_out(run) == tmp_path / "run"


def test_merge(adapter: Path, tmp_path: Path) -> None:
    done = cutaway("merge", str(adapter), "--out", str(tmp_path / "merged"))
    assert done.returncode == 0, done.stderr
    merged, expected = load_model(tmp_path / "merged"), load_model(adapter)
    ids = torch.arange(20).unsqueeze(0)
    torch.testing.assert_close(merged(ids), expected(ids))
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    done = cutaway("merge", str(adapter), "--out", str(tmp_path / "merged"))
    assert done.returncode == 2 and "is not empty" in done.stderr


def test_mistakes_are_one_line(town: Town, base: Path, adapter: Path, tmp_path: Path) -> None:
    cases = [
        (lora(town, adapter, tmp_path / "a", 5), "merge it first"),
        (lora(town, base, tmp_path / "b", 5, "--targets", "wqkv"), "no linear layer is named 'wqkv'"),
        (lora(town, base, tmp_path / "c", 5, "--dropout", "2"), "dropout is 2.0"),
        (["lora", "--resume", "--out", str(adapter), "--rank", "8"], "cannot change it"),
        (["merge", str(base), "--out", str(tmp_path / "d")], "not an adapter directory"),
    ]
    for arguments, says in cases:
        done = cutaway(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert says in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
