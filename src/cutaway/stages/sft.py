"""Supervised fine-tuning: predict the assistant's tokens of conversations, given everything before them.

    python -m cutaway.stages.sft recipe.toml [--resume]       the same as `cutaway sft`, without tyro

The equation is that of pretraining (`objectives/next_token.py`); what differs is which tokens are targets: those that
the assistant itself writes, the end of its turn included (`tokenization/chat.py`).
"""

import sys
import time
from pathlib import Path
from typing import Literal

from cutaway.recipe.base import TrainSettings
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import shared, supervised
from cutaway.training.distributed import joined_ranks


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Fine-tune the model of `run.init` on conversations."""
    return fine_tune("sft", recipe, run)


def fine_tune(stage: Literal["sft", "lora"], recipe: Recipe, run: RunSettings) -> Path:
    """Train on the assistant's tokens, with the settings of `stage`."""
    started = time.monotonic()
    shared.prepare_out(run)
    settings: TrainSettings = getattr(recipe, stage)
    with joined_ranks() as ranks:
        # An adapter's directory has no config of its own that could remember a stretch.
        model, tokenizer = shared.start_model(run, settings, recipe.model.rope_scaling if stage == "sft" else "")
        data = supervised.read_data("sft", settings, run, tokenizer, ranks)
        network = shared.build_network(model, settings, ranks)
        prompts = shared.question_prompts(tokenizer)
        material = supervised.next_token(stage, network, tokenizer, data, settings, prompts=prompts)
        return shared.train(material, shared.with_shape(recipe, model), run, started=started)


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
