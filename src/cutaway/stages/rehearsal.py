"""A rehearsal: the preparation and one step of a run, in a process of its own, to see what time and memory it takes.

    python -m cutaway.stages.rehearsal < request.json > findings.json        what `rehearse` starts

The process does what a run does, on rows of random tokens: it derives what the settings leave open, evaluates, goes
forward and backward through two micro-batches, updates the weights, generates, writes a checkpoint (to a temporary
directory) and draws its curves. Its peak of resident memory is therefore that of the run. It does not compile, unless
`compile` is `on`: that would take longer than everything else.
"""

import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cutaway.data.loader import Batch
from cutaway.errors import UserError
from cutaway.generation.kv_cache import KVCache
from cutaway.model.config import ModelConfig
from cutaway.model.reward import RewardModel
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.files import build
from cutaway.recipe.stages import DPOSettings, LoRASettings, PretrainSettings, RewardSettings, SFTSettings
from cutaway.stages.reference import REFERENCE_FREE
from cutaway.stages.shared import attach_adapter
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.curves import draw_curves
from cutaway.training.derive import FINE_TUNING, NEW_MODEL, PREFERENCE, REWARD
from cutaway.training.distributed import Ranks
from cutaway.training.metrics import MetricsLog, matmul_rate, synchronise
from cutaway.training.network import Network
from cutaway.training.precision import DTYPE_NAMES, keep_freed_memory, pick_device, pick_dtype
from cutaway.training.preparation import optimizers_of, prepare

SAMPLE_TOKENS, GENERATED = 64, 8
"""Tokens of a sample text, and those of them that are timed."""
Stage = Literal["pretrain", "sft", "lora", "dpo", "reward"]
"""Stages that can be rehearsed."""
SETTINGS: dict[Stage, type[TrainSettings]] = {
    "pretrain": PretrainSettings,
    "sft": SFTSettings,
    "lora": LoRASettings,
    "dpo": DPOSettings,
    "reward": RewardSettings,
}
PEAK = {"pretrain": NEW_MODEL, "sft": FINE_TUNING, "lora": FINE_TUNING, "dpo": PREFERENCE, "reward": REWARD}
"""Learning rates as a share of a new model's."""


@dataclass(frozen=True)
class DataSize:
    """What a plan must know of the data."""

    per_epoch: int
    """Useful tokens in one pass."""
    heldout_tokens: int
    useful_share: float = 1.0
    """Share of a row that is not padding."""
    reading_s: float = 0.0
    """Seconds to read it, where every start does that anew: pairs are in no cache."""


@dataclass(frozen=True)
class Findings:
    """What a rehearsal measured; times in seconds, memory in bytes."""

    settings: dict[str, Any]
    """Resolved, `steps` included."""
    rows: int
    accumulation: int
    device: str
    precision: str
    matmul_rate: float
    startup_s: float
    """From the start of the process to the end of the preparation, with reading and the reference's pass over pairs."""
    micro_s: float
    """Forward and backward pass of one micro-batch."""
    update_s: float
    evaluation_s: float
    """One look at the held-out text."""
    sample_s: float
    """Three sample texts of 64 tokens."""
    save_s: float
    curves_s: float
    peak_bytes: int


def staged_model(config: ModelConfig, settings: TrainSettings, filled: bool = False) -> CausalLM:
    """The model as a stage trains it: with its adapter, or scoring; `filled` with a new model's weights."""
    model = RewardModel(config) if isinstance(settings, RewardSettings) else CausalLM(config)
    if filled:
        initialise(model, settings.seed)
    attach_adapter(model, settings)
    model.model.checkpointing = settings.activation_checkpointing == "on"
    return model


