"""The pattern of every command: a settings dataclass gives the flags, the defaults and the help; a mistake is one line.

tyro does the parsing. Its error boxes are reduced here to one sentence and raised as UserError.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from cutaway.errors import UserError
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_recipe, load_run
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.rl import AgentSettings, GRPOSettings, PPOSettings, SPOSettings
from cutaway.recipe.stages import (
    DistillSettings,
    DPOSettings,
    LoRASettings,
    PretrainSettings,
    RewardSettings,
    SFTSettings,
)

Flags = TypeVar("Flags")
Own = TypeVar("Own")
Shape = TypeVar("Shape")


@dataclass(frozen=True)
class _RecipeFlag:
    """Where the defaults below come from."""

    recipe: str = "nano"
    """A built-in recipe (nano, mini, small, small-moe) or the path of a recipe file; with --resume, the run's own
    recipe.toml."""


@dataclass(frozen=True)
class _Stage(Generic[Own]):
    """The flags of a training stage."""

    source: tyro.conf.OmitArgPrefixes[_RecipeFlag]
    run: tyro.conf.OmitArgPrefixes[RunSettings]
    stage: tyro.conf.OmitArgPrefixes[Own]


@dataclass(frozen=True)
class _Stretch:
    """What may be changed of a model that is there already."""

    rope_scaling: str = ""
    """Stretch of the context of the model in --init, such as yarn:4; by default as it is."""


@dataclass(frozen=True)
class _Shaped(Generic[Own, Shape]):
    """The flags of a training stage that has a say in the model's shape."""

    source: tyro.conf.OmitArgPrefixes[_RecipeFlag]
    run: tyro.conf.OmitArgPrefixes[RunSettings]
    stage: tyro.conf.OmitArgPrefixes[Own]
    model: tyro.conf.OmitArgPrefixes[Shape]


_STAGES: dict[str, tuple[Any, str]] = {
    "pretrain": (_Shaped[PretrainSettings, ModelSettings], "Next-token training on plain text."),
    "sft": (_Shaped[SFTSettings, _Stretch], "Fine-tuning on conversations."),
    "lora": (_Stage[LoRASettings], "Training of low-rank adapters on conversations."),
    "dpo": (_Stage[DPOSettings], "Training on pairs of answers, one preferred to the other."),
    "reward": (_Stage[RewardSettings], "Training of a reward model on pairs of answers."),
    "distill": (_Stage[DistillSettings], "Training of a student on a teacher's distributions."),
    "ppo": (_Stage[PPOSettings], "Reinforcement learning with a value model."),
    "grpo": (_Stage[GRPOSettings], "Reinforcement learning from groups of answers."),
    "spo": (_Stage[SPOSettings], "Reinforcement learning from single answers."),
    "agent": (_Stage[AgentSettings], "Reinforcement learning over several turns with tools."),
}
"""The flags of each stage, and what it does."""
_HORIZONS = ("minutes", "tokens", "steps", "epochs")
_FIXED_BY_A_RUN = ("seed", "row_length", "batch_tokens", "optimizer", "scripts", "holdout_tokens")
_ADAPTER = ("rank", "alpha", "targets", "rslora", "dora")
_RL = (
    *_ADAPTER,
    *("algorithm", "prompts_per_rollout", "group_size", "minibatches", "rollout_epochs", "temperature"),
    *("max_new_tokens", "advantage", "prompt_sampling", "rewards"),
)
_FIXED_TOO = {
    "lora": _ADAPTER,
    "dpo": (*_ADAPTER, "loss", "beta", "gamma", "label_smoothing", "nll_weight"),
    "reward": ("centre",),
    "distill": (*_ADAPTER, "divergence", "beta", "temperature", "ce_weight", "top_k", "on_policy", "max_new_tokens"),
    **dict.fromkeys(("ppo", "grpo", "spo", "agent"), _RL),
}


