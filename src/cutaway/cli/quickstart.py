"""`cutaway quickstart`: the life of a small model, on text that the project makes itself."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cutaway.cli.common import parse
from cutaway.errors import UserError
from cutaway.recipe import PretrainSettings, Recipe, RunSettings, TokenizerSettings, load_recipe, load_run

log = logging.getLogger("cutaway")

VOCAB_SIZE = 2000
TRAINING: dict[Literal["pretrain", "sft"], float] = {"pretrain": 0.55, "sft": 0.45}
"""Shares of the time for training that the two stages get."""
RATES: dict[str, dict[str, Any]] = {
    "pretrain": {"batch_tokens": 4096, "optimizer": "muon", "muon_lr": 0.015, "adam_lr": 0.003},
    "sft": {"batch_tokens": 4096, "optimizer": "muon", "muon_lr": 0.01, "adam_lr": 0.002},
}
"""Many small steps: in so short a run their number counts for more than how smooth each is."""
_LEAST_MINUTES = 1.0
_SIZE_MB = 6.0
_MB_A_MINUTE = 2.0
_TOKENIZER_BYTES = 4_000_000
_HOLDOUT_TOKENS = 4096
_ANSWER_TOKENS = "64"
_EPOCHS: dict[Literal["pretrain", "sft"], float] = {"pretrain": 1, "sft": 1}


@dataclass(frozen=True)
class QuickstartFlags:
    """Make a small text set, train a vocabulary on it, pretrain and fine-tune a model, then talk to it."""

    out: str = "runs/quickstart"
    """Directory for data, tokenizer and runs; a second call goes on where the first one stopped."""
    budget_minutes: float | None = None
    """Time for everything on this machine; by default as many passes over the text as it takes to learn it, which is
    about seven minutes on two processor cores, and gives the same model on every machine."""
    seed: int = 0
    """Seed of the text, the weights and the order of the data."""


def main(argv: Sequence[str]) -> int:
    """Train, then open the chat; without a terminal, print a few answers instead."""
    flags = parse(QuickstartFlags, argv, prog="cutaway quickstart")
    if flags.budget_minutes is not None and flags.budget_minutes < _LEAST_MINUTES:
        raise UserError(
            f"cutaway quickstart: --budget-minutes is {flags.budget_minutes}, must be {_LEAST_MINUTES} or more"
        )
    from cutaway.cli import chat
    from cutaway.playground.write import EXAMPLE_QUESTIONS

    model = train(flags)
    log.info("5/5 chat: `cutaway chat %s` opens it again", model)
    if sys.stdin.isatty() and sys.stdout.isatty():
        log.info("things it has learnt: %s", " · ".join(EXAMPLE_QUESTIONS))
        return chat.main([str(model)])
    for question in EXAMPLE_QUESTIONS:
        print(f"> {question}", flush=True)
        chat.main([str(model), "--prompt", question, "--temperature", "0", "--max-new-tokens", _ANSWER_TOKENS])
    return 0


def train(flags: QuickstartFlags) -> Path:
    """From nothing to a chat model; gives back its run directory."""
    from cutaway.playground.write import PlaygroundSettings, write_playground
    from cutaway.stages import pretrain, sft
    from cutaway.tokenization.train import train_tokenizer

    started, out = time.monotonic(), Path(flags.out)
    _check_seed(out, flags.seed)
    budget = None
    size = _SIZE_MB if flags.budget_minutes is None else _MB_A_MINUTE * flags.budget_minutes
    manifest = write_playground(out / "data", PlaygroundSettings(seed=flags.seed, size_mb=size))
    documents, conversations = out / "data" / "pretrain.jsonl", out / "data" / "sft.jsonl"
    counts = [manifest["files"][path.name]["records"] for path in (documents, conversations)]
    log.info(
        "1/5 data: a town with %d facts, %d documents, %d conversations in %s", manifest["facts"], *counts, out / "data"
    )
    recipe = load_recipe("nano")
    recipe = replace(recipe, tokenizer=TokenizerSettings(VOCAB_SIZE, recipe.tokenizer.pattern, seed=flags.seed))
    tokenizer = train_tokenizer(texts_for_tokenizer(out / "data"), recipe.tokenizer)
    tokenizer.save(out / "tokenizer")
    log.info("2/5 tokenizer: %d tokens in %s", tokenizer.vocab_size, out / "tokenizer")
    if flags.budget_minutes is not None:
        budget = flags.budget_minutes - (time.monotonic() - started) / 60
    log.info("3/5 pretraining")
    base = pretrain.run(*_stage(recipe, "pretrain", flags, budget, documents, out / "tokenizer"))
    log.info("4/5 fine-tuning on conversations")
    return sft.run(*_stage(recipe, "sft", flags, budget, conversations, base))


def texts_for_tokenizer(data: Path) -> Iterator[str]:
    """The first megabytes of both sets as the model will read them, tool schemas included, for the vocabulary."""
    from cutaway.tokenization.chat import render_text

    for name in ("pretrain.jsonl", "sft.jsonl"):
        read = 0
        with (data / name).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                text = record["text"] if "text" in record else render_text(record["conversations"])
                yield text
                read += len(line.encode())
                if read > _TOKENIZER_BYTES:
                    break


def _check_seed(out: Path, seed: int) -> None:
    """A quickstart that was interrupted goes on with its own seed only."""
    recipe = out / "pretrain" / "recipe.toml"
    if recipe.is_file() and (before := load_recipe(str(recipe)).pretrain.seed) != seed:
        raise UserError(f"{out} holds a quickstart with seed {before}: give that one, or another --out")


def _stage(
    recipe: Recipe,
    name: Literal["pretrain", "sft"],
    flags: QuickstartFlags,
    budget: float | None,
    data: Path,
    init: Path,
) -> tuple[Recipe, RunSettings]:
    """Settings of a stage with its share of the time, or those of the run that is there already, to go on with."""
    from cutaway.training.checkpoint import Checkpoints

    out = Path(flags.out) / name
    if Checkpoints(out, 1).steps() and (out / "recipe.toml").is_file():
        return load_recipe(str(out / "recipe.toml")), replace(
            load_run(str(out / "recipe.toml")), out=str(out), resume=True
        )
    settings = replace(
        recipe.pretrain if name == "pretrain" else recipe.sft,
        minutes=None if budget is None else 0.95 * TRAINING[name] * budget,
        epochs=_EPOCHS[name] if budget is None else None,
        seed=flags.seed,
        scripts="keep",  # the set has both scripts already
        holdout_tokens=_HOLDOUT_TOKENS,
        **RATES[name],
    )
    recipe = (
        replace(recipe, pretrain=settings) if isinstance(settings, PretrainSettings) else replace(recipe, sft=settings)
    )
    return recipe, RunSettings(data=(str(data),), out=str(out), init=str(init))
