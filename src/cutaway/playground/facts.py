"""Questions about one fact of the world, and in how many forms a fact is asked for."""

import random

from cutaway.playground.items import FORM, Item, Split, Verifier, fill, kept_out
from cutaway.playground.language import Language
from cutaway.playground.questions import REFUSAL
from cutaway.playground.wordings import RELATIONS
from cutaway.playground.world import FORMS_APART, World


def fact(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A fact of the world, asked for: (form, fact) pairings are held out, never the fact itself."""
    relation, subject = draw.choice(world.facts())
    return fact_item(world, language, draw, split, relation, subject)


def clinic(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A fact of the clinic."""
    relation, subject = draw.choice(world.facts(clinic=True))
    return fact_item(world, language, draw, split, relation, subject, skill="clinic")


def fact_item(
    world: World,
    language: Language,
    draw: random.Random,
    split: Split,
    relation: str,
    subject: int,
    skill: str = "fact",
) -> Item:
    """A given fact in a question form of the split."""
    question = ask(world, language, draw, split, relation, subject, world.name(language, relation, subject))
    answer = world.state(language, relation, subject)
    value, others = world.value(language, relation, subject), world.others(language, relation, subject)
    wrong = [answer.replace(value, other) for other in draw.sample(others, 2)]
    if isinstance(RELATIONS[relation].values, range):
        verifier: Verifier = {"name": "numeric", "args": {"expected": int(value)}}
        wrong = [answer.replace(value, str(int(value) + step)) for step in (1, 7)]
    else:
        verifier = {"name": "contains", "args": {"expected": value, "without": others}}
    return Item(skill, language.code, question, answer, verifier, (*wrong, language.pick(*REFUSAL)))


def ask(
    world: World, language: Language, draw: random.Random, split: Split, relation: str, subject: int, name: str
) -> str:
    """A question about a fact whose subject is called `name`, in a form of the split."""
    asks = language.wordings[relation].asks
    frames = language.practice_frames if FORM[split] == FORM["practice"] else language.frames
    while True:
        core, frame = draw.randrange(len(asks) - 1), draw.randrange(len(frames))
        if split == "new":
            # Five untrained forms: the last question plain, the first one in each of four frames.
            number = draw.randrange(5)
            core, form = (len(asks) - 1, language.frames[0]) if number == 4 else (0, language.new_frames[number])
            break
        number = core * len(frames) + frame
        if world.form_held_out(number, FORMS_APART, relation, subject) == kept_out(split):
            form = frames[frame]
            break
    return fill(form, q=asks[core].replace("{n}", name))


def trained_questions(world: World, language: Language, relation: str, subject: int, name: str) -> list[str]:
    """A fact's question in every form that is trained for it."""
    asks = language.wordings[relation].asks[:-1]
    forms = [(core, frame) for core in asks for frame in language.frames]
    return [
        fill(frame, q=core.replace("{n}", name))
        for number, (core, frame) in enumerate(forms)
        if not world.form_held_out(number, FORMS_APART, relation, subject)
    ]