def parse_stage(stage: str, argv: Sequence[str]) -> tuple[Recipe, RunSettings]:
    """The recipe of --recipe (with --resume, of the run itself) with the flags laid over it.

    A horizon given as a flag replaces the recipe's, of whatever unit that was. Raises UserError, one line, for any
    flag or value that is wrong, for a missing --data or --out, and for a flag that a resumed run cannot follow.
    """
    argv = _after_restart(argv)
    base, run = _starting_point(argv)
    source = _RecipeFlag(peek(argv, "recipe") or "nano")
    prog = f"cutaway {stage}"
    settings = getattr(base, stage)
    if run.resume and _is_given(argv, "minutes"):
        raise UserError(
            f"{prog}: a resumed run counts in steps, its speed was measured at the start: give --steps instead"
        )
    settings = without_horizon(settings, argv, prog)
    shape: dict[str, Any] = {"model": base.model} if stage == "pretrain" else {}
    if stage == "sft":
        shape = {"model": _Stretch(base.model.rope_scaling)}
    kind, says = _STAGES[stage]
    default: Any = kind(source=source, run=run, stage=settings, **shape)
    flags = parse(kind, argv, prog=prog, default=default, says=f"{says} Each flag overrides the value of the recipe.")
    model = replace(base.model, **vars(getattr(flags, "model", base.model)))
    recipe, run = replace(base, **{stage: flags.stage, "model": model}), flags.run
    if not run.out:
        raise UserError(f"{prog}: --out is missing, name the run directory to write")
    if not run.data:
        raise UserError(f"{prog}: --data is missing, name the training files")
    if run.resume:
        _check_resumable(prog, run.out, base.model, recipe.model, [field.name for field in fields(base.model)])
        _check_resumable(
            prog, run.out, getattr(base, stage), getattr(recipe, stage), _FIXED_BY_A_RUN + _FIXED_TOO.get(stage, ())
        )
    return recipe, run


def _after_restart(argv: Sequence[str]) -> Sequence[str]:
    """The flags of a process that `torchrun` started again: go on with the run as it has written itself down."""
    out = peek(argv, "out") or ""
    if "--resume" in argv or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return argv
    from cutaway.training.distributed import restarted

    return ("--resume", "--out", out) if restarted(out) else argv


def without_horizon(settings: Flags, argv: Sequence[str], prog: str) -> Flags:
    """The stage's settings without their horizon where a flag sets one, of whatever unit either is."""
    given = [name for name in _HORIZONS if _is_given(argv, name)]
    if len(given) > 1:
        raise UserError(f"{prog}: --{given[0]} and --{given[1]} both set the horizon, give one of them")
    return replace(settings, **dict.fromkeys(_HORIZONS)) if given else settings  # type: ignore[type-var]


def _check_resumable(prog: str, out: str, before: Any, now: Any, names: Iterable[str]) -> None:
    for name in names:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            flag = name.replace("_", "-")
            raise UserError(f"{prog}: the run in {out} has {flag} {old}, --resume cannot change it to {new}")


def _starting_point(argv: Sequence[str]) -> tuple[Recipe, RunSettings]:
    out = peek(argv, "out")
    if "--resume" in argv and out:
        own = Path(out) / "recipe.toml"
        if not own.is_file():
            raise UserError(f"--resume: {out} holds no recipe.toml, so no run to go on with")
        if _is_given(argv, "recipe"):
            raise UserError(f"--resume goes on with {own}: leave --recipe away, and change a value with its own flag")
        return load_recipe(str(own)), load_run(str(own))
    return load_recipe(peek(argv, "recipe") or "nano"), RunSettings()


def _is_given(argv: Sequence[str], name: str) -> bool:
    return any(argument == f"--{name}" or argument.startswith(f"--{name}=") for argument in argv)


