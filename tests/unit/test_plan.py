"""The arithmetic of a plan: counted against real forward passes, inverted, and read out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.cli import main
from cutaway.cli.plan import gpu_table
from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.transformer import CausalLM
from cutaway.stages import estimate
from cutaway.stages.rehearsal import DataSize
from cutaway.training.optim import make_optimizers, muon_cost
from cutaway.training.plan import (
    FILLED,
    GPUS,
    Work,
    activation_bytes,
    clock,
    cost,
    evaluation_seconds,
    find_gpu,
    run_flops,
    run_seconds,
    step_memory,
    steps_within,
    tokens_that_fit,
)
from model_helpers import kept_bytes_of, random_ids, random_model, tiny_config

EXPERTS = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 88}
SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "head_dim": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True},
        {"qk_norm": False},
        {"num_key_value_heads": 4, "qk_norm": True},
        {"num_hidden_layers": 4},
        EXPERTS,
    ],
)
def test_activations_are_what_a_forward_pass_keeps(changes: dict[str, Any], dtype: torch.dtype) -> None:
    config, rows, seq = tiny_config(**(SHAPE | changes)), 3, 40
    found = kept_bytes_of(random_model(config), rows, seq, dtype) / (rows * seq)
    assert activation_bytes(config, seq, dtype.itemsize) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("adapters", [False, True])
def test_state_of_a_step_is_what_the_optimizers_hold(kind: str, adapters: bool) -> None:
    model = CausalLM(tiny_config(qk_norm=True))
    if adapters:
        adapt(model, LoRAConfig(rank=2), seed=0)
    chosen = "muon" if kind == "muon" else "adamw"
    optimizers = make_optimizers(model, optimizer=chosen, muon_lr=0.1, adam_lr=0.1, weight_decay=0.0)
    ids = random_ids(model.config, 2, 8)
    model(ids, targets=ids).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    memory = step_memory(model, 2, 8, 4, kind)
    tensors = [value for one in optimizers for state in one.state.values() for value in state.values()]
    assert memory.optimizer == sum(tensor.nbytes for tensor in tensors if tensor.ndim)
    assert memory.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert memory.weights == sum(weight.nbytes for weight in model.parameters())
    assert memory.total == sum(vars(memory).values())


def test_flops_of_a_run() -> None:
    model = CausalLM(tiny_config())
    assert run_flops(model, 10, 64, 16, "adamw") == Work(640 * model.flops_per_token(16), 0, 0)
    assert run_flops(model, 10, 64, 16, "muon").optimizer == 10 * muon_cost(model)
    model.model.checkpointing = True
    work = run_flops(model, 10, 64, 16, "muon")
    assert work.recomputed == 640 * model.recomputed_flops_per_token(16)
    assert work.total == work.model + work.recomputed + work.optimizer
    # The layers' forward pass but for its last product, of three times as much work and the head's.
    assert 0.15 < work.recomputed / work.model < 0.33
    assert [share.split(" for ")[1] for share in work.shares("muon")] == ["activations computed again", "muon"]


@pytest.mark.parametrize("eval_every", [None, 1, 7])
def test_steps_within_a_time_are_the_most_that_fit(eval_every: int | None) -> None:
    for seconds in (50.0, 100.0, 333.0):
        steps = steps_within(seconds, 1.5, 0.6, eval_every)
        assert run_seconds(steps, 1.5, 0.6, eval_every) <= seconds + 0.6
        assert run_seconds(steps + 2, 1.5, 0.6, eval_every) > seconds
    assert steps_within(0.1, 1.5, 0.6, eval_every) == 1


def test_money_and_clock() -> None:
    assert cost(1800, 2.5) == pytest.approx(1.25)
    assert evaluation_seconds(3000, 0.01) == pytest.approx(10.0)
    assert [clock(seconds) for seconds in (0, 61, 3661, 200_000)] == ["0:00", "1:01", "1:01:01", "2 d 7 h"]


def test_cards_are_found_and_every_row_has_sources() -> None:
    assert find_gpu("RTX 3090") is GPUS["rtx3090"] and find_gpu("a100-80") is find_gpu("A10080")
    with pytest.raises(UserError, match="gpu is 'abacus', must be one of t4"):
        find_gpu("abacus")
    for gpu in GPUS.values():
        assert gpu.source and gpu.rent_source and 10e12 < gpu.flops < 2e15 and 0 < gpu.rent < 10
    assert len(gpu_table().splitlines()) == len(GPUS) + 1


def test_peaks_follow_from_multiprocessors_and_clocks() -> None:
    """NVIDIA's architecture papers: multiprocessors, FLOPs of one in a clock (dense, fp32 sums), boost clock in GHz."""
    parts = {
        "t4": (40, 1024, 1.59),
        "l4": (58, 1024, 2.04),
        "rtx3060": (28, 512, 1.777),
        "rtx3070": (46, 512, 1.725),
        "rtx3090": (82, 512, 1.695),
        "rtx4090": (128, 512, 2.52),
        "rtx5090": (170, 512, 2.407),
        "a100-40": (108, 2048, 1.41),
        "a100-80": (108, 2048, 1.41),
        "h100": (132, 4096, 1.83),
        "h200": (132, 4096, 1.83),
    }
    peaks = {name: units * each * ghz * 1e9 for name, (units, each, ghz) in parts.items()}
    assert peaks == pytest.approx({name: gpu.flops for name, gpu in GPUS.items()}, rel=3e-3)


