"""The life on the playground, part by part: data, vocabulary, every step of the table and what it changed."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cutaway.evals.results import Result
from cutaway.evals.tables import Table
from cutaway.life import report, town
from cutaway.life.journal import Journal
from cutaway.life.own import ASKED, OWN_ANSWERS, OWN_TALKS, of_minutes, write_own_answers, write_own_pairs
from cutaway.life.parts import Part, share_left
from cutaway.life.scoring import ITEMS, Exam, read_exam, said, score
from cutaway.life.stage import Life, by_hand, train
from cutaway.life.steps import (
    DATA_MINUTES,
    LIFE_MINUTES,
    LONG_MINUTES,
    OWN_MINUTES,
    PLAYGROUND,
    READ_MINUTES,
    README_TOKENS,
    REPORT_MINUTES,
    SCORE_MINUTES,
    SHORT_MINUTES,
    TOKENIZER_MINUTES,
    WIDTHS,
    Step,
)
from cutaway.playground.write import EXAMPLE_QUESTIONS
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import Recipe
from cutaway.tokenization.messages import Message
from cutaway.training.metrics import matmul_rate
from cutaway.training.plan import clock
from cutaway.training.precision import pick_device, pick_dtype

log = logging.getLogger("cutaway")
FLOPS = "flops"
"""In a journal's settings: what the machine multiplies in the minutes of pretraining and fine-tuning."""
WORTH_SAYING = 0.95
"""A share of a stage's minutes below which a line says so."""


def sized(recipe: Recipe, journal: Journal) -> Recipe:
    """The recipe with a model as wide as the machine can train in the minutes of a journal (`WIDTHS`). What it
    multiplies is measured where a life begins and kept in the journal, so that going on finds the same model."""
    if FLOPS not in journal.settings and journal.seconds:
        return recipe  # it began before there was a choice
    if FLOPS not in journal.settings:
        device = pick_device()
        minutes = LONG_MINUTES * float(journal.settings["budget_minutes"]) / LIFE_MINUTES
        journal.settings[FLOPS] = 60 * minutes * matmul_rate(device, pick_dtype("auto", device))
        journal.write()
    flops = journal.settings[FLOPS]
    shape = [shape for least, shape in WIDTHS if flops >= least][-1]
    model = dataclasses.replace(recipe.model, **shape)
    log.info("a model %d wide: this machine multiplies %.2g FLOPs in the long stages", model.hidden_size, flops)
    return dataclasses.replace(recipe, model=model)


def playground_life(out: Path, journal: Journal, recipe: Recipe, steps: tuple[Step, ...] = PLAYGROUND) -> Life:
    """The life whose settings (`seed`, `budget_minutes`) are in a journal."""
    seed, minutes = int(journal.settings["seed"]), float(journal.settings["budget_minutes"])
    recipe = dataclasses.replace(recipe, tokenizer=town.tokenizer_settings(recipe.tokenizer.pattern, seed))
    return Life(out, out / "data", recipe, steps, seed, minutes, town.tools_of(out / "data"))


def playground_parts(life: Life, journal: Journal, items: int = ITEMS) -> list[Part]:
    """Everything up to the last model."""
    assert life.minutes is not None
    scale, size_mb = life.minutes / LIFE_MINUTES, town.megabytes(life.minutes)
    exam = functools.cache(lambda: read_exam(life.data, town.tools_of(life.data), items))
    parts = [
        Part(
            "data",
            DATA_MINUTES * scale,
            "text about a made-up town, conversations, pairs, prompts",
            lambda: _write_data(life, size_mb),
            town.data_command(life.data, life.seed, size_mb),
        ),
        Part(
            "tokenizer",
            TOKENIZER_MINUTES,
            f"a vocabulary of {life.recipe.tokenizer.vocab_size} tokens for it",
            lambda: town.train_vocabulary(life.data, life.out / "tokenizer", life.recipe.tokenizer),
            town.tokenizer_command(life.data, life.out / "tokenizer", life.recipe.tokenizer),
        ),
    ]
    for step in life.steps:
        training = life.minutes_of(step)
        around = SCORE_MINUTES if step.stage != "pretrain" else READ_MINUTES
        around += OWN_MINUTES.get(step.stage, 0.0) * scale
        share = functools.partial(share_left, parts, step.stage, journal, life.minutes)
        work = functools.partial(train_and_score, life, step, exam, share)
        scalable = training if step.minutes >= SHORT_MINUTES and not step.has_own_horizon else 0.0
        parts.append(Part(step.stage, training + around, step.says, work, by_hand(life, step), scalable))
    return parts


def _write_data(life: Life, size_mb: float) -> None:
    manifest = town.write_data(life.data, life.seed, size_mb)
    texts, talks = (manifest["files"][name]["records"] for name in ("pretrain.jsonl", "sft.jsonl"))
    log.info("  a town with %d facts, %d documents, %d conversations", manifest["facts"], texts, talks)


def train_and_score(
    life: Life, step: Step, exam: Callable[[], Exam], share_left: Callable[[], float] = lambda: 1.0
) -> None:
    """A stage, for the share of its minutes that is left, and what the model can do after it."""
    place = life.steps.index(step)
    before = life.steps[place - 1] if place else None
    if step.stage == "lora" and before is not None:
        counts = of_minutes(OWN_ANSWERS, life.minutes), of_minutes(OWN_TALKS, life.minutes)
        write_own_answers(life.model_of(before), life.data, life.seed, *counts, town.tools_of(life.data))
    if step.stage == "dpo" and before is not None:
        write_own_pairs(life.model_of(before), life.data, life.seed, of_minutes(ASKED, life.minutes))
    share = share_left()
    if share < WORTH_SAYING and not (life.run_of(step) / "recipe.toml").is_file():
        wanted, given = (clock(60 * life.minutes_of(step, part)) for part in (1.0, share))
        log.info("  to end in time, this stage trains for %s in place of %s", given, wanted)
    train(life, step, share)
    if step.stage == "pretrain":
        say_how_slow(life, step)
    earlier = _scores(life, before, exam()) if before is not None else None
    log.info("  scores: %s", said(_scores(life, step, exam()), step.raises, earlier))


def say_how_slow(life: Life, step: Step) -> None:
    """Where the time was for far fewer tokens than on the machine of README's figures, in how much it would be."""
    settings = load_recipe(str(life.run_of(step) / "recipe.toml")).pretrain
    assert life.minutes is not None
    tokens, typical = (settings.steps or 0) * (settings.batch_tokens or 0), README_TOKENS
    if 0 < tokens < typical / 2:
        minutes = life.minutes * typical / tokens
        log.info(
            "  this machine reads %.1fM tokens in this time; the figures in README are of one that read %.1fM: "
            "--budget-minutes %.0f with another --out reads as many",
            *(tokens / 1e6, typical / 1e6, 5 * math.ceil(minutes / 5)),
        )


def _scores(life: Life, step: Step, exam: Exam) -> dict[str, Result]:
    """Of the model that a step leaves, beside its run."""
    return score(life.model_of(step), exam, step.stage != "pretrain", life.run_of(step))


def report_part(life: Life, journal: Journal, own: Callable[[], Sequence[Table]] = tuple) -> Part:
    """The report, with tables of the caller's own."""

    def work() -> None:
        prompts: list[list[Message]] = [[{"role": "user", "content": question}] for question in EXAMPLE_QUESTIONS]
        for path in report.write(life, journal, prompts, own()):
            log.info("  %s", path)

    return Part("report", REPORT_MINUTES, "scores, differences, curves, answers side by side", work)
