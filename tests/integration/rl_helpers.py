"""Small RL runs in this process: a random model, prompts that a random model solves now and then."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, save_model
from cutaway.recipe.base import ModelSettings, TokenizerSettings
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import agent, grpo, ppo, spo
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.derive import derive_model

TEXTS = ["the cat sat on the mat and the dog sat on the cat", "a price, a day, a lamp: 12 coins today"] * 20
STAGES = {"grpo": grpo, "spo": spo, "ppo": ppo, "agent": agent}
SMALL: dict[str, Any] = {
    "row_length": 96,
    "max_new_tokens": 12,
    "prompts_per_rollout": 6,
    "minibatches": 2,
    "steps": 4,
    "adam_lr": 1e-3,
    "precision": "fp32",
    "holdout_prompts": 4,
    "slots": 16,
    "log_every": 1,
    "eval_every": 100,
    "save_every": 2,
    "workers": 1,
}


def write_model(folder: Path, seed: int = 0, ends: int = 0, experts: int = 0) -> Path:
    """A chat model with random weights; `ends` of its ordinary tokens end an answer as well, which else hardly one of
    its answers does."""
    tokenizer: Tokenizer = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300))
    settings = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_experts=experts)
    config, _ = derive_model(settings, tokenizer.vocab_size, 128, (tokenizer.im_end_id, tokenizer.eos_id))
    if ends:
        stops = [tokenizer.im_end_id, tokenizer.eos_id, *range(tokenizer.vocab_size - ends, tokenizer.vocab_size)]
        config = dataclasses.replace(config, eos_token_id=stops)
    model = CausalLM(config)
    initialise(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    save_model(model, folder, config)
    return folder


def write_prompts(path: Path, count: int = 20, **more: Any) -> Path:
    """Questions that are answered by any text with an "a" in it, of two levels."""
    verifier = {"name": "regex_format", "args": {"pattern": "a", "whole": False}}
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [{"role": "user", "content": f"the cat {number}"}]
            record = {"id": f"p{number}", "level": number % 2 + 1, "conversations": turns, "verifier": verifier}
            file.write(json.dumps({**record, **more}) + "\n")
    return path


def train(stage: str, init: Path, data: Path, out: Path, resume: bool = False, **settings: Any) -> list[dict[str, Any]]:
    """Run a stage and give back the lines of its metrics."""
    recipe = Recipe()
    values = SMALL | settings
    own = dataclasses.replace(getattr(recipe, stage), **values)
    recipe = dataclasses.replace(recipe, **{stage: own})
    STAGES[stage].run(recipe, RunSettings(data=(str(data),), init=str(init), out=str(out), resume=resume))
    return rows_of(out)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def trained(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "loss" in row]


def state_of(run: Path, step: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((run / "state" / f"step-{step:08d}" / "state.json").read_text())
    return found