def peek(argv: Sequence[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE`, the last one, without parsing the rest."""
    value = None
    for position, argument in enumerate(argv):
        if argument == f"--{name}" and position + 1 < len(argv):
            value = argv[position + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
    return value


def parse(
    cls: Callable[..., Flags], argv: Sequence[str], *, prog: str, default: Flags | None = None, says: str | None = None
) -> Flags:
    """An instance of the dataclass `cls` from flags named after its fields; `--help` prints the fields' docstrings,
    and what the command does: `says`, or the docstring of the class.

    Raises UserError with one line where tyro would print a box.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {"description": says} | ({} if default is None else {"default": default})
    try:
        with contextlib.redirect_stderr(errors), _wide_terminal("--help" in argv or "-h" in argv):
            flags: Flags = tyro.cli(cls, args=list(argv), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{prog}: {one_line(errors.getvalue(), argv)} (see {prog} --help)") from None
    for name in _with_several_values(flags):
        flag = f"--{name.replace('_', '-')}"
        if sum(argument.partition("=")[0].replace("_", "-") == flag for argument in argv) > 1:
            raise UserError(
                f"{prog}: {flag} stands there twice, and only the last would count: give all values after one"
            )
    return flags


def _with_several_values(flags: Any) -> Iterator[str]:
    """Names of the settings, of those inside others too, that take a list."""
    for field in fields(flags):
        value = getattr(flags, field.name)
        if isinstance(value, tuple):
            yield field.name
        elif is_dataclass(value):
            yield from _with_several_values(value)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[float, int], None] | None]:
    """A bar on a terminal, for work that tells its share done and a count; None elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(f"[bold]{name}"), BarColumn(), TextColumn("{task.fields[count]:,}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0, count=0)
        yield lambda share, count: progress.update(task, completed=share, count=count)


@contextlib.contextmanager
def _wide_terminal(is_help: bool) -> Iterator[None]:
    """tyro wraps its boxes to the terminal: help should be, an error that is taken apart again should not."""
    before = os.environ.get("COLUMNS")
    if not is_help:
        os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is not None:
            os.environ["COLUMNS"] = before
        else:
            os.environ.pop("COLUMNS", None)


_TYPES = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text"}


def one_line(box: str, argv: Sequence[str]) -> str:
    """What is wrong and what would be right, from the box in which tyro says it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ \t") for line in text.splitlines() if line.strip("│╭╮╰╯─- \t")]
    # The title is in the frame, or the first line where the terminal has no characters for a frame.
    lines = [line for line in lines if not line.startswith("╭")] if "╭" in text else lines[1:]
    message = lines[0] if lines else "the arguments cannot be read"
    for position, line in enumerate(lines):
        if line.startswith("Unrecognized options:"):
            tokens = line.removeprefix("Unrecognized options:").strip().split(", ")
            return _unknown(tokens if tokens[0] else lines[position + 1 : -1], lines[position + 1 :])
    if found := re.match(r"Error parsing (--[\w-]+): (.*)", message):
        flag = found[1]
        kinds = next((line for line in lines[1:] if line.startswith(f"{flag} ")), "").removeprefix(flag)
        wanted = [_TYPES[kind] for kind in re.findall(r"[A-Z]+", kinds) if kind in _TYPES]
        if wanted:
            return f"{flag} is {peek(argv, flag.strip('-'))!r}, must be {' or '.join(wanted)}"
    if found := re.match(r"invalid choice '(.*)' for argument '(--[\w-]+)'. Expected one of \((.*)\)", message):
        return f"{found[2]} is {found[1]!r}, must be one of {found[3].strip(',')}"
    if found := re.match(r"Missing value for argument '(.*?)'", message):
        return f"{found[1]} needs a value"
    if message.startswith("Missing from"):
        names = [line.split(" ")[0] for line in lines[1:] if re.match(r"--[\w-]+ |[A-Z]+$", line)]
        return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} missing"
    return message.rstrip(".")


def _unknown(tokens: list[str], lines: list[str]) -> str:
    flags = [token for token in tokens if token.startswith("-")]
    suggestion = ""
    if "Perhaps you meant:" in lines:
        suggestion = lines[lines.index("Perhaps you meant:") + 1].split(" ")[0].rstrip(",")
    hint = f", did you mean {suggestion}?" if suggestion and flags else ""
    return f"unknown flag {flags[0]}{hint}" if flags else f"unexpected argument '{tokens[0]}'"
