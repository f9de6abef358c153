"""Answers in a form that was asked for: a JSON object, lines with dashes, or a bare number."""

import json
import random

from cutaway.playground.exercises import some_words
from cutaway.playground.items import Item, Split, fill, form_of, kept_out
from cutaway.playground.language import Language
from cutaway.playground.wordings import CLINIC, RELATIONS
from cutaway.playground.world import World, relations_of


def formatted(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """One of the three."""
    return draw.choice((json_answer, bullets, number_only))(world, language, draw, split)


def json_answer(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """Two facts about a subject as a JSON object with the keys asked for; subject and pair of keys are held out."""
    while True:
        group = draw.choice(("person", "person", "good", "place", "shop", "festival"))
        subject = draw.randrange(len(language.words[group]))
        one, two = draw.sample(relations_of(group), 2)
        if world.held_out("pair", "json", subject, min(one, two), max(one, two)) == kept_out(split):
            break
    keys = [language.wordings[relation].key for relation in (one, two)]
    values = [
        world.values[relation][subject]
        if isinstance(RELATIONS[relation].values, range)
        else world.value(language, relation, subject)
        for relation in (one, two)
    ]
    name = language.subjects[group][subject]
    question = fill(form_of("json", language, draw, split), n=name, k=keys[0], l=keys[1])
    answer = json.dumps(dict(zip(keys, values, strict=True)), ensure_ascii=False)
    verifier = {"name": "format_json", "args": {"keys": keys}}
    states = language.join([world.state(language, relation, subject) for relation in (one, two)])
    wrong = (states, json.dumps({keys[0]: values[0]}, ensure_ascii=False), answer[:-1])
    return Item("format", language.code, question, answer, verifier, wrong, level=2)


def bullets(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A list, one word a line, each behind a dash."""
    _, words = some_words(world, language, draw, split, 2, 4)
    question = fill(form_of("bullets", language, draw, split), x=language.list(words))
    verifier = {"name": "regex_format", "args": {"pattern": r"\n".join(f"- {word}" for word in words)}}
    wrong = (language.list(words), "\n".join(words))
    answer = "\n".join(f"- {word}" for word in words)
    return Item("format", language.code, question, answer, verifier, wrong)


def number_only(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A fact that is a number, and nothing but its digits."""
    relations = [name for name, relation in RELATIONS.items() if isinstance(relation.values, range)]
    relations = [name for name in relations if name not in CLINIC]
    while True:
        relation = draw.choice(relations)
        subject = draw.randrange(len(world.values[relation]))
        core = draw.randrange(4)
        if world.held_out("pair", "number", relation, subject, core) == kept_out(split):
            break
    question = fill(
        form_of("number_only", language, draw, split),
        q=language.wordings[relation].asks[core].replace("{n}", world.name(language, relation, subject)),
    )
    answer = world.value(language, relation, subject)
    verifier = {"name": "regex_format", "args": {"pattern": r"[0-9]{1,2}"}}
    wrong = (world.state(language, relation, subject), language.pick("many", "很多"))
    return Item("format", language.code, question, answer, verifier, wrong)
