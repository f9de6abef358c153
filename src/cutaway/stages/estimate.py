"""What a stage of a recipe costs before it runs: by a card's public figures, or by a rehearsal on this machine.

The arithmetic is in `training/plan.py`, the rehearsal in `stages/rehearsal.py`.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cutaway.data.loader import RowSource
from cutaway.data.pairs import PairSource
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.recipe.base import TrainSettings
from cutaway.recipe.recipe import PlanSettings, Recipe, RunSettings
from cutaway.stages import pairwise, supervised
from cutaway.stages.rehearsal import PEAK, DataSize, Findings, Stage, reference_passes, rehearse, staged_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import derive_batch, derive_model, derive_optimizer
from cutaway.training.distributed import Ranks
from cutaway.training.horizon import RESERVE
from cutaway.training.plan import (
    Gpu,
    Work,
    evaluation_seconds,
    find_gpu,
    run_flops,
    run_seconds,
    step_memory,
    steps_within,
    tokens_that_fit,
)
from cutaway.training.precision import pick_device
from cutaway.training.preparation import COMPILED_SPEED, check_settings, horizon_tokens, split_batch
from cutaway.training.reference import load_reference

ASSUMED = {
    "pretrain": "pretrain_t2t_mini",
    "sft": "sft_t2t_mini",
    "lora": "sft_t2t_mini",
    "dpo": "dpo",
    "reward": "dpo",
}
"""The published set that a horizon in epochs is taken for where no data is named."""
BYTES_A_TOKEN = 3.2
"""Of the default vocabulary on Chinese and English text (`benchmarks/compression.py`)."""
ROWS = 16
"""Rows from which the share of padding is counted."""
SAVES, SAMPLES = 10, 4
"""Checkpoints and sample texts of a run where how often is derived."""


@dataclass(frozen=True)
class Estimate:
    """The plan of one stage."""

    recipe: str
    stage: str
    where: str
    parameters: int
    active_parameters: int
    steps: int
    batch_tokens: int
    tokens: int
    data: str
    flops: int
    recomputed_flops: int
    optimizer_flops: int
    optimizer: str
    memory: dict[str, int]
    """Computed parts."""
    peak_bytes: int
    """Measured here, or the sum of the parts."""
    seconds: float
    price_per_hour: float
    currency: str
    notes: tuple[str, ...]
    reference: str


def estimate(recipe: Recipe, stage: Stage, known: PlanSettings) -> Estimate:
    """The plan of one stage of a recipe."""
    settings: TrainSettings = getattr(recipe, stage)
    check_settings(settings)
    gpu = find_gpu(known.gpu) if known.gpu else None
    config = _config(recipe, known)
    size, said = _data_size(stage, settings, known)
    with torch.device("meta"):
        model = staged_model(config, settings)
    if gpu is not None:
        found = _on_gpu(stage, settings, model, size, gpu, known.mfu)
    else:
        found = _here(stage, settings, model, size)
    return Estimate(
        recipe=recipe.name,
        stage=stage,
        parameters=model.num_parameters(),
        active_parameters=model.num_active_parameters(),
        data=f"{size.per_epoch / 1e6:.3g}M tokens an epoch, {said}",
        reference=_reference(recipe.name, stage),
        **found,
    )


def _config(recipe: Recipe, known: PlanSettings) -> ModelConfig:
    """The model's shape: of the model in `init`, or the recipe's with the vocabulary of `init` or of the recipe."""
    vocab_size = recipe.tokenizer.vocab_size
    if known.init is not None:
        if (Path(known.init) / "config.json").is_file():
            return ModelConfig.load(Path(known.init))
        vocab_size = Tokenizer.load(known.init).vocab_size
    return derive_model(recipe.model, vocab_size, recipe.pretrain.row_length, (0, 0))[0]


def _data_size(stage: Stage, settings: TrainSettings, known: PlanSettings) -> tuple[DataSize, str]:
    """Tokens of the data, counted, given or assumed, and a word on which of these."""
    if known.data and known.init is not None:
        run = RunSettings(data=known.data, init=known.init)
        ranks, tokenizer = Ranks(0, 1, pick_device()), Tokenizer.load(known.init)
        sizes: dict[str, Any] = {"rows": ROWS, "seq": settings.row_length, "seed": settings.seed}
        rows: RowSource | PairSource
        reading_s = 0.0
        if stage in ("dpo", "reward"):
            began = time.perf_counter()
            pairs, train_pairs, held_pairs = pairwise.read_data(settings, run, tokenizer)
            rows = PairSource(pairs, train_pairs, **sizes)
            reading_s = time.perf_counter() - began
            heldout_tokens = sum(pairs[i].size for i in held_pairs)
        else:
            kind: Literal["pretrain", "sft"] = "pretrain" if stage == "pretrain" else "sft"
            cache, train, heldout_cache, heldout = supervised.read_data(kind, settings, run, tokenizer, ranks)
            rows = RowSource(cache, train, **sizes)
            heldout_tokens = int((heldout_cache.lengths[heldout] - 1).sum())
        share = next(rows).useful_tokens() / (ROWS * settings.row_length)
        return DataSize(rows.tokens_per_epoch, heldout_tokens, share, reading_s), "counted"
    if known.data_tokens is not None:
        return DataSize(known.data_tokens, settings.holdout_tokens), "given"
    from cutaway.data.hub import minimind_bytes  # here, since the hub's library is slow to import

    name = ASSUMED[stage]
    num_bytes = minimind_bytes(name)
    tokens = int(num_bytes / BYTES_A_TOKEN)
    said = f"assumed: MiniMind's {name}, {num_bytes / 1e9:g} GB; --data or --data-tokens says what yours has"
    return DataSize(tokens, settings.holdout_tokens), said


def _on_gpu(
    stage: Stage, settings: TrainSettings, model: CausalLM, size: DataSize, gpu: Gpu, mfu: float
) -> dict[str, Any]:
    """From public figures and an assumed share of the peak."""
    rate = gpu.flops * mfu
    useful = rate * size.useful_share  # the rest is spent on padding
    per_token = model.flops_per_token(settings.row_length) / useful
    before, always = reference_passes(settings)
    looked_at = size.heldout_tokens, before * (size.per_epoch + size.heldout_tokens)
    evaluation_s, reference_s = (evaluation_seconds(round(tokens), per_token) for tokens in looked_at)
    horizon, budget_s = horizon_tokens(settings, size.per_epoch), 0.0
    if settings.minutes is not None:
        again = model.recomputed_flops_per_token(settings.row_length) / useful
        budget_s = (settings.minutes * 60 - reference_s) * (1 - RESERVE)
        horizon = max(1.0, budget_s / (per_token + again))
    fits = tokens_that_fit(model, settings.row_length, 2, gpu.memory)
    settings, _ = derive_batch(settings, horizon, "cuda", fits)
    settings, _ = derive_optimizer(settings, model, PEAK[stage], horizon)
    rows, accumulation = split_batch(settings, 1)
    per_step = rows * accumulation * settings.row_length * size.useful_share
    batch_tokens = rows * accumulation * settings.row_length
    step_s = run_flops(model, 1, batch_tokens, settings.row_length, settings.optimizer).total / rate
    step_s += always * evaluation_seconds(round(per_step), per_token)
    if settings.minutes is not None:
        steps = steps_within(budget_s, step_s, evaluation_s, settings.eval_every)
    else:
        steps = settings.steps or max(1, round(horizon / per_step))
    work = run_flops(model, steps, batch_tokens, settings.row_length, settings.optimizer)
    memory = step_memory(model, rows, settings.row_length, 2, settings.optimizer)
    notes = [f"time: at {mfu:.0%} of {gpu.flops / 1e12:g} TFLOP/s [{gpu.source}]; small models reach 25 to 50 %"]
    notes.append(f"rent: {gpu.rent:.2f} USD an hour [{gpu.rent_source}]")
    if memory.total > 0.9 * gpu.memory:
        fewer = "lower --micro-batch-tokens" if rows > 1 else "a larger card or a shorter row is needed"
        if rows == 1 and not model.model.checkpointing:
            fewer = "--activation-checkpointing on, a larger card or a shorter row is needed"
        notes.append(f"memory: more than nine tenths of the card's {gpu.memory / 1e9:.0f} GB: {fewer}")
    price, currency = (settings.price_per_hour, "") if settings.price_per_hour else (gpu.rent, "USD")
    return _run(work, settings.optimizer, steps, batch_tokens, size) | {
        "where": gpu.name,
        "memory": asdict(memory),
        "peak_bytes": memory.total,
        "seconds": reference_s + run_seconds(steps, step_s, evaluation_s, settings.eval_every),
        "price_per_hour": price,
        "currency": currency,
        "notes": tuple(notes),
    }


def _here(stage: Stage, settings: TrainSettings, model: CausalLM, size: DataSize) -> dict[str, Any]:
    """From a rehearsal in a process of its own."""
    found = rehearse(model.config, stage, settings, size)
    resolved = found.settings
    speed = f"{found.rows * found.accumulation * settings.row_length / _step(found):,.0f} tokens/s"
    notes = [f"speed: {speed}, one step measured, {found.precision} on {found.device}"]
    speedup = 1.0
    if settings.compile == "auto" and resolved["compile"] != "off":
        speedup = COMPILED_SPEED
        notes.append(f"compiled: taken as {speedup:g} times as fast, --compile on measures it")
    steps, seconds = _steps_and_seconds(settings, found, speedup)
    value_bytes = 4 if found.precision == "fp32" else 2
    memory = step_memory(model, found.rows, settings.row_length, value_bytes, resolved["optimizer"])
    batch_tokens = found.rows * found.accumulation * settings.row_length
    work = run_flops(model, steps, batch_tokens, settings.row_length, resolved["optimizer"])
    return _run(work, resolved["optimizer"], steps, batch_tokens, size) | {
        "where": f"this machine ({found.device})",
        "memory": asdict(memory),
        "peak_bytes": found.peak_bytes,
        "seconds": seconds,
        "price_per_hour": settings.price_per_hour,
        "currency": "",
        "notes": tuple(notes),
    }


def _run(work: Work, optimizer: str, steps: int, batch_tokens: int, size: DataSize) -> dict[str, Any]:
    """What is trained on, and the FLOPs of it."""
    found = {"steps": steps, "batch_tokens": batch_tokens, "tokens": round(steps * batch_tokens * size.useful_share)}
    flops = {"flops": work.model, "recomputed_flops": work.recomputed, "optimizer_flops": work.optimizer}
    return found | flops | {"optimizer": optimizer}


def _step(found: Findings, speedup: float = 1.0) -> float:
    """Seconds of one optimizer step."""
    return found.accumulation * found.micro_s / speedup + found.update_s


def _steps_and_seconds(settings: TrainSettings, found: Findings, speedup: float) -> tuple[int, float]:
    """Steps of the run and its time, all that is around the steps included."""
    evaluation_s, step_s = found.evaluation_s / speedup, _step(found, speedup)
    if settings.minutes is not None:
        budget = (settings.minutes * 60 - found.startup_s) * (1 - RESERVE)
        steps = steps_within(budget, step_s, evaluation_s, settings.eval_every)
    else:
        steps = int(found.settings["steps"])
    saves = SAVES if settings.save_every is None else -(-steps // settings.save_every)
    samples = SAMPLES
    if settings.sample_every is not None:
        samples = -(-steps // settings.sample_every) if settings.sample_every else 0
    around = found.startup_s + found.curves_s + min(saves, steps) * found.save_s + min(samples, steps) * found.sample_s
    return steps, around + run_seconds(steps, step_s, evaluation_s, settings.eval_every)


def _reference(recipe: str, stage: str) -> str:
    """What the recorded run of this recipe reached, or how to record one."""
    reference = load_reference(recipe, stage)
    if reference is None:
        return "none is recorded; python benchmarks/record_curve.py RUN records that of a run"
    ends = ", ".join(f"{key} {points[-1][1]:.3f}" for key, points in reference.curves.items() if points)
    tokens, files = reference.subject.tokens / 1e6, " ".join(reference.subject.data)
    return f"{ends} after {tokens:.3g}M tokens of {files}, recorded {reference.date} on {reference.machine}"
