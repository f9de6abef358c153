"""Fine-tunes in one rank of as many as the environment says, and writes down what the test compares.

ddp_worker.py INIT DATA OUT NAME...        trains OUT/NAME for each NAME, `adamw` or `muon`; RESUME=1 resumes them
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cutaway.recipe import Recipe, RunSettings, SFTSettings
from cutaway.stages import sft, shared
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
        # Gradients are compared as they come for the one, clipped for the other.
        settings = replace(SETTINGS, optimizer=name, max_grad_norm=1.0 if name == "muon" else 0.0)
        run = RunSettings(data=(data,), out=str(folder), init=init, resume="RESUME" in os.environ)
        sft.run(Recipe(sft=settings), run)
        if rows:
            (folder / "exact.json").write_text(json.dumps(rows), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


def _recording(make: Callable[..., list[Optimizer]], folder: Path) -> Callable[..., list[Optimizer]]:
    """Optimizers that write the gradients of their first step, on the first rank."""

    def made(model: nn.Module, *arguments: Any) -> list[Optimizer]:
        optimizers = make(model, *arguments)
        gradients: dict[str, Tensor] = {}

        def before_step(*_: Any) -> None:
            if not gradients and os.environ.get("RANK", "0") == "0":
                gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
                save_file(gradients, folder / "gradients.safetensors")

        optimizers[0].register_step_pre_hook(before_step)
        return optimizers

    return made


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
