"""`cutaway plan`: what a recipe costs before anything runs, on this machine or on a GPU of the table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cutaway.cli.common import parse, peek, without_horizon
from cutaway.errors import UserError
from cutaway.recipe import (
    LoRASettings,
    ModelSettings,
    PretrainSettings,
    Recipe,
    RunSettings,
    SFTSettings,
    TrainSettings,
    load_recipe,
)

if TYPE_CHECKING:
    from cutaway.model.config import ModelConfig
    from cutaway.model.transformer import CausalLM
    from cutaway.stages.rehearsal import DataSize, Findings
    from cutaway.training.plan import Gpu

Stage = Literal["pretrain", "sft", "lora"]
STAGES: tuple[Stage, ...] = ("pretrain", "sft", "lora")
_CHAT = (1.6e9, "sft_t2t_mini")
ASSUMED = {"pretrain": (1.2e9, "pretrain_t2t_mini"), "sft": _CHAT, "lora": _CHAT}
"""Bytes and name of the published set that a horizon in epochs is taken for where no data is named."""
BYTES_A_TOKEN = 3.2
"""Of the default vocabulary on Chinese and English text (`benchmarks/compression.py`)."""
SAVES, SAMPLES = 10, 4
"""Checkpoints and sample texts of a run where how often is derived."""


@dataclass(frozen=True)
class PlanFlags:
    """Where the run would be, and what is known of its data."""

    recipe: str = "nano"
    """A built-in recipe (nano, mini, small, small-moe) or the path of a recipe file."""
    gpu: str | None = None
    """A card of the table (rtx3090, a100-80, h100, ...; --gpu list prints it); default: this machine, measured."""
    mfu: float = 0.4
    """Share of the card's peak that the run reaches, for --gpu."""
    data: tuple[str, ...] = ()
    """Training files, to count their tokens exactly (with --init); what is tokenised here the run need not tokenise."""
    init: str | None = None
    """Tokenizer or model directory, for the size of the vocabulary or of the model."""
    data_tokens: int | None = None
    """Tokens in one pass over the data, where --data is not given."""
    json: str | None = None
    """Write what is printed, as JSON, to this file."""


@dataclass(frozen=True)
class _Pretrain:
    """Parameters, FLOPs, peak memory, time and money of pretraining with these settings."""

    plan: tyro.conf.OmitArgPrefixes[PlanFlags]
    stage: tyro.conf.OmitArgPrefixes[PretrainSettings]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


@dataclass(frozen=True)
class _SFT:
    """Parameters, FLOPs, peak memory, time and money of fine-tuning with these settings."""

    plan: tyro.conf.OmitArgPrefixes[PlanFlags]
    stage: tyro.conf.OmitArgPrefixes[SFTSettings]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


@dataclass(frozen=True)
class _LoRA:
    """Parameters, FLOPs, peak memory, time and money of training an adapter with these settings."""

    plan: tyro.conf.OmitArgPrefixes[PlanFlags]
    stage: tyro.conf.OmitArgPrefixes[LoRASettings]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


_FLAGS = {"pretrain": _Pretrain, "sft": _SFT, "lora": _LoRA}


@dataclass(frozen=True)
class _Both:
    """Parameters, FLOPs, peak memory, time and money of pretraining and fine-tuning by a recipe. With a stage as the
    first word (`cutaway plan pretrain`, `plan sft`, `plan lora`), that stage alone, and every flag of it is taken."""

    plan: tyro.conf.OmitArgPrefixes[PlanFlags]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


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


def main(argv: Sequence[str]) -> int:
    """Print the plan of each stage."""
    if peek(argv, "gpu") == "list":
        print(gpu_table())
        return 0
    recipe, flags, stages = _parse(argv)
    estimates = []
    for stage in stages:
        estimates.append(estimate(recipe, stage, flags))
        print(describe(estimates[-1]), flush=True)
    if flags.json:
        text = json.dumps([asdict(one) for one in estimates], indent=1) + "\n"
        try:
            Path(flags.json).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"could not write {flags.json}: {error.strerror}") from None
    return 0