def staged_step(network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that costs what the stage's does: DPO's are a few operations on the next-token losses."""
    if isinstance(network.model, RewardModel):
        return network.forward(batch).sum(), {}
    return network.training_loss(batch)


def reference_passes(settings: TrainSettings) -> tuple[float, float]:
    """Forward passes of a reference: over all the data before the first step, and in every step."""
    if not isinstance(settings, DPOSettings) or settings.loss in REFERENCE_FREE:
        return 0.0, 0.0
    mismatched = 1.0 if settings.loss == "kto" else 0.0  # pairs that z0 is estimated on, of either model
    cached = settings.reference == "cached"
    return (1.0 + mismatched, mismatched) if cached else (0.0, 1.0 + 2 * mismatched)


def rehearse(config: ModelConfig, stage: Stage, settings: TrainSettings, size: DataSize) -> Findings:
    """Measure in a new process. Raises UserError with that process's own words where it fails."""
    request: dict[str, Any] = {"config": config.to_dict(), "stage": stage, "size": asdict(size)}
    request |= {"settings": asdict(settings), "spawned": time.time()}
    command = [sys.executable, "-m", "cutaway.stages.rehearsal"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise UserError(f"the rehearsal failed: {words[-1] if words else f'exit code {done.returncode}'}")
    return Findings(**json.loads(done.stdout))


class Uncompiled(Network):
    """Says that it would be compiled, and is not."""

    def compile(self, how: str = "on") -> None:
        """Nothing: a rehearsal only asks whether the run would."""


class RandomRows:
    """A stand-in for the data: full rows of random tokens, but for the padding that the real rows would have."""

    def __init__(self, config: ModelConfig, size: DataSize, rows: int, row_length: int) -> None:
        self.tokens_per_epoch = size.per_epoch
        ids = torch.randint(config.vocab_size, (rows, row_length), generator=torch.Generator().manual_seed(0))
        positions = torch.arange(row_length).expand_as(ids).contiguous()
        documents = torch.zeros_like(ids, dtype=torch.int32)
        padding = torch.arange(rows * row_length).view_as(ids) >= round(size.useful_share * rows * row_length)
        self.batch = Batch(ids, ids.masked_fill(padding, -100), positions, documents.masked_fill(padding, -1))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.batch

    def close(self) -> None:
        """Nothing to stop."""


def measure(request: dict[str, Any]) -> Findings:
    """The rehearsal itself."""
    config = ModelConfig.from_dict(request["config"])
    table = {name: value for name, value in request["settings"].items() if value is not None}
    settings = build(SETTINGS[request["stage"]], table, "rehearsal")
    size = DataSize(**request["size"])
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    ranks = Ranks(0, 1, pick_device())
    # With the weights as torch leaves them (embeddings of unit variance), a micro-batch of nano took 1.85 s, so 1.35 s.
    model = staged_model(config, settings, filled=True)
    kind = Uncompiled if settings.compile == "auto" else Network
    network = kind(model, ranks, pick_dtype(settings.precision, ranks.device))
    plan = prepare(
        network,
        lambda rows: RandomRows(config, size, rows, settings.row_length),
        lambda batch: staged_step(network, batch),
        settings,
        heldout_tokens=size.heldout_tokens,
        peak=PEAK[request["stage"]],
        started=time.monotonic(),
    )
    rate = matmul_rate(ranks.device, network.dtype)
    startup_s = time.time() - request["spawned"]
    optimizers = optimizers_of(model, plan.settings, network.dtype)
    batch = RandomRows(config, size, plan.rows, plan.settings.row_length).batch.to(ranks.device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        log = MetricsLog(out, None)
        look_s = _seconds(lambda: _evaluate(network, batch), ranks.device)
        micro_s = min(_seconds(lambda: _forward_backward(network, batch), ranks.device) for _ in range(2))
        look_s = min(look_s, _seconds(lambda: _evaluate(network, batch), ranks.device))
        update_s = _seconds(lambda: [optimizer.step() for optimizer in optimizers], ranks.device)
        writes = not isinstance(model, RewardModel)
        sample_s = _seconds(lambda: _generate(model), ranks.device) * SAMPLE_TOKENS / GENERATED if writes else 0.0
        save_s = _seconds(lambda: Checkpoints(out, 1).save(1, model, optimizers, {}), ranks.device)
        for step in (1, 2):
            log.write(
                {"step": step, "tokens": step, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0}
            )
        log.close()
        curves_s = _seconds(lambda: draw_curves(out, out / "curves.png"), ranks.device)
    before, always = reference_passes(settings)
    look_s_a_token = look_s / batch.useful_tokens()
    startup_s += size.reading_s + before * look_s_a_token * (size.per_epoch + size.heldout_tokens)
    return Findings(
        settings=asdict(plan.settings),
        rows=plan.rows,
        accumulation=plan.accumulation,
        device=ranks.device.type,
        precision=DTYPE_NAMES[network.dtype],
        matmul_rate=rate,
        startup_s=startup_s,
        micro_s=micro_s + always * look_s,
        update_s=update_s,
        evaluation_s=look_s_a_token * size.heldout_tokens,
        sample_s=sample_s,
        save_s=save_s,
        curves_s=curves_s,
        peak_bytes=peak_memory(ranks.device),
    )


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held: a GPU's, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure begins at the peak of the process that started this one
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forward_backward(network: Network, batch: Batch) -> None:
    loss = staged_step(network, batch)[0]
    torch.autograd.backward(loss / max(1, batch.trained_tokens()))


def _evaluate(network: Network, batch: Batch) -> None:
    with torch.set_grad_enabled(network.compiled):
        staged_step(network, batch)


@torch.no_grad()
def _generate(model: CausalLM) -> None:
    """Three texts, GENERATED tokens each, as the engine writes them: one forward pass a token."""
    device = model.head_weight.device
    cache = KVCache(model.config, slots=3, max_length=GENERATED + 1, device=device)
    for place in range(GENERATED):
        positions = torch.full((3, 1), place, device=device)
        cache.begin(0, positions, place + 1)
        model(torch.zeros_like(positions), positions=positions, cache=cache)


def _seconds(action: Any, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def main() -> int:
    """Read a request, measure, write the findings."""
    logging.disable()
    try:
        print(json.dumps(asdict(measure(json.load(sys.stdin)))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
