"""`cutaway plan`: what a recipe costs before anything runs, on this machine or on a GPU of the table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import tyro

from cutaway.cli.common import parse, peek, without_horizon
from cutaway.errors import UserError
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import PlanSettings, Recipe
from cutaway.recipe.stages import DPOSettings, LoRASettings, PretrainSettings, RewardSettings, SFTSettings

if TYPE_CHECKING:
    from cutaway.stages.estimate import Estimate
    from cutaway.stages.rehearsal import Stage

Own = TypeVar("Own")


@dataclass(frozen=True)
class _PlanFlags:
    """What is planned."""

    recipe: str = "nano"
    """A built-in recipe (nano, mini, small, small-moe) or the path of a recipe file."""
    json: str | None = None
    """Write what is printed, as JSON, to this file."""


@dataclass(frozen=True)
class _One(Generic[Own]):
    """The flags of one stage."""

    plan: tyro.conf.OmitArgPrefixes[_PlanFlags]
    known: tyro.conf.OmitArgPrefixes[PlanSettings]
    stage: tyro.conf.OmitArgPrefixes[Own]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


_FLAGS: "dict[Stage, tuple[Any, str]]" = {
    "pretrain": (_One[PretrainSettings], "pretraining"),
    "sft": (_One[SFTSettings], "fine-tuning"),
    "lora": (_One[LoRASettings], "training an adapter"),
    "dpo": (_One[DPOSettings], "learning from pairs of answers"),
    "reward": (_One[RewardSettings], "training a reward model"),
}


@dataclass(frozen=True)
class _Both:
    """Parameters, FLOPs, peak memory, time and money of pretraining and fine-tuning by a recipe. With a stage as the
    first word (pretrain, sft, lora, dpo or reward), that stage alone, and every flag of it is taken."""

    plan: tyro.conf.OmitArgPrefixes[_PlanFlags]
    known: tyro.conf.OmitArgPrefixes[PlanSettings]
    model: tyro.conf.OmitArgPrefixes[ModelSettings]


def main(argv: Sequence[str]) -> int:
    """Print the plan of each stage."""
    if peek(argv, "gpu") == "list":
        print(gpu_table())
        return 0
    recipe, flags, known, stages = _parse(argv)
    from cutaway.stages.estimate import estimate

    estimates = []
    for stage in stages:
        estimates.append(estimate(recipe, stage, known))
        print(describe(estimates[-1]), flush=True)
    if flags.json:
        text = json.dumps([asdict(one) for one in estimates], indent=1) + "\n"
        try:
            Path(flags.json).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"could not write {flags.json}: {error.strerror}") from None
    return 0


def _parse(argv: Sequence[str]) -> "tuple[Recipe, _PlanFlags, PlanSettings, tuple[Stage, ...]]":
    name = peek(argv, "recipe") or "nano"
    base, flags, known = load_recipe(name), _PlanFlags(name), PlanSettings()
    stage = next((one for one in _FLAGS if argv and argv[0] == one), None)
    stages: tuple[Stage, ...] = ("pretrain", "sft")
    if stage is None:
        both = parse(_Both, argv, prog="cutaway plan", default=_Both(flags, known, base.model))
        recipe, flags, known = replace(base, model=both.model), both.plan, both.known
    else:
        prog = f"cutaway plan {stage}"
        kind, what = _FLAGS[stage]
        default: Any = kind(flags, known, without_horizon(getattr(base, stage), argv, prog), base.model)
        says = f"Parameters, FLOPs, peak memory, time and money of {what} with these settings."
        one = parse(kind, argv[1:], prog=prog, default=default, says=says)
        recipe, flags, known = replace(base, **{stage: one.stage, "model": one.model}), one.plan, one.known
        stages = (stage,)
    if known.data and known.init is None:
        raise UserError("cutaway plan: --data needs --init, the tokenizer to count with")
    if known.data and len(stages) > 1:
        raise UserError("cutaway plan: --data is of one stage, name it: cutaway plan pretrain, sft, ...")
    if not 0 < known.mfu <= 1:
        raise UserError(f"cutaway plan: --mfu is {known.mfu}, must be above 0 and at most 1")
    if known.data_tokens is not None and known.data_tokens < 1:
        raise UserError(f"cutaway plan: --data-tokens is {known.data_tokens}, must be at least 1")
    return recipe, flags, known, stages


def describe(one: "Estimate") -> str:
    """The plan as lines to read."""
    from cutaway.training.plan import Work, clock, cost

    active = f", {one.active_parameters / 1e6:.2f}M active" if one.active_parameters != one.parameters else ""
    parts = ", ".join(f"{name} {_size(value)}" for name, value in one.memory.items() if value)
    how = "measured; computed for one step" if one.where.startswith("this machine") else "computed"
    work = Work(one.flops, one.recomputed_flops, one.optimizer_flops)
    lines = [
        f"{one.recipe}, {one.stage}, on {one.where}",
        f"  model   {one.parameters / 1e6:.2f}M parameters{active}",
        f"  data    {one.data}",
        f"  run     {one.steps:,} steps of {one.batch_tokens:,} tokens: {one.tokens / 1e6:,.3g}M useful tokens",
        f"  work    {', '.join([f'{work.model:.3g} FLOPs', *work.shares(one.optimizer)])}",
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
