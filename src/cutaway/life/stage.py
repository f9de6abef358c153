"""One stage of a life: begun, gone on with where it stopped, or found complete; and the model that it leaves."""

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.life.steps import LIFE_MINUTES, Step
from cutaway.model.merging import merge
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.rl.environment import ToolboxOf
from cutaway.stages import agent, dpo, grpo, lora, pretrain, sft
from cutaway.training.checkpoint import Checkpoints

LEAST_MINUTES = 0.2
"""Of a stage: in less, loading and measuring its speed would leave nothing to train in."""
RUNS: dict[str, Callable[[Recipe, RunSettings], Path]] = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "lora": lora.run,
    "dpo": dpo.run,
    "grpo": grpo.run,
}


@dataclass(frozen=True)
class Life:
    """What is the same for all its stages."""

    out: Path
    data: Path
    """Folder that the steps' files are in."""
    recipe: Recipe
    steps: tuple[Step, ...]
    seed: int
    minutes: float | None
    """Of the whole life; None leaves every stage the horizon of its settings, or the recipe's."""
    world: ToolboxOf | None = None
    """Environments of the records for tool use."""

    def run_of(self, step: Step) -> Path:
        """The run directory of a step."""
        return self.out / step.stage

    def model_of(self, step: Step) -> Path:
        """What the next step begins with: the run, or what is merged of it and what it began with."""
        return self.out / f"{step.stage}-merged" if step.merged else self.run_of(step)

    def files(self, step: Step) -> RunSettings:
        """What a step reads and writes; the first begins with the tokenizer."""
        place = self.steps.index(step)
        init = self.model_of(self.steps[place - 1]) if place else self.out / "tokenizer"
        data = tuple(str(self.data / name) for name in step.data)
        return RunSettings(data=data, out=str(self.run_of(step)), init=str(init))

    def minutes_of(self, step: Step, share: float = 1.0) -> float:
        """What a step has of the whole; an estimate where it has a horizon of its own."""
        return max(LEAST_MINUTES, share * step.minutes * (self.minutes or LIFE_MINUTES) / LIFE_MINUTES)


def recipe_of(life: Life, step: Step, share: float = 1.0) -> Recipe:
    """The recipe with the step's settings in its stage's table, and this share of the step's minutes."""
    values: dict[str, Any] = {"seed": life.seed, **step.settings}
    if step.has_own_horizon or life.minutes is not None:
        horizons: Mapping[str, Any] = dict.fromkeys(("minutes", "tokens", "steps", "epochs"))
        own = {name: step.settings.get(name) for name in horizons}
        values |= {**horizons, **own} if step.has_own_horizon else {**horizons, "minutes": life.minutes_of(step, share)}
    settings = dataclasses.replace(getattr(life.recipe, step.stage), **values)
    return dataclasses.replace(life.recipe, **{step.stage: settings})


def train(life: Life, step: Step, share: float = 1.0) -> Path:
    """Run a step for a share of its minutes, or go on with it. Its number of steps was fixed when it began and is in
    its recipe.toml, which is kept even where no checkpoint was written yet, so that an interruption changes nothing."""
    run, out = life.files(step), life.run_of(step)
    recipe, written = recipe_of(life, step, share), out / "recipe.toml"
    if written.is_file():
        recipe = load_recipe(str(written))
        run = dataclasses.replace(run, resume=bool(Checkpoints(out, 1).steps()))
    if step.stage == "agent":
        agent.run(recipe, run, life.world)
    else:
        RUNS[step.stage](recipe, run)
    if step.merged:
        shutil.rmtree(life.model_of(step), ignore_errors=True)  # of a merge that was interrupted
        merge(out, life.model_of(step), str(run.init), step.share)
    return out


def by_hand(life: Life, step: Step) -> str:
    """The command that repeats a step, into another folder, and the one that merges what it leaves, where the next step
    begins with that: its recipe.toml holds every setting once it has begun."""
    run = life.files(step)
    recipe = str(life.run_of(step) / "recipe.toml")
    again = f"{run.out}-again"
    parts = ["cutaway", step.stage, "--recipe", recipe, "--data", *run.data, "--init", str(run.init), "--out", again]
    command = shlex.join(parts)
    merging = [
        "cutaway",
        "merge",
        again,
        "--base",
        str(run.init),
        "--share",
        f"{step.share:g}",
        "--out",
        f"{again}-merged",
    ]
    return f"{command}\n{shlex.join(merging)}" if step.merged else command
