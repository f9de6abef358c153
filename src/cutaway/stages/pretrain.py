"""Pretraining: predict the next token of plain text.

    python -m cutaway.stages.pretrain recipe.toml [--resume]       the same as `cutaway pretrain`, without tyro

The equation is `objectives/next_token.py`, the network `model/transformer.py`, the loop `training/loop.py`.
"""

import sys
import time
from pathlib import Path

from cutaway.errors import UserError
from cutaway.generation.generate import document_prompt
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, load_model
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import shared, supervised
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import NEW_MODEL, Rule, derive_model
from cutaway.training.distributed import joined_ranks

PROMPTS = ("The ", "中国", "我們")
"""Beginnings that the model continues while it trains (`samples.jsonl`)."""


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Pretrain a new model (`run.init` is a tokenizer directory) or go on with one (a model directory)."""
    started = time.monotonic()
    shared.prepare_out(run)
    if run.init is None:
        raise UserError("--init is missing: a tokenizer directory (cutaway tokenizer train), or a model to go on with")
    settings = recipe.pretrain
    with joined_ranks() as ranks:
        tokenizer = Tokenizer.load(run.init)
        model, rules = build_model(recipe, Path(run.init), tokenizer)
        data = supervised.read_data("pretrain", settings, run, tokenizer, ranks)
        network = shared.build_network(model, settings, ranks)
        prompts = {text: document_prompt(text, tokenizer) for text in PROMPTS}
        material = supervised.next_token(
            "pretrain", network, tokenizer, data, settings, prompts=prompts, peak=NEW_MODEL
        )
        return shared.train(material, shared.with_shape(recipe, model), run, rules=rules, started=started)


def build_model(recipe: Recipe, init: Path, tokenizer: Tokenizer) -> tuple[CausalLM, list[Rule]]:
    """A model from `init`, or a new one of the recipe's shape with weights from the recipe's seed."""
    if (init / "config.json").is_file():
        model = load_model(init, rope_scaling=recipe.model.rope_scaling)
        if model.config.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"{init}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}"
            )
        return model, []
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, rules = derive_model(recipe.model, tokenizer.vocab_size, recipe.pretrain.row_length, ids)
    model = CausalLM(config)
    initialise(model, recipe.pretrain.seed)
    return model, rules


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
