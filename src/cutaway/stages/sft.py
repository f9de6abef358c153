"""Supervised fine-tuning: predict the assistant's tokens of conversations, given everything before them.

    python -m cutaway.stages.sft recipe.toml [--resume]       the same as `cutaway sft`, without tyro

The equation is that of pretraining (`objectives/next_token.py`); what differs is which tokens are targets: those that
the assistant itself writes, the end of its turn included (`tokenization/chat.py`).
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cutaway.errors import UserError
from cutaway.generation.conversation import answer_prompt
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model
from cutaway.recipe import Recipe, RunSettings, TrainSettings
from cutaway.stages import supervised
from cutaway.stages.pretrain import model_settings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import start_ranks, stop_ranks

QUESTIONS = ("What is the sun?", "你好，请介绍一下你自己。", "請說明什麼是颱風。")
"""What the model is asked while it trains (`samples.jsonl`)."""


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Fine-tune the model of `run.init` on conversations."""
    return fine_tune("sft", recipe, run)


def fine_tune(
    stage: Literal["sft", "lora"], recipe: Recipe, run: RunSettings, change: Callable[[CausalLM], None] = lambda _: None
) -> Path:
    """Train on the assistant's tokens, with the settings of `stage`, the model that `change` makes of `run.init`'s."""
    started = time.monotonic()
    supervised.prepare_out(run)
    if run.init is None:
        raise UserError("--init is missing: the model directory to fine-tune")
    settings: TrainSettings = getattr(recipe, stage)
    ranks = start_ranks()
    try:
        tokenizer = Tokenizer.load(run.init)
        if tokenizer.chat_template is None:
            raise UserError(f"{run.init}: its tokenizer has no chat template to write conversations by")
        # An adapter's directory has no config of its own that could remember a stretch.
        model = load_model(run.init, rope_scaling=recipe.model.rope_scaling if stage == "sft" else "")
        change(model)
        recipe = dataclasses.replace(recipe, model=model_settings(recipe, model.config))
        data = supervised.read_data("sft", settings, run, tokenizer, ranks)
        material = supervised.Material("sft", model, tokenizer, *data, stage=stage)
        prompts = {text: answer_prompt([{"role": "user", "content": text}], tokenizer) for text in QUESTIONS}
        return supervised.train(
            material,
            settings,
            run,
            ranks,
            resolved=lambda settings: dataclasses.replace(recipe, **{stage: settings}),  # type: ignore[arg-type]
            rules=[],
            prompts=prompts,
            started=started,
        )
    finally:
        stop_ranks(ranks)


if __name__ == "__main__":
    sys.exit(supervised.main(run, sys.argv[1:]))
