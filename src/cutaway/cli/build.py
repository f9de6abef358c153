"""`cutaway build`: the whole life of a model on real text. Flags to settings; the work is in `life/build.py`."""

import importlib.util
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cutaway.cli.common import parse
from cutaway.errors import UserError
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import PlanSettings

if TYPE_CHECKING:
    from cutaway.life.build import Sources
    from cutaway.life.stage import Life

log = logging.getLogger("cutaway")
DEFAULTS: dict[str, Any] = {"seed": 0, "name": "Cutaway", "author": "you", "tasks": ["identity", "refusal", "format"]}
"""Of the settings that a second call need not repeat."""


@dataclass(frozen=True)
class BuildFlags:
    """The whole life of a model on real text: fetch, vocabulary, pretraining, fine-tuning, an adapter that knows who it
    is, preference, reinforcement learning, evaluation, report, export. Its plan is shown and asked about first.

    Each set is a name of `cutaway data get`, owner/name:file, or a file; a stage whose set is given as nothing
    (`--dpo` alone) is left out."""

    recipe: str = "mini"
    """A built-in recipe or the path of a recipe file: shape, horizons and all other settings."""
    out: str = "runs/build"
    """Directory for data, tokenizer, runs and report; a second call goes on where the first one stopped."""
    pretrain: tuple[str, ...] = ("pretrain_t2t_mini",)
    """Plain text."""
    sft: tuple[str, ...] = ("sft_t2t_mini",)
    """Conversations."""
    lora: tuple[str, ...] = ("lora_identity",)
    """Who the model is; {{name}} and {{author}} in it are filled in."""
    dpo: tuple[str, ...] = ("dpo",)
    """Preference pairs."""
    grpo: tuple[str, ...] = ("agent_rl_math",)
    """Prompts with answers to check."""
    source: Literal["hf", "modelscope"] = "hf"
    """Hub of the published sets; HF_ENDPOINT names a mirror of the first."""
    name: str | None = None
    """What the model calls itself; default Cutaway."""
    author: str | None = None
    """Who made it; default you."""
    tasks: tuple[str, ...] | None = None
    """What every model is scored on: tasks of `cutaway eval`, named sets such as ceval and files too; default identity,
    refusal and format."""
    limit: int | None = None
    """Only so many items of each task."""
    skip_bad: int = 0
    """Bad items of a task tolerated (each is reported) before the build stops."""
    seed: int | None = None
    """Seed of the weights and of the order of the data; default 0."""
    price_per_hour: float = 0.0
    """Price of this machine per hour, for the running cost."""
    gpu: str | None = None
    """Compute the plan for a card of `cutaway plan --gpu list`; default: measure this machine, which takes a minute."""
    yes: bool = False
    """Begin without asking."""


def main(argv: Sequence[str]) -> int:
    """Plan, ask, go through the life."""
    flags = parse(BuildFlags, argv, prog="cutaway build")
    recipe = load_recipe(flags.recipe)
    _check(flags)
    from cutaway.evals.evaluate import EvalSettings
    from cutaway.life.build import build_life, build_parts, check_stages, check_tasks, export_part, report_part
    from cutaway.life.journal import NAME, filled, open_journal
    from cutaway.life.parts import go

    out = Path(flags.out)
    given = _given(flags)
    journal = open_journal(out, given, DEFAULTS) if (out / NAME).is_file() else None
    known = filled(given, DEFAULTS) if journal is None else journal.settings
    sources = _sources(flags, known)
    asked = EvalSettings(limit=known["limit"], names=dict(sources.called), skip_bad=flags.skip_bad)
    check_tasks(known["tasks"], asked)
    life = build_life(out, recipe, int(known["seed"]), flags.price_per_hour, sources)
    check_stages(life)
    if journal is None:
        if not _agreed(life, flags, sources):
            log.info("nothing was done")
            return 0
        journal = open_journal(out, given, DEFAULTS)
    parts = [*build_parts(life, sources, known["tasks"], asked), report_part(life, journal)]
    if importlib.util.find_spec("gguf") is not None:
        parts.append(export_part(life))
    go(parts, journal)
    log.info("chat: cutaway chat %s", life.model_of(life.steps[-1]))
    return 0


def _check(flags: BuildFlags) -> None:
    if not flags.pretrain or not flags.sft:
        raise UserError("cutaway build: --pretrain and --sft need at least one set each")
    if flags.seed is not None and flags.seed < 0:
        raise UserError(f"cutaway build: --seed is {flags.seed}, must be 0 or more")
    if not flags.price_per_hour >= 0:
        raise UserError(f"cutaway build: --price-per-hour is {flags.price_per_hour}, must be 0 or more")
    if flags.skip_bad < 0:
        raise UserError(f"cutaway build: --skip-bad is {flags.skip_bad}, must be 0 or more")
    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"cutaway build: --limit is {flags.limit}, must be 1 or more")


def _given(flags: BuildFlags) -> dict[str, Any]:
    """What decides what the life is, as it was given: None where it was not."""
    from cutaway.life.build import PUBLISHED

    tasks = None if flags.tasks is None else list(flags.tasks)
    own = {name: getattr(flags, name) for name in ("recipe", "seed", "name", "author", "limit")}
    return {**own, "tasks": tasks, **{stage: " ".join(getattr(flags, stage)) for stage in PUBLISHED}}


def _sources(flags: BuildFlags, known: dict[str, Any]) -> "Sources":
    from cutaway.life.build import PUBLISHED, Sources

    names = {stage: tuple(getattr(flags, stage)) for stage in PUBLISHED}
    return Sources(names, flags.source, {name: str(known[name]) for name in ("name", "author")})


def _agreed(life: "Life", flags: BuildFlags, sources: "Sources") -> bool:
    """Show what the stages will take, as `cutaway plan` counts them, or the minutes that the recipe gives, and ask."""
    from cutaway.cli.plan import describe
    from cutaway.life.build import size_of
    from cutaway.life.stage import recipe_of
    from cutaway.stages.estimate import BYTES_A_TOKEN, estimate
    from cutaway.stages.rehearsal import SETTINGS
    from cutaway.training.plan import clock, cost

    seconds, more, rate, currency = 0.0, "scores", 0.0, ""
    for step in life.steps:
        recipe = recipe_of(life, step)
        stage = next((one for one in SETTINGS if one == step.stage), None)
        if stage is None:
            minutes = getattr(recipe, step.stage).minutes
            if minutes is None:
                more += f" and {step.stage}"
            says = "not foreseen: it hangs on how long answers are" if minutes is None else clock(60 * minutes)
            seconds += 60 * (minutes or 0.0)
            log.info("%s, %s\n  time    %s", recipe.name, step.stage, says)
            continue
        size = size_of(sources, step.stage)
        tokens = None if size is None else max(1, round(size / BYTES_A_TOKEN))
        found = estimate(recipe, stage, PlanSettings(flags.gpu, data_tokens=tokens))
        seconds, rate, currency = seconds + found.seconds, found.price_per_hour, found.currency
        log.info("%s", describe(found))
    money = f", {cost(seconds, rate):.2f} {currency}".rstrip() if rate else ""
    log.info("together: %s%s; %s come on top", clock(seconds), money, more)
    if flags.yes:
        return True
    if not sys.stdin.isatty():
        raise UserError("cutaway build: say --yes to begin, or call it from a terminal, where it asks")
    return input("begin? [y/N] ").strip().lower() in ("y", "yes")
