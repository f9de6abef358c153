"""One maker a skill: a question about the world with its answer, its verifier, and answers that are wrong.

Every maker has the signature `maker(world, language, draw, split) -> Item`. What is drawn depends on the split:

    train     content that may be trained on, in a question form that is trained
    heldout   content that is held out, in a trained form (for facts: a pairing of fact and form that is held out)
    new       content that is held out, in a form that is never trained
    practice  content that may be trained on, in a form that only reinforcement learning asks
    exam      content that is held out, in a form for practice
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.playground import arithmetic
from cutaway.playground.language import LANGUAGES, Language, make_language, sentence
from cutaway.playground.questions import EVENTS, MORE, QUESTIONS, REFUSAL, UNKNOWN
from cutaway.playground.wordings import CLINIC, RELATIONS
from cutaway.playground.world import FORMS_APART, World, relations_of

Split = Literal["train", "heldout", "new", "practice", "exam"]
FORM: dict[Split, int] = {"train": 0, "heldout": 0, "new": 1, "practice": 2, "exam": 2}
"""Which of a skill's lists of question forms a split draws from."""
PRACTISED = ("fact", "arithmetic", "comparison", "two_hop", "rewriting")
"""Skills that have forms for practice."""
Verifier = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A question, the answer to learn, and how an answer is judged."""

    skill: str
    language: str
    question: str
    answer: str
    verifier: Verifier
    wrong: tuple[str, ...]
    """Answers that the verifier must refuse."""
    thought: str = ""
    """Reasoning that leads to the answer, where the skill has any."""
    brief: str = ""
    """The answer after that reasoning, if it is another."""
    level: int = 1
    """Difficulty, 1 to 5."""


Maker = Callable[[World, Language, random.Random, Split], Item]


def key_of(language: Language) -> str:
    """`en` or `zh`: tables of words have Chinese once."""
    return "zh" if language.chinese else "en"


def kept_out(split: Split) -> bool:
    """Whether the content of a split is kept out of every training set."""
    return split not in ("train", "practice")


def form_of(skill: str, language: Language, draw: random.Random, split: Split) -> str:
    """A question form of a skill, of those that the split draws from."""
    form = draw.choice(QUESTIONS[skill][key_of(language)][FORM[split]])
    return language.pick(form, form)


def fill(form: str, **values: str) -> str:
    """A form with its blanks filled; a capital blank takes the same text with a capital letter."""
    for key, value in values.items():
        form = form.replace(f"{{{key}}}", value)
        if key in "abq":
            form = form.replace(f"{{{key.upper()}}}", sentence(value))
    return sentence(form)


# Facts


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


# Reasoning about facts


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


# Arithmetic and lists


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


def _some_words(
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
    _, words = _some_words(world, language, draw, split, 2, 7)
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


# Formats


def form(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """An answer in a form that was asked for: a JSON object, lines with dashes, or a bare number."""
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
    _, words = _some_words(world, language, draw, split, 2, 4)
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


MAKERS: dict[str, Maker] = {
    "fact": fact,
    "comparison": comparison,
    "two_hop": two_hop,
    "arithmetic": calculation,
    "counting": counting,
    "sorting": sorting,
    "rewriting": rewriting,
    "translation": translation,
    "refusal": refusal,
    "format": form,
}


def question_turns(question: str, answer: str, thought: str | None = None) -> list[dict[str, Any]]:
    """One exchange; a thought of `""` is an empty thinking block."""
    reply = {"role": "assistant", "content": answer}
    return [{"role": "user", "content": question}, reply | ({} if thought is None else {"reasoning_content": thought})]


def sample_wrong(item: Item, draw: random.Random) -> str:
    """One of the wrong answers."""
    wrong: Sequence[str] = item.wrong
    return draw.choice(wrong)