def test_bandwidths_follow_from_bus_and_rate() -> None:
    """Bits of the bus and gigabits a second of each (for HBM3 and HBM3e no public rate is given)."""
    parts = {"t4": (256, 10), "l4": (192, 12.5), "rtx3090": (384, 19.5), "rtx4090": (384, 21), "rtx5090": (512, 28)}
    parts |= {"rtx3060": (192, 15), "rtx3070": (256, 14)}
    parts |= {"a100-40": (5120, 2.43), "a100-80": (5120, 3.186)}
    widths = {name: bits / 8 * rate * 1e9 for name, (bits, rate) in parts.items()}
    assert widths == pytest.approx({name: GPUS[name].bandwidth for name in parts}, rel=1e-3)


def test_a_plan_on_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert main.main(["plan", "--recipe", "small-moe", "--gpu", "rtx3090", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    for words in ("206.31M parameters, 64.75M active", "USD", "record_curve.py RUN"):
        assert words in text
    assert "nine tenths" not in text
    pretrain, sft = json.loads(out.read_text(encoding="utf-8"))
    assert (pretrain["stage"], sft["stage"]) == ("pretrain", "sft")
    work = pretrain["flops"] + pretrain["optimizer_flops"]
    assert pretrain["seconds"] == pytest.approx(work / (0.4 * 71e12), rel=0.01)


@pytest.mark.parametrize(("recipe", "card", "memory"), [("mini", "rtx3070", 8e9), ("small", "rtx3060", 12e9)])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "lora", "dpo", "reward"])
def test_mini_fits_eight_gigabytes_and_small_twelve(
    recipe: str, card: str, memory: float, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    command = ["plan", stage, "--recipe", recipe, "--gpu", card, "--json", str(out)]
    assert GPUS[card].memory == memory
    assert main.main(command) == 0
    assert "nine tenths" not in capsys.readouterr().out
    plain = json.loads(out.read_text(encoding="utf-8"))[0]
    assert plain["peak_bytes"] <= FILLED * memory
    assert main.main([*command, "--activation-checkpointing", "on", "--micro-batch-tokens", "65536"]) == 0
    again = json.loads(out.read_text(encoding="utf-8"))[0]
    assert "more for activations computed again" in capsys.readouterr().out
    assert again["memory"]["activations"] < plain["memory"]["activations"]
    assert 1.15 < again["seconds"] / plain["seconds"] < 1.34


def test_a_micro_batch_is_the_largest_that_fits() -> None:
    model = CausalLM(tiny_config())

    def needed(tokens: int) -> int:
        return step_memory(model, tokens // 32, 32, 2, "adamw").total

    for memory in (3e7, 1e8, 2e8):
        tokens = tokens_that_fit(model, 32, 2, memory)
        assert needed(tokens) <= FILLED * memory < needed(2 * tokens)
    assert tokens_that_fit(model, 32, 2, 1.0) == 32
    assert tokens_that_fit(model, 100_000, 2, math.inf) == 100_000
    assert tokens_that_fit(model, 32, 2, math.inf) == 65536


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--micro-batch-tokens", "65536"], "lower --micro-batch-tokens"),
        (["--row-length", "65536"], "--activation-checkpointing on, a larger card or a shorter row"),
        (["--row-length", "524288", "--activation-checkpointing", "on"], "8 GB: a larger card or a shorter row"),
    ],
)
def test_what_would_not_fit_says_what_to_do(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["plan", "pretrain", "--recipe", "mini", "--gpu", "rtx3070", *flags]) == 0
    assert words in capsys.readouterr().out