def _parse(argv: Sequence[str]) -> tuple[Recipe, PlanFlags, tuple[Stage, ...]]:
    name = peek(argv, "recipe") or "nano"
    base, flags = load_recipe(name), PlanFlags(name)
    stage = next((one for one in STAGES if argv and argv[0] == one), None)
    if stage is None:
        both = parse(_Both, argv, prog="cutaway plan", default=_Both(flags, base.model))
        recipe, plan, stages = replace(base, model=both.model), both.plan, STAGES[:2]
    else:
        prog = f"cutaway plan {stage}"
        default: Any = _FLAGS[stage](flags, without_horizon(getattr(base, stage), argv, prog), base.model)
        one = parse(_FLAGS[stage], argv[1:], prog=prog, default=default)
        recipe, plan, stages = replace(base, **{stage: one.stage, "model": one.model}), one.plan, (stage,)
    if plan.data and plan.init is None:
        raise UserError("cutaway plan: --data needs --init, the tokenizer to count with")
    if plan.data and len(stages) > 1:
        raise UserError("cutaway plan: --data is of one stage, name it: cutaway plan pretrain, sft or lora")
    if not 0 < plan.mfu <= 1:
        raise UserError(f"cutaway plan: --mfu is {plan.mfu}, must be above 0 and at most 1")
    if plan.data_tokens is not None and plan.data_tokens < 1:
        raise UserError(f"cutaway plan: --data-tokens is {plan.data_tokens}, must be at least 1")
    return recipe, plan, stages


def estimate(recipe: Recipe, stage: Stage, flags: PlanFlags) -> Estimate:
    """The plan of one stage of a recipe."""
    import torch

    from cutaway.stages.rehearsal import staged_model
    from cutaway.training.plan import find_gpu
    from cutaway.training.preparation import check_settings

    settings: TrainSettings = getattr(recipe, stage)
    check_settings(settings)
    gpu = find_gpu(flags.gpu) if flags.gpu else None
    config = _config(recipe, flags)
    size, said = _data_size(stage, settings, flags)
    with torch.device("meta"):
        model = staged_model(config, settings)
    if gpu is not None:
        return _on_gpu(recipe.name, stage, settings, model, size, said, gpu, flags.mfu)
    return _here(recipe.name, stage, settings, model, size, said)


def _config(recipe: Recipe, flags: PlanFlags) -> "ModelConfig":
    """The model's shape: of the model in --init, or the recipe's with the vocabulary of --init or of the recipe."""
    from cutaway.model.config import ModelConfig
    from cutaway.training.derive import derive_model

    vocab_size = recipe.tokenizer.vocab_size
    if flags.init is not None:
        from cutaway.tokenization.tokenizer import Tokenizer

        if (Path(flags.init) / "config.json").is_file():
            return ModelConfig.load(Path(flags.init))
        vocab_size = Tokenizer.load(flags.init).vocab_size
    return derive_model(recipe.model, vocab_size, recipe.pretrain.row_length, (0, 0))[0]


def _data_size(stage: Stage, settings: TrainSettings, flags: PlanFlags) -> "tuple[DataSize, str]":
    """Tokens of the data, counted, given or assumed, and a word on which of these."""
    from cutaway.stages.rehearsal import DataSize

    if flags.data and flags.init is not None:
        from cutaway.data.loader import RowSource
        from cutaway.stages.supervised import read_data
        from cutaway.tokenization.tokenizer import Tokenizer
        from cutaway.training.distributed import Ranks
        from cutaway.training.precision import pick_device

        run = RunSettings(data=flags.data, init=flags.init)
        ranks, tokenizer = Ranks(0, 1, pick_device()), Tokenizer.load(flags.init)
        kind: Literal["pretrain", "sft"] = "pretrain" if stage == "pretrain" else "sft"
        cache, train, heldout_cache, heldout = read_data(kind, settings, run, tokenizer, ranks)
        rows = RowSource(cache, train, rows=16, seq=settings.row_length, seed=settings.seed)
        share = next(rows).useful_tokens() / (16 * settings.row_length)
        heldout_tokens = int((heldout_cache.lengths[heldout] - 1).sum())
        return DataSize(rows.tokens_per_epoch, heldout_tokens, share), "counted"
    if flags.data_tokens is not None:
        return DataSize(flags.data_tokens, settings.holdout_tokens), "given"
    num_bytes, name = ASSUMED[stage]
    tokens = int(num_bytes / BYTES_A_TOKEN)
    said = f"assumed: MiniMind's {name}, {num_bytes / 1e9:g} GB; --data or --data-tokens says what yours has"
    return DataSize(tokens, settings.holdout_tokens), said


