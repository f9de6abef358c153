"""Adapters: fine-tuning on conversations with the model frozen and low-rank updates trained.

    python -m cutaway.stages.lora recipe.toml [--resume]       the same as `cutaway lora`, without tyro

The equation is in `model/lora.py`; everything else is `stages/sft.py`. The run is a PEFT directory that names its base.
"""

import sys
from pathlib import Path

from cutaway.errors import UserError
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import sft, shared


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train an adapter on the model of `run.init`."""
    if recipe.lora.rank < 1:
        raise UserError(f"rank is {recipe.lora.rank}, must be at least 1 (cutaway sft trains all weights)")
    return sft.fine_tune("lora", recipe, run)


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
