"""Supervised fine-tuning: predict the assistant's tokens of conversations, given everything before them.

    python -m cutaway.stages.sft recipe.toml [--resume]       the same as `cutaway sft`, without tyro

The equation is that of pretraining (`objectives/next_token.py`); what differs is which tokens are targets: those that
the assistant itself writes, the end of its turn included (`tokenization/chat.py`).
"""

import dataclasses
import sys
import time
from pathlib import Path

from cutaway.errors import UserError
from cutaway.model.weights import load_model
from cutaway.recipe import Recipe, RunSettings, SFTSettings, TrainSettings
from cutaway.stages import supervised
from cutaway.stages.pretrain import model_settings
from cutaway.tokenization.chat import render
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import start_ranks, stop_ranks

QUESTIONS = ("What is the sun?", "你好，请介绍一下你自己。", "請說明什麼是颱風。")
"""What the model is asked while it trains (`samples.jsonl`)."""


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Fine-tune the model of `run.init` on conversations."""
    started = time.monotonic()
    supervised.prepare_out(run)
    if run.init is None:
        raise UserError("--init is missing: the model directory to fine-tune")
    settings = recipe.sft
    ranks = start_ranks()
    try:
        tokenizer = Tokenizer.load(run.init)
        if not tokenizer.is_native:
            raise UserError(f"{run.init}: its chat format is not the one trained here; use a tokenizer made by cutaway")
        model = load_model(run.init)
        recipe = dataclasses.replace(recipe, model=model_settings(recipe, model.config))
        data = supervised.read_data("sft", settings, run, tokenizer, ranks)
        material = supervised.Material("sft", model, tokenizer, *data)
        prompts = {
            question: render([{"role": "user", "content": question}], tokenizer, add_generation_prompt=True).ids
            for question in QUESTIONS
        }
        return supervised.train(
            material,
            settings,
            run,
            ranks,
            resolved=lambda settings: _with(recipe, settings),
            rules=[],
            prompts=prompts,
            started=started,
        )
    finally:
        stop_ranks(ranks)


def _with(recipe: Recipe, settings: TrainSettings) -> Recipe:
    assert isinstance(settings, SFTSettings)
    return dataclasses.replace(recipe, sft=settings)


if __name__ == "__main__":
    sys.exit(supervised.main(run, sys.argv[1:]))