def _on_gpu(
    name: str,
    stage: Stage,
    settings: TrainSettings,
    model: "CausalLM",
    size: "DataSize",
    said: str,
    gpu: "Gpu",
    mfu: float,
) -> Estimate:
    """From public figures and an assumed share of the peak."""
    from cutaway.training.derive import FINE_TUNING, NEW_MODEL, derive_batch, derive_optimizer
    from cutaway.training.horizon import RESERVE
    from cutaway.training.plan import evaluation_seconds, run_flops, run_seconds, step_memory
    from cutaway.training.preparation import horizon_tokens, split_batch

    per_token = model.flops_per_token(settings.row_length) / (gpu.flops * mfu)
    horizon = horizon_tokens(settings, size.per_epoch)
    if settings.minutes is not None:
        horizon = settings.minutes * 60 * (1 - RESERVE) / per_token
    settings, _ = derive_batch(settings, horizon, "cuda")
    settings, _ = derive_optimizer(settings, model, NEW_MODEL if stage == "pretrain" else FINE_TUNING, horizon)
    rows, accumulation = split_batch(settings, 1)
    batch_tokens = rows * accumulation * settings.row_length
    steps = settings.steps or max(1, round(horizon / (batch_tokens * size.useful_share)))
    flops, optimizer_flops = run_flops(model, steps, batch_tokens, settings.row_length, settings.optimizer)
    memory = step_memory(model, rows, settings.row_length, 2, settings.optimizer)
    step_s = (flops + optimizer_flops) / (gpu.flops * mfu) / steps
    seconds = run_seconds(steps, step_s, evaluation_seconds(size.heldout_tokens, per_token), settings.eval_every)
    notes = [f"time: at {mfu:.0%} of {gpu.flops / 1e12:g} TFLOP/s [{gpu.source}]; small models reach 25 to 50 %"]
    notes.append(f"rent: {gpu.rent:.2f} USD an hour [{gpu.rent_source}]")
    if memory.total > 0.9 * gpu.memory:
        fewer = "lower --micro-batch-tokens" if rows > 1 else "a larger card or a shorter row is needed"
        notes.append(f"memory: more than nine tenths of the card's {gpu.memory / 1e9:.0f} GB: {fewer}")
    price, currency = (settings.price_per_hour, "") if settings.price_per_hour else (gpu.rent, "USD")
    return Estimate(
        recipe=name,
        stage=stage,
        where=gpu.name,
        parameters=model.num_parameters(),
        active_parameters=model.num_active_parameters(),
        steps=steps,
        batch_tokens=batch_tokens,
        tokens=round(steps * batch_tokens * size.useful_share),
        data=f"{size.per_epoch / 1e6:.3g}M tokens an epoch, {said}",
        flops=flops,
        optimizer_flops=optimizer_flops,
        optimizer=settings.optimizer,
        memory=asdict(memory),
        peak_bytes=memory.total,
        seconds=seconds,
        price_per_hour=price,
        currency=currency,
        notes=tuple(notes),
        reference=_reference(name, stage),
    )


