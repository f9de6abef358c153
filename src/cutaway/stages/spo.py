"""SPO: one answer a prompt, judged against what that prompt earned before (arXiv 2509.13232).

    python -m cutaway.stages.spo recipe.toml [--resume]       the same as `cutaway spo`, without tyro

The baseline is a tracker (`rl/value_tracker.py`), prompts are drawn by how uncertain it is (`rl/prompts.py`), the rest
is as in `stages/grpo.py`. `algorithm = "spo_global"` is MiniMind's variant with one tracker for all prompts.
"""

import sys
from pathlib import Path

from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import rl, shared


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train the model of `run.init` on the prompts of `run.data`."""
    return rl.train("spo", recipe, run)


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
