"""Adapters: fine-tuning on conversations with the model frozen and low-rank updates trained.

    python -m cutaway.stages.lora recipe.toml [--resume]       the same as `cutaway lora`, without tyro

The equation is in `model/lora.py`; everything else is `stages/sft.py`. The run is a PEFT directory that names its base.
"""

import sys
from pathlib import Path

from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import is_adapter
from cutaway.recipe import LoRASettings, Recipe, RunSettings
from cutaway.stages import sft, supervised


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train an adapter on the model of `run.init`."""
    if run.init is not None and is_adapter(Path(run.init)):
        raise UserError(f"{run.init} is an adapter: merge it first (cutaway merge {run.init} --out DIR)")

    def change(model: CausalLM) -> None:
        adapt(model, lora_config(recipe.lora), recipe.lora.seed)

    return sft.fine_tune("lora", recipe, run, change)


def lora_config(settings: LoRASettings) -> LoRAConfig:
    """The adapter that the settings describe."""
    return LoRAConfig(settings.rank, settings.alpha, settings.dropout, settings.targets, settings.rslora, settings.dora)


if __name__ == "__main__":
    sys.exit(supervised.main(run, sys.argv[1:]))
