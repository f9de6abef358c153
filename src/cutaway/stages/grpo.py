"""GRPO and its relatives: a group of answers to each prompt, judged against one another.

    python -m cutaway.stages.grpo recipe.toml [--resume]       the same as `cutaway grpo`, without tyro

`algorithm` takes a row of the table in `rl/algorithms.py`: grpo, dr_grpo, dapo, cispo, gspo, rloo. What they differ in
is there; the equations are in `objectives/advantages.py`, `policy.py`, `kl.py` and `aggregation.py`, and the step that
puts them together is `rl/update.py` `make_step`.
"""

import sys
from pathlib import Path

from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import rl, shared


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train the model of `run.init` on the prompts of `run.data`."""
    return rl.train("grpo", recipe, run)


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
