"""Checkpoints: exact, whole after a crash at any file operation, and passed over when they are damaged."""

import ast
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

import cutaway
from cutaway.errors import UserError
from cutaway.model import weights
from cutaway.model.transformer import CausalLM
from cutaway.training import checkpoint
from cutaway.training.checkpoint import Checkpoints
from training_helpers import network, optimizers

Pair = tuple[CausalLM, list[Optimizer]]


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line may have taken the notes for itself in a test before."""
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("cutaway"), "handlers", [])


def pair(kind: str = "muon", seed: int = 0, **changes: Any) -> Pair:
    net = network(seed, **changes)
    return net.model, optimizers(net, kind)


def train(one: Pair, steps: int = 1) -> None:
    """Steps with gradients that depend on the weights, as real ones do."""
    for _ in range(steps):
        for parameter in one[0].parameters():
            parameter.grad = (parameter.detach() * 3).sin()
        for optimizer in one[1]:
            optimizer.step()


def everything(one: Pair) -> dict[str, Tensor]:
    """Weights and optimizer states by name, as they are now."""
    names = {id(parameter): name for name, parameter in one[0].named_parameters()}
    found = {name: tensor.clone() for name, tensor in one[0].state_dict().items()}
    for number, optimizer in enumerate(one[1]):
        for parameter, state in optimizer.state.items():
            found |= {f"{number}.{names[id(parameter)]}.{key}": value.clone() for key, value in state.items()}
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def saved(run: Path, keep: int, *steps: int) -> dict[int, dict[str, Tensor]]:
    """A run with checkpoints of these steps, and what each of them holds."""
    one, contents = pair(), {}
    for step in steps:
        train(one)
        Checkpoints(run, keep).save(step, *one, {"tokens": step})
        contents[step] = everything(one)
    return contents


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_restoring_gives_everything_back_and_training_goes_on_alike(kind: str, tmp_path: Path) -> None:
    one = pair(kind)
    train(one, 3)
    torch.manual_seed(7)
    Checkpoints(tmp_path, 2).save(3, *one, {"tokens": 12, "metrics": {"loss": 0.1}})
    drawn = torch.rand(3)
    other = pair(kind, seed=1)
    train(other)
    state = Checkpoints(tmp_path, 2).restore(*other)
    assert (state["step"], state["tokens"], state["metrics"]) == (3, 12, {"loss": 0.1})
    assert torch.equal(torch.rand(3), drawn)
    assert equal(everything(one), everything(other))
    train(one, 2)
    train(other, 2)
    assert equal(everything(one), everything(other))


def test_a_restored_state_does_not_live_in_the_file(tmp_path: Path) -> None:
    contents = saved(tmp_path, 1, 5)
    other = pair(seed=1)
    Checkpoints(tmp_path, 1).restore(*other)
    for path in (tmp_path / "state").rglob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    assert equal(everything(other), contents[5])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_the_newest_is_published(keep: int, tmp_path: Path) -> None:
    saved(tmp_path, keep, 2, 4, 6, 10)
    checkpoints = Checkpoints(tmp_path, keep)
    assert checkpoints.steps() == [2, 4, 6, 10][-keep:]
    newest = tmp_path / "state" / "step-00000010" / "model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == newest.read_bytes()
    assert {path.name for path in newest.parent.iterdir()} == {
        *("model.safetensors", "optimizer.safetensors", "state.json")
    }


def test_where_links_are_not_possible_the_weights_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    saved(tmp_path, 1, 1, 2)
    newest = tmp_path / "state" / "step-00000002" / "model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == newest.read_bytes()


class _Crash(BaseException):
    """The power goes: nothing after this instant is run, no handler either."""


class _Fuse:
    """Counts file operations under a folder by Python's audit events, and crashes at the chosen one."""

    folder: str | None = None
    left = 0

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        if any(isinstance(one, (str, os.PathLike)) for one in arguments):
            self.burn()

    def burn(self) -> None:
        if self.left == 0:
            self.folder = None
            raise _Crash
        self.left -= 1