def test_fewer_tokens_and_a_faster_card_cost_less(tmp_path: Path) -> None:
    def seconds(*flags: str) -> float:
        out = tmp_path / "plan.json"
        assert main.main(["plan", "pretrain", "--recipe", "mini", "--json", str(out), *flags]) == 0
        value: float = json.loads(out.read_text(encoding="utf-8"))[0]["seconds"]
        return value

    base = seconds("--gpu", "rtx3090", "--tokens", "100000000")
    assert seconds("--gpu", "rtx4090", "--tokens", "100000000") < base / 2
    assert seconds("--gpu", "rtx3090", "--tokens", "10000000") == pytest.approx(base / 10, rel=0.1)
    assert seconds("--gpu", "rtx3090", "--epochs", "1", "--data-tokens", "100000000") == pytest.approx(base, rel=0.01)
    assert seconds("--gpu", "rtx3090", "--tokens", "100000000", "--mfu", "0.2") == pytest.approx(2 * base, rel=0.01)


def test_pairs_cost_what_their_reference_asks_for(tmp_path: Path) -> None:
    def plan(*flags: str) -> dict[str, Any]:
        out = tmp_path / "plan.json"
        sizes = ("--gpu", "rtx3090", "--epochs", "1", "--data-tokens", "3000000")
        assert main.main(["plan", *flags, *sizes, "--json", str(out)]) == 0
        (found,) = json.loads(out.read_text(encoding="utf-8"))
        return dict(found)

    cached, free, live = plan("dpo"), plan("dpo", "--loss", "simpo"), plan("dpo", "--rank", "4", "--reference", "live")
    assert cached["optimizer"] == "adamw" and cached["steps"] == free["steps"]
    # One forward pass over the data is a third of an epoch.
    assert 1.25 < cached["seconds"] / free["seconds"] < 1.4
    assert live["memory"]["optimizer"] < 0.2 * cached["memory"]["optimizer"]
    adapted = plan("dpo", "--rank", "4", "--loss", "simpo")
    assert 1.25 < live["seconds"] / adapted["seconds"] < 1.4
    reward = plan("reward")
    assert reward["memory"]["head"] < 0.001 * cached["memory"]["head"] and reward["seconds"] < free["seconds"]


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_horizon_in_minutes_is_kept_where_rows_have_padding(
    stage: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, out = DataSize(20_000_000, 65536, useful_share=share), tmp_path / "plan.json"
    monkeypatch.setattr(estimate, "_data_size", lambda *_: (size, "given"))
    flags = ("--recipe", "mini", "--gpu", "rtx3090", "--minutes", "10", "--json", str(out))
    assert main.main(["plan", stage, *flags]) == 0
    (found,) = json.loads(out.read_text(encoding="utf-8"))
    assert 540 < found["seconds"] <= 600
    assert found["tokens"] == pytest.approx(found["steps"] * found["batch_tokens"] * share)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu", "abacus"], "gpu is 'abacus', must be one of"),
        (["--recipe", "huge"], "no recipe 'huge'"),
        (["pretrain", "--data", "x.jsonl"], "--data needs --init"),
        (["--data", "x.jsonl", "--init", "y"], "name it: cutaway plan pretrain"),
        (["--mfu", "2"], "--mfu is 2.0, must be above 0"),
        (["--data-tokens", "0"], "--data-tokens is 0, must be at least 1"),
        (["pretrain", "--steps", "5", "--tokens", "7"], "--tokens and --steps both set the horizon"),
        (["sft", "--row-length", "0", "--gpu", "t4"], "row_length is 0, must be at least 1"),
        (["pretrain", "--data", "x.jsonl", "--init", "nowhere"], "nowhere"),
        (["--hidden-size", "30", "--gpu", "t4"], "hidden_size 30 is no multiple"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["plan", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
