"""What ranks tell each other, and how a process knows that `torchrun` started it again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cutaway.data.batch import Batch, TaughtBatch
from cutaway.data.pairs import PairBatch
from cutaway.recipe.files import save_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.rl.rollout import Sample, collate
from cutaway.training import distributed
from cutaway.training.distributed import Ranks, launch, restarted, start_ranks

GPU = torch.device("cuda", 0)


def test_numbers_of_the_host_go_past_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(found: list[Tensor], own: Tensor) -> None:
        for one in found:
            one.copy_(own)

    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda total: sent.append(total.fill_(total[0])))
    monkeypatch.setattr(dist, "all_gather", all_gather)
    ranks = Ranks(0, 2, GPU)
    assert ranks.sum_all([1.5, 2.0]) == [1.5, 1.5]
    assert ranks.gather({"a": 0.1}) == [{"a": 0.1}, {"a": 0.1}]
    ranks.barrier()
    assert len(sent) == 3 and {one.device.type for one in sent} == {"cpu"}


@pytest.mark.parametrize(("device", "backend"), [(GPU, "cpu:gloo,cuda:nccl"), (torch.device("cpu"), "gloo")])
def test_ranks_with_gpus_have_a_way_past_them(
    device: torch.device, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "pick_device", lambda local: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: found.append(name))
    assert start_ranks() == Ranks(0, 2, device)
    assert found == [backend]


def test_no_copy_of_a_batch_to_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    four = ids, ids, ids, ids
    sample = Sample(torch.zeros(5, dtype=torch.int64), ids[0] == 0, ids[0] == 0, torch.zeros(4), place=0)
    batches: list[Any] = [
        Batch(*four),
        TaughtBatch(*four, ids.unsqueeze(-1), torch.zeros(1, 4, 1)),
        PairBatch(*four, ids, ids[0]),
        collate([sample]),
    ]
    pinned: list[Tensor] = []
    moved: list[bool] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        moved.append(non_blocking)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    for batch in batches:
        batch.to(GPU)
    tensors = [value for batch in batches for value in vars(batch).values() if isinstance(value, Tensor)]
    assert len(pinned) == len(moved) == len(tensors) and all(moved)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint that the launch `job` with the flags `--steps 5` began."""
    torchrun(monkeypatch, "job")
    (tmp_path / "state" / "step-00000003").mkdir(parents=True)
    (tmp_path / "state" / "step-00000003" / "state.json").touch()
    save_recipe(Recipe(), tmp_path / "recipe.toml", RunSettings(), {"torchrun": launch()})
    return tmp_path


def torchrun(monkeypatch: pytest.MonkeyPatch, job: str, restarts: int = 0, steps: str = "5") -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    monkeypatch.setattr("sys.argv", ["cutaway", "pretrain", "--steps", steps])


def test_a_restart_is_known_on_a_node_that_lost_no_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, "job", restarts=0)
    assert restarted(str(run))


def test_another_launch_is_no_restart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, "other")
    assert not restarted(str(run))
    torchrun(monkeypatch, "other", restarts=1)  # its first start was refused, and torchrun tries again
    assert not restarted(str(run))
    torchrun(monkeypatch, "job", steps="9")
    assert not restarted(str(run))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not restarted(str(run))


def test_jobs_without_a_name_are_told_apart_by_the_count(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, "none")
    save_recipe(Recipe(), run / "recipe.toml", RunSettings(), {"torchrun": launch()})
    assert not restarted(str(run))
    torchrun(monkeypatch, "none", restarts=1)
    assert restarted(str(run))


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(run: Path) -> None:
    (run / "state" / "step-00000003" / "state.json").unlink()
    assert not restarted(str(run))
    assert not restarted(str(run / "missing"))
