"""Trains in one rank of as many as the environment says, and writes down what the test compares.

ddp_worker.py INIT DATA OUT NAME...        trains OUT/NAME for each NAME; RESUME=1 resumes them

NAME is `adamw` or `muon` for fine-tuning, with `fsdp_` in front for the same with sharded weights, with `again_` for
the same with activation checkpointing, or a stage; these read the pairs of $PAIRS, learn from $TEACHER and start from
$EXPERTS.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cutaway.model.sharded import whole
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import DistillSettings, DPOSettings, LoRASettings, RewardSettings, SFTSettings
from cutaway.stages import distill, dpo, lora, reward, sft, shared
from cutaway.training import distributed, loop

STEPS = 20
SETTINGS = SFTSettings(
    steps=STEPS,
    row_length=64,
    batch_tokens=512,
    micro_batch_tokens=128,
    precision="fp32",
    compile="off",
    log_every=1,
    eval_every=10,
    save_every=10,
    sample_every=0,
    holdout_tokens=600,
    muon_lr=0.02,
    adam_lr=0.005,
    workers=1,
)
SHORT: dict[str, Any] = asdict(replace(SETTINGS, steps=2, row_length=128, optimizer="adamw", max_grad_norm=0.0))
del SHORT["sharding"]  # which pretraining and fine-tuning alone have
TEACHER = {"teacher": os.environ.get("TEACHER", ""), "max_new_tokens": 16}
STAGES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "lora": (lora, "lora", {"rank": 4}),
    "dpo": (dpo, "dpo", {}),
    "dpo_lora": (dpo, "dpo", {"rank": 4, "reference": "live", "loss": "ipo"}),
    "kto": (dpo, "dpo", {"loss": "kto"}),
    "reward": (reward, "reward", {}),
    "dpo_experts": (dpo, "dpo", {}),
    "reward_experts": (reward, "reward", {}),
    "distill": (distill, "distill", {**TEACHER, "divergence": "jensen_shannon"}),
    "distill_top_k": (distill, "distill", {**TEACHER, "top_k": 8}),
    "distill_on_policy": (distill, "distill", {**TEACHER, "divergence": "reverse_kl", "on_policy": 0.6}),
}
KINDS = {"lora": LoRASettings, "dpo": DPOSettings, "reward": RewardSettings, "distill": DistillSettings}


def main(init: str, data: str, out: str, names: list[str]) -> None:
    make = shared.optimizers_of
    write = loop.MetricsLog.write
    distributed.stop_ranks = lambda ranks: None  # one group for all runs
    for name in names:
        folder = Path(out) / name
        rows: list[dict[str, Any]] = []

        def record(self: loop.MetricsLog, metrics: dict[str, Any], rows: Any = rows) -> None:
            rows.append(dict(metrics))
            write(self, metrics)

        loop.MetricsLog.write = record  # type: ignore[method-assign]
        shared.optimizers_of = _recording(make, folder)
        run = RunSettings(data=(data,), out=str(folder), init=init, resume="RESUME" in os.environ)
        if name in STAGES:
            stage, table, more = STAGES[name]
            files = (os.environ["PAIRS"],) if table in ("dpo", "reward") else run.data
            settings: Any = KINDS[table](**(SHORT | more))
            start = os.environ["EXPERTS"] if name.endswith("_experts") else init
            stage.run(replace(Recipe(), **{table: settings}), replace(run, data=files, init=start))
        else:
            # Gradients are compared as they come for the one, clipped for the other.
            kind: Any = name.removeprefix("fsdp_").removeprefix("again_")
            settings = replace(SETTINGS, optimizer=kind, max_grad_norm=1.0 if kind == "muon" else 0.0)
            settings = replace(settings, activation_checkpointing="on" if name.startswith("again_") else "off")
            if name.startswith("fsdp_"):
                settings = replace(settings, sharding="on", sample_every=10)
            sft.run(Recipe(sft=settings), run)
        if rows:
            (folder / "exact.json").write_text(json.dumps(rows), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


def _recording(make: Callable[..., list[Optimizer]], folder: Path) -> Callable[..., list[Optimizer]]:
    """Optimizers that write the gradients of their first step, put together, on the first rank."""

    def made(model: nn.Module, *arguments: Any) -> list[Optimizer]:
        optimizers = make(model, *arguments)
        gradients: dict[str, Tensor] = {}

        def before_step(*_: Any) -> None:
            if gradients:
                return
            own = {name: parameter.grad for name, parameter in model.named_parameters()}
            gradients.update({name: whole(grad).clone() for name, grad in own.items() if grad is not None})
            if os.environ.get("RANK", "0") == "0":
                save_file(gradients, folder / "gradients.safetensors")

        optimizers[0].register_step_pre_hook(before_step)
        return optimizers

    return made


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
