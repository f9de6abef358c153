"""Which arithmetic is chosen, what it may touch, and fp16 with loss scaling through the real loop."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.data.loader import Batch, RowSource
from cutaway.stages import shared
from cutaway.training.distributed import Ranks
from cutaway.training.loop import fit
from cutaway.training.precision import (
    DTYPE_NAMES,
    arithmetic,
    autocast,
    device_memory,
    keep_freed_memory,
    pick_device,
    pick_dtype,
)
from training_helpers import ALONE, SEQ, conversations, job, network, optimizers, rows_of, settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("setting", "dtype"), [(name, dtype) for dtype, name in DTYPE_NAMES.items()])
def test_a_named_precision_is_taken(setting: str, dtype: torch.dtype) -> None:
    assert pick_dtype(setting, CPU) == pick_dtype(setting, CUDA) == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_fp16_on_gpus_without_bf16(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert pick_dtype("auto", CUDA) == dtype


def test_the_log_says_which_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    assert arithmetic("auto", CUDA, torch.float16) == "Tesla T4, matrix products in fp16 (this GPU has no bf16)"
    assert arithmetic("auto", CUDA, torch.bfloat16) == "Tesla T4, matrix products in bf16"
    assert arithmetic("auto", CPU, torch.float32).endswith("in fp32 (this processor has no bf16 units)")
    assert arithmetic("fp32", CPU, torch.float32) == "cpu, matrix products in fp32 (as set)"
    caplog.set_level("INFO", "cutaway")
    for ranks in (ALONE, Ranks(1, 2, CPU)):
        shared.build_network(network().model, settings(precision="fp32"), ranks)
    assert caplog.text.count("device: cpu, matrix products in fp32 (as set)") == 1


def test_memory_is_what_the_process_may_take_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_memory(CPU) == math.inf
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.1)
    assert device_memory(CUDA) == pytest.approx(8e9)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5_000)
    assert device_memory(torch.device("mps")) == 5_000.0


@pytest.mark.parametrize(
    ("avx", "amx", "dtype"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_is_bf16_on_cpus_with_units_for_it(
    avx: bool, amx: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert pick_dtype("auto", CPU) == dtype


def test_auto_on_the_machine_at_hand() -> None:
    assert pick_dtype("auto", pick_device()) in DTYPE_NAMES
    assert isinstance(keep_freed_memory(), bool)


@pytest.mark.parametrize("dtype", list(DTYPE_NAMES))
def test_products_are_in_the_chosen_type_and_losses_in_fp32(dtype: torch.dtype) -> None:
    with autocast(CPU, dtype):
        assert torch.nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)).dtype == dtype
    net = network(dtype=dtype)
    batch = next(RowSource(conversations(), rows=2, seq=SEQ))
    losses = net.token_losses(batch)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert {parameter.dtype for parameter in net.model.parameters()} == {torch.float32}
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in net.model.parameters()
    )
    torch.testing.assert_close(losses, network().token_losses(batch), atol=0.15, rtol=0.05)


@pytest.mark.long
def test_fp16_skips_overflows_and_resumes_with_its_scale(tmp_path: Path) -> None:
    def run(name: str, resume: bool = False, dies: int = 10**9) -> list[dict[str, Any]]:
        net = network(dtype=torch.float16)
        calls = iter(range(10**9))

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            if next(calls) == dies:
                raise KeyboardInterrupt
            return net.token_losses(batch).sum(), {}

        # Far too high at first, so that the first steps overflow and leave the weights alone.
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0 if resume else 2.0**22, growth_interval=4)
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        one = job(out, net, optimizers(net), steps=30, step=step, scaler=scaler, max_grad_norm=1.0, save_every=8)
        fit(one, resume)
        return [row for row in rows_of(out) if "loss" in row]

    rows = run("whole")
    assert rows[0]["grad_norm"] is None
    assert rows[-1]["grad_norm"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    with pytest.raises(KeyboardInterrupt):
        run("resumed", dies=4 * 19)
    run("resumed", resume=True)
    assert (tmp_path / "resumed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
