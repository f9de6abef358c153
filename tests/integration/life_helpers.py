"""A life small enough for a test: a tiny model, a town with few records, a few steps a stage.

python tests/integration/life_helpers.py OUT        `cutaway quickstart --out OUT`, in a process that can be killed
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from cutaway.cli import main as cli
from cutaway.life import journal, quickstart, scoring, steps
from cutaway.life.stage import Life
from cutaway.playground import evaluation, write
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import Recipe

SHAPE = ModelSettings(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
COMMON: dict[str, Any] = {"compile": "off", "precision": "fp32", "workers": 1, "log_every": 1, "eval_every": 50}
TEXT: dict[str, Any] = {
    **COMMON,
    "row_length": 512,
    "batch_tokens": 1024,
    "micro_batch_tokens": 1024,
    "holdout_tokens": 600,
    "sample_every": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {**TEXT, "steps": 6, "save_every": 2},
    "sft": {**TEXT, "steps": 6, "save_every": 2},
    "lora": {**TEXT, "steps": 4, "save_every": 2},
    "dpo": {**TEXT, "steps": 4, "save_every": 2},
    "grpo": {**COMMON, "steps": 4, "save_every": 2, "max_new_tokens": 6, "prompts_per_rollout": 4, "minibatches": 2},
    "agent": {**COMMON, "steps": 4, "save_every": 2, "max_new_tokens": 6, "prompts_per_rollout": 2, "minibatches": 2}
    | {"row_length": 1200},
}
ITEMS = 2


def shrink() -> None:
    """Few records in every set but the two large ones, a tiny model, a few steps a stage, few items a skill."""
    evaluation.ITEMS.update(heldout=3, new=2)
    evaluation.FEWER.update(heldout=3, new=2)
    evaluation.PRACTICE = 3
    quickstart.town.PASSES = 2
    write.PAIRS = write.PROMPTS = 30
    quickstart.town.VOCAB_SIZE = 320
    scoring.LONGEST = 2048
    quickstart.town.megabytes = lambda minutes: 0.1
    whole_life = quickstart.playground_life
    quickstart.playground_life = lambda out, kept, recipe: whole_life(out, kept, tiny(recipe), tiny_steps())
    quickstart.playground_parts = functools.partial(quickstart.playground_parts, items=ITEMS)


def tiny(recipe: Recipe) -> Recipe:
    """With a model of a few thousand parameters."""
    return dataclasses.replace(recipe, model=SHAPE)


def tiny_steps() -> tuple[steps.Step, ...]:
    """The table of the quickstart with a few steps in place of minutes."""
    return tuple(dataclasses.replace(step, settings={**step.settings, **OWN[step.stage]}) for step in steps.PLAYGROUND)


def tiny_life(out: Path) -> tuple[Life, journal.Journal]:
    """The life in a folder."""
    kept = journal.open_journal(out, {"seed": None, "budget_minutes": None}, {"seed": 0, "budget_minutes": 20.0})
    return quickstart.playground_life(out, kept, tiny(load_recipe("nano")), tiny_steps()), kept


if __name__ == "__main__":
    shrink()
    sys.exit(cli.main(["quickstart", "--out", sys.argv[1]]))
