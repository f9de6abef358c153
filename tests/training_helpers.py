"""Small jobs for the one loop: a tiny network, conversations of unequal lengths, settings with nothing left open."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from cutaway.data.cache import TokenCache
from cutaway.data.loader import Batch, RowSource
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.base import TrainSettings
from cutaway.training.distributed import Ranks
from cutaway.training.loop import Job
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from model_helpers import tiny_config

ALONE = Ranks(0, 1, torch.device("cpu"))
CXX = shutil.which("g++") or shutil.which("clang++")
"""What compiling for a processor needs."""
SEQ = 16
VOCAB = 61


def network(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Network:
    torch.manual_seed(0)  # modules draw weights of their own before ours; checkpoints hold the generator
    model = CausalLM(tiny_config(**changes))
    initialise(model, seed)
    return Network(model, ALONE, dtype)


def conversations(count: int = 60, seed: int = 0) -> TokenCache:
    """Documents of 2 to 17 tokens, each with at least one trained token: micro-batches differ in how many."""
    draw = random.Random(seed)
    lengths = [draw.randint(2, SEQ + 1) for _ in range(count)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.array([draw.randrange(VOCAB) for _ in range(offsets[-1])], dtype=np.uint16)
    trained = np.array([draw.random() < 0.5 for _ in tokens], dtype=np.uint8)
    trained[offsets[1:] - 1] = 1
    trained[offsets[:-1]] = 0
    counts = np.add.reduceat(trained, offsets[:-1], dtype=np.uint32)
    return TokenCache(
        kind="sft",
        flat_tokens=tokens,
        flat_trained=trained,
        offsets=offsets,
        bytes_per_document=np.array(lengths, dtype=np.uint32),
        targets_per_document=counts,
        hashes=np.arange(count, dtype=np.uint64) * np.uint64(7919),
        meta={},
    )


def settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "steps": 10,
        "row_length": SEQ,
        "batch_tokens": 4 * SEQ,
        "micro_batch_tokens": SEQ,
        "log_every": 1,
        "eval_every": 1000,
        "save_every": 1000,
        "sample_every": 0,
        "max_grad_norm": 0.0,
        "muon_lr": 0.02,
        "adam_lr": 0.01,
        "weight_decay": 0.1,
    }
    return TrainSettings(**(values | changes))


class Recorder(SGD):
    """Plain gradient descent that remembers the gradients and the learning rates it was given."""

    def __init__(self, net: Network, lr: float = 0.0) -> None:
        super().__init__(net.model.parameters(), lr=lr)
        self.names = [name for name, _ in net.model.named_parameters()]
        self.gradients: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.param_groups[0]["peak_lr"] = lr

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        pairs = zip(self.names, parameters, strict=True)
        self.gradients.append({name: parameter.grad.clone() for name, parameter in pairs})
        self.rates.append(self.param_groups[0]["lr"])
        super().step()


def optimizers(net: Network, kind: str = "adamw") -> list[Optimizer]:
    return make_optimizers(
        net.model,
        optimizer="muon" if kind == "muon" else "adamw",
        muon_lr=0.02,
        adam_lr=0.01,
        weight_decay=0.1,
        muon_dtype=torch.float32,
    )


def job(out: Path, net: Network, chosen: Sequence[Optimizer], **changes: Any) -> Job:
    """A job over `conversations()`; `rows` and any field of Job or TrainSettings may be given."""
    names = TrainSettings.__dataclass_fields__
    own = settings(**{key: changes.pop(key) for key in list(changes) if key in names})
    rows = changes.pop("rows", 1)
    values: dict[str, Any] = {
        "stage": "test",
        "out": out,
        "settings": own,
        "total_steps": own.steps,
        "accumulation": 4,
        "network": net,
        "source": RowSource(conversations(), rows=rows, seq=SEQ, seed=own.seed),
        "optimizers": list(chosen),
        "step": lambda batch: (net.token_losses(batch).sum(), {}),
        "normalizer": Batch.trained_tokens,
        "flops_per_token": net.model.flops_per_token(SEQ),
        "matmul_rate": 1e9,
    }
    return Job(**(values | changes))


def rows_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]
