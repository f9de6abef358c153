"""Pretraining: predict the next token of plain text.

    python -m cutaway.stages.pretrain recipe.toml [--resume]       the same as `cutaway pretrain`, without tyro

The equation is `objectives/next_token.py`, the network `model/transformer.py`, the loop `training/loop.py`.
"""

import dataclasses
import sys
import time
from pathlib import Path

from cutaway.errors import UserError
from cutaway.generation.generate import document_prompt
from cutaway.model.config import ModelConfig
from cutaway.model.rope import scaling_text
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, load_model
from cutaway.recipe import ModelSettings, PretrainSettings, Recipe, RunSettings, TrainSettings
from cutaway.stages import supervised
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import Rule, derive_model
from cutaway.training.distributed import start_ranks, stop_ranks

PROMPTS = ("The ", "中国", "我們")
"""Beginnings that the model continues while it trains (`samples.jsonl`)."""


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Pretrain a new model (`run.init` is a tokenizer directory) or go on with one (a model directory)."""
    started = time.monotonic()
    supervised.prepare_out(run)
    if run.init is None:
        raise UserError("--init is missing: a tokenizer directory (cutaway tokenizer train), or a model to go on with")
    settings = recipe.pretrain
    ranks = start_ranks()
    try:
        tokenizer = Tokenizer.load(run.init)
        model, recipe, rules = build_model(recipe, Path(run.init), tokenizer)
        data = supervised.read_data("pretrain", settings, run, tokenizer, ranks)
        material = supervised.Material("pretrain", model, tokenizer, *data)
        return supervised.train(
            material,
            settings,
            run,
            ranks,
            resolved=lambda settings: _with(recipe, settings),
            rules=rules,
            prompts={text: document_prompt(text, tokenizer) for text in PROMPTS},
            started=started,
        )
    finally:
        stop_ranks(ranks)


def build_model(recipe: Recipe, init: Path, tokenizer: Tokenizer) -> tuple[CausalLM, Recipe, list[Rule]]:
    """A model from `init`, or a new one of the recipe's shape with weights from the recipe's seed."""
    if (init / "config.json").is_file():
        model = load_model(init, rope_scaling=recipe.model.rope_scaling)
        if model.config.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"{init}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}"
            )
        return model, dataclasses.replace(recipe, model=model_settings(recipe, model.config)), []
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, rules = derive_model(recipe.model, tokenizer.vocab_size, recipe.pretrain.row_length, ids)
    model = CausalLM(config)
    initialise(model, recipe.pretrain.seed)
    return model, dataclasses.replace(recipe, model=model_settings(recipe, config)), rules


def model_settings(recipe: Recipe, config: ModelConfig) -> ModelSettings:
    """The recipe's table that describes a model as it is."""
    names = [field.name for field in dataclasses.fields(recipe.model) if field.name != "rope_scaling"]
    values = {name: getattr(config, name) for name in names}
    return dataclasses.replace(recipe.model, **values, rope_scaling=scaling_text(config))


def _with(recipe: Recipe, settings: TrainSettings) -> Recipe:
    assert isinstance(settings, PretrainSettings)
    return dataclasses.replace(recipe, pretrain=settings)


if __name__ == "__main__":
    sys.exit(supervised.main(run, sys.argv[1:]))
