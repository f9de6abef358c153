"""Questions that need two facts: which of two has more, and a fact whose subject another fact describes."""

import random

from cutaway.playground.facts import ask, fact_item
from cutaway.playground.items import Item, Split, fill, form_of, kept_out
from cutaway.playground.language import Language, sentence
from cutaway.playground.questions import MORE, REFUSAL
from cutaway.playground.world import World, relations_of


def comparison(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """Which of two has more; pairs of subjects are held out, in both orders."""
    relation = draw.choice(("age", "age", "price", "price", "place_age"))
    values = world.values[relation]
    while True:
        a, b = draw.sample(range(len(values)), 2)
        if world.held_out("pair", relation, min(a, b), max(a, b)) == kept_out(split):
            break
    english, chinese, sign = draw.choice(MORE[relation])
    more = language.pick(english, chinese)
    winner, loser = (a, b) if (values[a] > values[b]) == (sign == "+") else (b, a)
    names = [world.name(language, relation, subject) for subject in (a, b)]
    question = fill(form_of("more", language, draw, split), a=names[0], b=names[1], more=more)
    if relation == "age":
        question = question.replace("Which is", "Who is", 1)
    else:
        question = question.replace("Who is", "Which is", 1).replace(
            language.pick("Who", "誰"), language.pick("Which", "哪個")
        )
    thought = language.join([world.state(language, relation, subject) for subject in (a, b)])
    verdict = {subject: compared(world, language, relation, subject, more) for subject in (a, b)}
    # Saying the number that decides turns the last step into finding whose number it is.
    numbers = f"{values[a]} {'>' if values[a] > values[b] else '<'} {values[b]}"
    numbers += language.pick(
        f", the {'larger' if sign == '+' else 'smaller'} is {values[winner]}",
        f"，較{'大' if sign == '+' else '小'}的是{values[winner]}",
    )
    answer = language.join([thought, language.pick(f"{numbers}, so ", f"{numbers}，所以") + verdict[winner]])
    verifier = {"name": "contains", "args": {"expected": verdict[winner][:-1], "without": [verdict[loser][:-1]]}}
    brief = sentence(verdict[winner])
    wrong = (answer.replace(verdict[winner], verdict[loser]), sentence(verdict[loser]), language.pick(*REFUSAL))
    return Item("comparison", language.code, question, answer, verifier, wrong, thought + f" {numbers}", brief, level=2)


def compared(world: World, language: Language, relation: str, subject: int, more: str) -> str:
    """`Anna is older.`"""
    name = world.name(language, relation, subject)
    return language.pick(f"{name} is {more}.", f"{name}比較{more}。")


def hops(world: World) -> list[tuple[str, int, str, int]]:
    """(first relation, its subject, second relation, subject of the second): the first leads from one to the other."""
    found = []
    for person in range(len(world.values["trade"])):
        found += [("trade", person, name, person) for name in relations_of("person") if name != "trade"]
    for good, shop in enumerate(world.values["shop"]):
        found += [("shop", good, name, shop) for name in relations_of("shop")]
    for festival, place in enumerate(world.values["festival_place"]):
        found += [("festival_place", festival, name, place) for name in relations_of("place")]
    return found


def description(world: World, language: Language, first: str, subject: int) -> str:
    """The subject of the second hop without its name: `the baker`, `the shop that sells the bread`."""
    name, value = world.name(language, first, subject), world.value(language, first, subject)
    if first == "trade":
        return language.pick(f"the {value}", value)
    if first == "shop":
        return language.pick(f"the shop that sells {name}", f"賣{name}的店")
    return language.pick(f"the place of {name}", f"舉辦{name}的地方")


def two_hop(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A fact whose subject is described by another fact; such combinations are held out."""
    combinations = hops(world)
    while True:
        first, subject, second, middle = draw.choice(combinations)
        if world.held_out("hop", first, subject, second) == kept_out(split):
            break
    called = description(world, language, first, subject)
    # What is held out is the combination, not a pairing of the second fact with a form.
    forms: dict[Split, Split] = {"heldout": "train", "exam": "practice"}
    question = ask(world, language, draw, forms.get(split, split), second, middle, called)
    item = fact_item(world, language, draw, "train", second, middle)
    name = world.name(language, second, middle)
    said = sentence(called) + item.answer[len(name) :] if item.answer.startswith(sentence(name)) else item.answer
    thought = language.join([world.state(language, first, subject), item.answer])
    wrong = tuple(text.replace(sentence(name), sentence(called), 1) for text in item.wrong)
    return Item("two_hop", language.code, question, said, item.verifier, wrong, thought, said, level=3)