FUSE = _Fuse()


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Fuse]:
    """Python's own operations, and the writing of tensors, which can stop in the middle of a file."""
    if FUSE.hook not in _INSTALLED:
        sys.addaudithook(FUSE.hook)
        _INSTALLED.append(FUSE.hook)

    def torn(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if FUSE.folder is not None and FUSE.left == 0:
            folder, FUSE.folder = FUSE.folder, None
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            FUSE.folder = folder
        if FUSE.folder is not None:
            FUSE.burn()

    monkeypatch.setattr(weights, "save_file", torn)
    yield FUSE
    FUSE.folder = None


_INSTALLED: list[Any] = []


@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_at_any_file_operation_leaves_a_whole_checkpoint(keep: int, fuse: _Fuse, tmp_path: Path) -> None:
    contents = saved(tmp_path / "before", keep, 1, 2)
    one = pair()
    Checkpoints(tmp_path / "before", keep).restore(*one)
    train(one)
    contents[3] = everything(one)
    seen = set()
    for operation in range(1000):
        run = tmp_path / str(operation)
        shutil.copytree(tmp_path / "before", run)
        fuse.folder, fuse.left = str(run), operation
        try:
            Checkpoints(run, keep).save(3, *one, {"tokens": 3})
            finished = True
        except _Crash:
            finished = False
        fuse.folder = None
        published = weights.read_safetensors(run)
        assert any(equal(published, {name: whole[name] for name in published}) for whole in (contents[2], contents[3]))
        other = pair(seed=1)
        state = Checkpoints(run, keep).restore(*other)
        assert state["step"] in (2, 3)
        assert equal(everything(other), contents[state["step"]])
        published = weights.read_safetensors(run)
        assert equal(published, {name: contents[state["step"]][name] for name in published})
        # And what the crash left behind is in nobody's way.
        train(other)
        Checkpoints(run, keep).save(4, *other, {})
        assert not list(run.rglob("*partial*"))
        assert len(Checkpoints(run, keep).steps()) <= keep
        seen.add(state["step"])
        if finished:
            break
        shutil.rmtree(run)
    assert finished
    assert operation > 15
    assert seen == {2, 3}


FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_torn_newest_is_passed_over_with_a_warning(
    name: str, share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = saved(tmp_path, 2, 4, 8)
    path = tmp_path / "state" / "step-00000008" / name
    path.write_bytes(path.read_bytes()[: int(share * (path.stat().st_size - 1))])
    other = pair(seed=1)
    assert Checkpoints(tmp_path, 2).restore(*other)["step"] == 4
    assert equal(everything(other), contents[4])
    assert len(caplog.records) == 1
    assert "step-00000008: damaged" in caplog.text
    published = weights.read_safetensors(tmp_path)
    assert equal(published, {key: contents[4][key] for key in published})


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_never_displaces_a_new_one(keep: int, tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 8)
    (tmp_path / "state" / "step-00000008" / "model.safetensors").write_bytes(b"torn")
    other = pair(seed=1)
    Checkpoints(tmp_path, keep).restore(*other)
    train(other)
    Checkpoints(tmp_path, keep).save(6, *other, {})
    assert Checkpoints(tmp_path, keep).steps() == [4, 6][-keep:]
    assert Checkpoints(tmp_path, keep).restore(*pair(seed=2))["step"] == 6


def test_nothing_whole_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 8)
    for path in (tmp_path / "state").rglob("model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Checkpoints(tmp_path, 2).restore(*pair())
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Checkpoints(tmp_path / "none", 2).restore(*pair())


def test_another_shape_and_other_optimizers_are_one_line(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    with pytest.raises(UserError, match="made by a model of another shape") as error:
        Checkpoints(tmp_path, 2).restore(*pair(hidden_size=48))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"made with \['Muon', 'AdamW'\], this run has \['AdamW'\]"):
        Checkpoints(tmp_path, 2).restore(*pair("adamw"))


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (weights, "save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        (weights, "save_file", NO_SPACE),
        (weights.os, "fsync", NO_SPACE),
        (weights.os, "replace", NO_SPACE),
        (checkpoint.os, "rename", NO_SPACE),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    module: Any, name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = saved(tmp_path, 1, 4)
    one = pair()
    Checkpoints(tmp_path, 1).restore(*one)
    train(one)

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(UserError, match=r"step 8 could not be written .*No space.*step 4 is intact") as caught:
            Checkpoints(tmp_path, 1).save(8, *one, {})
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "state").iterdir() if path.name != "step-00000004"]
    other = pair(seed=1)
    assert Checkpoints(tmp_path, 1).restore(*other)["step"] == 4
    assert equal(everything(other), contents[4])
    # With room again, the same step is written.
    Checkpoints(tmp_path, 1).save(8, *one, {})
    assert Checkpoints(tmp_path, 1).steps() == [8]


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    """But for one place: the process that exists to run a model's code, once it has given up its rights."""
    forbidden_modules = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    forbidden_calls = {"eval", "exec", "torch.load", "torch.save", "pickle.load", "np.load", "numpy.load"}
    found = []
    for path in sorted(Path(cutaway.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            bad = forbidden_modules.intersection(names)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden_calls:
                bad = bad | {ast.unparse(node.func)}
            found += [f"{path.name}: {name}" for name in bad]
    assert found == ["sandbox_child.py: exec"]
