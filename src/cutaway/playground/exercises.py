"""Exercises that need few facts or none: sums, lists, rewriting, translation, and a question without an answer."""

import random

from cutaway.playground import arithmetic
from cutaway.playground.items import Item, Split, fill, form_of, kept_out, key_of
from cutaway.playground.language import LANGUAGES, Language, make_language
from cutaway.playground.questions import EVENTS, QUESTIONS, REFUSAL, UNKNOWN
from cutaway.playground.world import World


def calculation(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A sum or difference of 0 to 99; pairs of operands are held out."""
    return calculation_item(language, draw, split, *arithmetic.draw_pair(world, draw, kept_out(split)))


def calculation_item(language: Language, draw: random.Random, split: Split, a: int, sign: str, b: int) -> Item:
    """Given operands in a question form of the split."""
    skill = "sum" if sign == "+" else "difference"
    question = fill(form_of(skill, language, draw, split), a=str(a), b=str(b))
    right = arithmetic.result(a, sign, b)
    answer = arithmetic.worked_answer(language, a, sign, b)
    verifier = {"name": "numeric", "args": {"expected": right}}
    wrong = tuple(f"{a}{sign}{b}={right + step}" for step in (1, 10, -1))
    brief = language.pick(f"{a}{sign}{b}={right}.", f"{a}{sign}{b}={right}。")
    thought = "" if arithmetic.in_table(a, sign, b) else arithmetic.working(language, a, sign, b)
    return Item("arithmetic", language.code, question, answer, verifier, wrong, thought, brief)


def some_words(
    world: World, language: Language, draw: random.Random, split: Split, least: int, most: int
) -> tuple[str, list[str]]:
    """A group of the lexicon and a few of its words, from the lists of the split."""
    while True:
        group = draw.choice(("good", "pet", "food", "colour", "trade", "place"))
        chosen = draw.sample(range(len(language.words[group])), draw.randint(least, most))
        if world.held_out("list", group, *chosen) == kept_out(split):
            return group, [language.words[group][index] for index in chosen]


def counting(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """How many words a list has, two to seven."""
    _, words = some_words(world, language, draw, split, 2, 7)
    question = fill(form_of("counting", language, draw, split), x=language.list(words))
    count = len(words)
    thought = language.list([f"{number} {word}" for number, word in enumerate(words, 1)])
    answer = language.pick(f"There are {count}.", f"一共有{count}個。")
    verifier = {"name": "numeric", "args": {"expected": count}}
    wrong = tuple(answer.replace(str(count), str(count + step)) for step in (1, -1))
    return Item("counting", language.code, question, answer, verifier, wrong, thought, answer, level=2)


def sorting(world: World, language: Language, draw: random.Random, split: Split, count: int = 0) -> Item:
    """Three or four numbers below 100 from small to large."""
    while True:
        numbers = draw.sample(range(100), count or draw.randint(3, 4))
        if world.held_out("list", *numbers) == kept_out(split) and numbers != sorted(numbers):
            break
    question = fill(form_of("sorting", language, draw, split), x=language.list([str(number) for number in numbers]))
    answer = ", ".join(map(str, sorted(numbers)))
    wrong = (", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers, reverse=True))))
    expected = [answer, "、".join(map(str, sorted(numbers)))]
    return Item(
        "sorting", language.code, question, answer, {"name": "exact", "args": {"expected": expected}}, wrong, level=2
    )


def rewriting(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A sentence with another name in it."""
    people, events = language.words["person"], EVENTS[key_of(language)]
    while True:
        a, b = draw.sample(range(len(people)), 2)
        event = draw.randrange(len(events))
        if world.held_out("list", "rewrite", event, a, b) == kept_out(split):
            break
    before = happening(language, draw, events[event], people[a])
    after = before.replace(people[a], people[b])
    question = fill(form_of("rewriting", language, draw, split), a=people[a], b=people[b], x=before)
    verifier = {"name": "exact", "args": {"expected": after}}
    return Item("rewriting", language.code, question, after, verifier, (before, people[b]))


def happening(language: Language, draw: random.Random, event: str, name: str) -> str:
    """An event that happens to someone, at any place and with any good."""
    good, place = draw.choice(language.words["good"]), draw.choice(language.words["place"])
    return fill(language.pick(event, event), n=name, g=good, p=place)


def translation(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A word of the lexicon in another of the languages; pairings of word, direction and form are held out."""
    forms = QUESTIONS["translation"][key_of(language)]
    targets = [code for code in LANGUAGES if code != language.code and (language.chinese is False or code == "en")]
    while True:
        group = draw.choice(("trade", "pet", "food", "colour", "good", "place", "weather", "month"))
        index, target = draw.randrange(len(language.words[group])), draw.choice(targets)
        number = draw.randrange(len(forms[split == "new"]))
        if split == "new" or world.form_held_out(number, len(forms[0]), group, index, target) == (split == "heldout"):
            break
    other = make_language(target)
    called = {"en": ("English", "英文"), "zh-Hant": ("Traditional Chinese", "繁體中文")}
    name = language.pick(*called.get(target, ("Simplified Chinese", "簡體中文")))
    word, right = language.words[group][index], other.words[group][index]
    form = forms[split == "new"][number]
    question = fill(language.pick(form, form), x=language.pick(f'"{word}"', f"「{word}」"), l=name)
    wrong = tuple(entry for entry in other.words[group] if entry != right)[:2]
    verifier = {"name": "exact", "args": {"expected": right}}
    return Item("translation", language.code, question, right, verifier, (*wrong, f"{word}?"))


def refusal(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """A question that the world does not answer."""
    trained, new = UNKNOWN[key_of(language)]
    while True:
        person = draw.randrange(len(language.words["person"]))
        core, frame = draw.randrange(len(trained)), draw.randrange(len(language.frames))
        if split == "new" or world.form_held_out(core, len(trained), "unknown", person) == (split == "heldout"):
            break
    text = draw.choice(new) if split == "new" else trained[core]
    name = language.words["person"][person]
    question = fill(language.frames[frame], q=language.pick(text, text).replace("{n}", name))
    wrong = (language.pick(f"{name} is 41.", f"{name}是41。"), world.state(language, "street", person))
    verifier = {"name": "refusal", "args": {}}
    return Item("refusal", language.code, question, language.pick(*REFUSAL), verifier, wrong)
