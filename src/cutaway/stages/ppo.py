"""PPO: one answer a prompt, each token judged by a value model (arXiv 1707.06347; for language models 2203.02155).

    python -m cutaway.stages.ppo recipe.toml [--resume]       the same as `cutaway ppo`, without tyro

The value model is `rl/policy.py` `value_model`, its loss `objectives/value.py`, GAE `objectives/advantages.py`; the
step is `rl/update.py` `make_step`.
"""

import sys
from pathlib import Path

from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import rl, shared


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train the model of `run.init` on the prompts of `run.data`."""
    return rl.train("ppo", recipe, run)


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
