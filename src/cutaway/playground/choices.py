"""Multiple-choice questions about the town, as records and in the layout of C-Eval (dev and val, one CSV a subject)."""

import csv
import io
import random
from collections.abc import Iterator
from typing import Any

from cutaway.playground.facts import ask
from cutaway.playground.language import Language, make_language
from cutaway.playground.wordings import RELATIONS
from cutaway.playground.world import World

Record = dict[str, Any]
SUBJECTS = {"people": ("person",), "goods": ("good",), "places": ("place", "shop", "festival")}
DEV = 5
"""Examples with an explanation for each subject, as C-Eval has them."""


def choice_records(
    world: World, seed: int, languages: tuple[str, ...], count: int = 120
) -> Iterator[tuple[str, str, list[Record]]]:
    """Subject, split (`dev` or `val`) and records with question, four choices, answer and explanation; `count` of val
    for each subject and language."""
    for code in languages:
        language = make_language(code)
        for subject, groups in SUBJECTS.items():
            draw = random.Random(f"choices {seed} {code} {subject}")
            facts = [fact for fact in world.facts() if RELATIONS[fact[0]].subjects in groups]
            name = f"{subject}_{code.lower().replace('-', '_')}"
            for split, wanted in (("dev", DEV), ("val", count)):
                found = [_record(world, language, draw, *draw.choice(facts)) for _ in range(wanted)]
                yield name, split, found


def _record(world: World, language: Language, draw: random.Random, relation: str, subject: int) -> Record:
    question = ask(world, language, draw, "train", relation, subject, world.name(language, relation, subject))
    right = world.value(language, relation, subject)
    choices = [right, *draw.sample(world.others(language, relation, subject), 3)]
    draw.shuffle(choices)
    explanation = world.state(language, relation, subject)
    return {"question": question, "choices": choices, "answer": choices.index(right), "explanation": explanation}


def ceval_csv(records: list[Record], dev: bool) -> str:
    """The CSV of a subject: id, question, A to D, answer, and for `dev` an explanation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "question", *"ABCD", "answer", *(["explanation"] if dev else [])])
    for number, record in enumerate(records):
        row = [number, record["question"], *record["choices"], "ABCD"[record["answer"]]]
        writer.writerow(row + ([record["explanation"]] if dev else []))
    return text.getvalue()
