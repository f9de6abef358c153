"""The life on the playground, part by part: data, vocabulary, every step of the table and what it changed."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cutaway.evals.results import Result
from cutaway.evals.tables import Table
from cutaway.life import report, town
from cutaway.life.journal import Journal
from cutaway.life.own import ASKED, OWN_ANSWERS, of_minutes, write_own_answers, write_own_pairs
from cutaway.life.parts import Part
from cutaway.life.scoring import ITEMS, Exam, read_exam, said, score
from cutaway.life.stage import Life, by_hand, train
from cutaway.life.steps import (
    DATA_MINUTES,
    LIFE_MINUTES,
    PLAYGROUND,
    REPORT_MINUTES,
    SCORE_MINUTES,
    TOKENIZER_MINUTES,
    Step,
)
from cutaway.playground.write import EXAMPLE_QUESTIONS
from cutaway.recipe.recipe import Recipe
from cutaway.tokenization.messages import Message

log = logging.getLogger("cutaway")


def playground_life(out: Path, journal: Journal, recipe: Recipe, steps: tuple[Step, ...] = PLAYGROUND) -> Life:
    """The life whose settings (`seed`, `budget_minutes`) are in a journal."""
    seed, minutes = int(journal.settings["seed"]), float(journal.settings["budget_minutes"])
    recipe = dataclasses.replace(recipe, tokenizer=town.tokenizer_settings(recipe.tokenizer.pattern, seed))
    return Life(out, out / "data", recipe, steps, seed, minutes, town.tools_of(out / "data"))


def playground_parts(life: Life, items: int = ITEMS) -> list[Part]:
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
        minutes = life.minutes_of(step) + (SCORE_MINUTES if step.stage != "pretrain" else 0.1)
        work = functools.partial(train_and_score, life, step, exam)
        parts.append(Part(step.stage, minutes, step.says, work, by_hand(life, step)))
    return parts


def _write_data(life: Life, size_mb: float) -> None:
    manifest = town.write_data(life.data, life.seed, size_mb)
    texts, talks = (manifest["files"][name]["records"] for name in ("pretrain.jsonl", "sft.jsonl"))
    log.info("  a town with %d facts, %d documents, %d conversations", manifest["facts"], texts, talks)


def train_and_score(life: Life, step: Step, exam: Callable[[], Exam]) -> None:
    """A stage, and what the model can do after it."""
    place = life.steps.index(step)
    before = life.steps[place - 1] if place else None
    if step.stage == "lora" and before is not None:
        write_own_answers(life.model_of(before), life.data, life.seed, of_minutes(OWN_ANSWERS, life.minutes))
    if step.stage == "dpo" and before is not None:
        write_own_pairs(life.model_of(before), life.data, life.seed, of_minutes(ASKED, life.minutes))
    train(life, step)
    earlier = _scores(life, before, exam()) if before is not None else None
    log.info("  scores: %s", said(_scores(life, step, exam()), step.raises, earlier))


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