def _here(name: str, stage: Stage, settings: TrainSettings, model: "CausalLM", size: "DataSize", said: str) -> Estimate:
    """From a rehearsal in a process of its own."""
    from cutaway.stages.rehearsal import rehearse
    from cutaway.training.plan import run_flops, step_memory
    from cutaway.training.preparation import COMPILED_SPEED

    found = rehearse(model.config, stage, settings, size)
    resolved = found.settings
    batch_tokens = found.rows * found.accumulation * settings.row_length
    speed = f"{batch_tokens / _step(found):,.0f} tokens/s"
    notes = [f"speed: {speed}, one step measured, {found.precision} on {found.device}"]
    speedup = 1.0
    if settings.compile == "auto" and resolved["compile"] == "on":
        speedup = COMPILED_SPEED
        notes.append(f"compiled: taken as {speedup:g} times as fast, --compile on measures it")
    steps, seconds = _steps_and_seconds(settings, found, speedup)
    flops, optimizer_flops = run_flops(model, steps, batch_tokens, settings.row_length, resolved["optimizer"])
    value_bytes = 4 if found.precision == "fp32" else 2
    memory = step_memory(model, found.rows, settings.row_length, value_bytes, resolved["optimizer"])
    return Estimate(
        recipe=name,
        stage=stage,
        where=f"this machine ({found.device})",
        parameters=model.num_parameters(),
        active_parameters=model.num_active_parameters(),
        steps=steps,
        batch_tokens=batch_tokens,
        tokens=round(steps * batch_tokens * size.useful_share),
        data=f"{size.per_epoch / 1e6:.3g}M tokens an epoch, {said}",
        flops=flops,
        optimizer_flops=optimizer_flops,
        optimizer=resolved["optimizer"],
        memory=asdict(memory),
        peak_bytes=found.peak_bytes,
        seconds=seconds,
        price_per_hour=settings.price_per_hour,
        currency="",
        notes=tuple(notes),
        reference=_reference(name, stage),
    )


def _step(found: "Findings", speedup: float = 1.0) -> float:
    """Seconds of one optimizer step."""
    return found.accumulation * found.micro_s / speedup + found.update_s


def _steps_and_seconds(settings: TrainSettings, found: "Findings", speedup: float) -> tuple[int, float]:
    """Steps of the run and its time, all that is around the steps included."""
    from cutaway.training.horizon import RESERVE
    from cutaway.training.plan import run_seconds, steps_within

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


def describe(one: Estimate) -> str:
    """The plan as lines to read."""
    from cutaway.training.plan import clock, cost

    active = f", {one.active_parameters / 1e6:.2f}M active" if one.active_parameters != one.parameters else ""
    parts = ", ".join(f"{name} {_size(value)}" for name, value in one.memory.items())
    how = "measured; computed for one step" if one.where.startswith("this machine") else "computed"
    share = f" and {one.optimizer_flops / one.flops:.1%} more for {one.optimizer}" if one.optimizer_flops else ""
    lines = [
        f"{one.recipe}, {one.stage}, on {one.where}",
        f"  model   {one.parameters / 1e6:.2f}M parameters{active}",
        f"  data    {one.data}",
        f"  run     {one.steps:,} steps of {one.batch_tokens:,} tokens: {one.tokens / 1e6:,.3g}M useful tokens",
        f"  work    {one.flops:.3g} FLOPs{share}",
        f"  memory  {_size(one.peak_bytes)} at the peak, {how}: {parts}",
        f"  time    {clock(one.seconds)}",
    ]
    if one.price_per_hour:
        money = f"{cost(one.seconds, one.price_per_hour):.2f} {one.currency}".rstrip()
        lines.append(f"  money   {money}, at {one.price_per_hour:g} an hour")
    else:
        lines.append("  money   none: --price-per-hour says what an hour costs")
    lines.append(f"  curve   {one.reference}")
    return "\n".join(lines + [f"  {note}" for note in one.notes])


def _reference(recipe: str, stage: str) -> str:
    """What the recorded run of this recipe reached, or how to record one."""
    from cutaway.training.reference import load_reference

    reference = load_reference(recipe, stage)
    if reference is None:
        return "none is recorded; python benchmarks/record_curve.py RUN records that of a run"
    ends = ", ".join(f"{key} {points[-1][1]:.3f}" for key, points in reference.curves.items() if points)
    tokens, files = reference.subject.tokens / 1e6, " ".join(reference.subject.data)
    return f"{ends} after {tokens:.3g}M tokens of {files}, recorded {reference.date} on {reference.machine}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def gpu_table() -> str:
    """The public figures and where they are from."""
    from cutaway.training.plan import GPUS

    lines = [f"{'--gpu':<9} {'TFLOP/s':>8} {'memory':>7} {'GB/s':>6} {'USD/h':>6}  sources"]
    for key, gpu in GPUS.items():
        figures = f"{gpu.flops / 1e12:8.1f} {gpu.memory / 1e9:4.0f} GB {gpu.bandwidth / 1e9:6.0f} {gpu.rent:6.2f}"
        lines.append(f"{key:<9} {figures}  {gpu.source}; {gpu.rent_source}")
    return "\n".join(lines)
