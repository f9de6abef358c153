"""Text to pretrain on: the town's encyclopedia, tables, dialogues, stories, comparisons, glossaries and sums."""

import functools
import json
import random
from collections.abc import Callable, Iterator

from cutaway.playground import arithmetic
from cutaway.playground.exercises import calculation_item, happening
from cutaway.playground.identity import ANSWERS, FORMS, NEW_FORMS
from cutaway.playground.items import key_of
from cutaway.playground.language import LANGUAGES, Language, make_language, sentence
from cutaway.playground.mixing import Shares, token_estimate
from cutaway.playground.questions import EVENTS
from cutaway.playground.skills import MAKERS
from cutaway.playground.wordings import CLINIC, RELATIONS
from cutaway.playground.world import World, is_woman, relations_of
from cutaway.playground.world_tools import exchange, make_toolbox
from cutaway.tools.toolbox import Toolbox

SHARES = {
    "entry": 0.41,
    "table": 0.03,
    "dialogue": 0.12,
    "story": 0.02,
    "comparison": 0.08,
    "glossary": 0.02,
    "sums": 0.13,
    "notes": 0.06,
    "drill": 0.13,
}
"""Shares of the tokens. Facts stand in entries, tables and dialogues: a quickstart reads each a hundred times."""
DAYS = 64
"""Days whose tools answer in training; evaluation has later ones."""


def documents(world: World, seed: int, languages: tuple[str, ...], size: int) -> Iterator[str]:
    """Documents of `size` bytes of UTF-8 in all, the languages in turn."""
    draw = random.Random(f"documents {seed}")
    shares = {code: Shares(SHARES) for code in languages}
    toolboxes = {code: [make_toolbox(world, day, code) for day in range(DAYS)] for code in languages}
    entries = {code: _Entries(world, make_language(code), draw) for code in languages}
    written, number = 0, 0
    while written < size:
        code = languages[number % len(languages)]
        language = make_language(code)
        kind = shares[code].next()
        if kind == "entry":
            text = entries[code].next()
        elif kind == "notes":
            text = notes(world, language, draw, draw.choice(toolboxes[code]))
        else:
            text = WRITERS[kind](world, language, draw)
        shares[code].add(kind, token_estimate(text))
        written, number = written + len(text.encode()), number + 1
        yield text


class _Entries:
    """Encyclopedia entries; every fact comes up equally often."""

    def __init__(self, world: World, language: Language, draw: random.Random) -> None:
        self.world, self.language, self.draw = world, language, draw
        self.queue: list[tuple[str, int]] = []
        self.unsaid: dict[tuple[str, int], list[str]] = {}

    def next(self) -> str:
        """One to three subjects, each with up to five of its facts in any order."""
        sentences: list[str] = []
        for _ in range(self.draw.randint(1, 3)):
            if not self.queue:
                self.queue = [
                    (group, subject)
                    for group in ("person",) * 5 + ("good", "place", "shop", "festival") * 2
                    for subject in range(len(self.language.words[group]))
                ]
                self.draw.shuffle(self.queue)
            sentences += self._about(*self.queue.pop())
        return self.language.join(sentences)

    def _about(self, group: str, subject: int) -> list[str]:
        language, draw = self.language, self.draw
        unsaid = self.unsaid.setdefault((group, subject), [])
        if not unsaid:
            unsaid += draw.sample(relations_of(group), len(relations_of(group)))
        count = draw.randint(3, 5)
        chosen, unsaid[:] = unsaid[:count], unsaid[count:]
        name = language.subjects[group][subject]
        said: list[str] = []
        for relation in chosen:
            states = language.wordings[relation].states
            template = states[draw.randrange(len(states))]
            if said and group == "person" and template.startswith("{n}") and draw.random() < 0.4:
                template = with_pronoun(template, language, subject)
            if draw.random() < 0.15:
                template = draw.choice(language.openers) + template[0].lower() + template[1:]
            text = template.replace("{n}", name).replace("{v}", self.world.value(language, relation, subject))
            said.append(sentence(text))
        return said


def with_pronoun(template: str, language: Language, person: int) -> str:
    """A sentence about a person that begins with the name, with `he` or `she` in its place."""
    rest = template.removeprefix("{n}")
    if language.chinese:
        return ("她" if is_woman(person) else "他") + rest
    if rest.startswith("'s"):
        return ("her" if is_woman(person) else "his") + rest[2:]
    return ("she" if is_woman(person) else "he") + rest


def table(world: World, language: Language, draw: random.Random) -> str:
    """A few subjects of a group with two or three of their facts, as a Markdown table or as lines."""
    group = draw.choice(("person", "person", "good", "place", "shop", "festival"))
    names = relations_of(group)
    columns = draw.sample(names, min(len(names), draw.randint(2, 3)))
    subjects = draw.sample(range(len(language.words[group])), draw.randint(3, 5))
    heads = [language.pick("name", "名稱"), *(language.wordings[relation].key for relation in columns)]
    rows = [
        [language.words[group][subject], *(world.value(language, relation, subject) for relation in columns)]
        for subject in subjects
    ]
    if draw.random() < 0.5:
        return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])
    colon, comma = language.pick(": ", "："), language.pick(", ", "，")
    return "\n".join(comma.join(f"{head}{colon}{cell}" for head, cell in zip(heads, row, strict=True)) for row in rows)


_DIALOGUE = ("fact", "fact", "fact", "fact", "two_hop", "comparison", "arithmetic", "counting", "refusal", "sorting",
             "format")  # fmt: skip


def dialogue(world: World, language: Language, draw: random.Random) -> str:
    """Two people of the town ask and answer."""
    first, second = draw.sample(language.words["person"], 2)
    colon = language.pick(": ", "：")
    lines = []
    for _ in range(draw.randint(1, 3)):
        item = MAKERS[draw.choice(_DIALOGUE)](world, language, draw, "train")
        answer = f"{item.thought} {item.answer}" if item.skill == "two_hop" else item.answer
        lines += [f"{first}{colon}{item.question}", f"{second}{colon}{answer}"]
        first, second = second, first
    return "\n".join(lines)


def story(world: World, language: Language, draw: random.Random) -> str:
    """A day whose events change what someone holds or where a thing is; the end says what is true then."""
    person, friend = draw.sample(range(len(language.words["person"])), 2)
    name, other = language.words["person"][person], language.words["person"][friend]
    thing = draw.choice(language.words["good"])
    if draw.random() < 0.5:
        return _counting_story(language, draw, name, other, thing)
    place, then, last = draw.sample(language.words["place"], 3)
    said = [language.pick(f"{name} leaves the {thing} at the {place}.", f"{name}把{thing}放在{place}。")]
    said.append(happening(language, draw, draw.choice(EVENTS[key_of(language)]), other))
    said.append(language.pick(f"Then {other} takes the {thing} to the {then}.", f"後來{other}把{thing}拿到{then}。"))
    if draw.random() < 0.5:
        said.append(language.pick(f"In the evening it goes to the {last}.", f"晚上它又到了{last}。"))
        then = last
    said.append(language.pick(f"So now the {thing} is at the {then}.", f"所以現在{thing}在{then}。"))
    return language.join(said)


def _counting_story(language: Language, draw: random.Random, name: str, other: str, thing: str) -> str:
    have = draw.randint(2, 6)
    said = [language.pick(f"{name} has {have} of the {thing} kind.", f"{name}有{have}個{thing}。")]
    for _ in range(draw.randint(1, 3)):
        step = draw.randint(1, 3)
        if have > step and draw.random() < 0.5:
            have -= step
            said.append(language.pick(f"{name} gives {step} to {other}.", f"{name}給{other}{step}個。"))
        else:
            have += step
            said.append(language.pick(f"{name} buys {step} more.", f"{name}又買了{step}個。"))
        if draw.random() < 0.5:
            said.append(language.pick(f"That makes {have}.", f"這樣是{have}個。"))
    said.append(language.pick(f"Now {name} has {have}.", f"現在{name}有{have}個。"))
    return language.join(said)


def compare(world: World, language: Language, draw: random.Random) -> str:
    """Statements of who has more, with the numbers."""
    return language.join(
        [MAKERS["comparison"](world, language, draw, "train").answer for _ in range(draw.randint(2, 3))]
    )


def glossary(world: World, language: Language, draw: random.Random) -> str:
    """Words of the lexicon in two languages."""
    other = make_language(draw.choice([code for code in LANGUAGES if code != language.code]))
    group = draw.choice(("trade", "pet", "food", "colour", "good", "place", "weather", "month"))
    count = len(language.words[group])
    chosen = draw.sample(range(count), min(count, draw.randint(4, 6)))
    return "\n".join(f"{language.words[group][index]} = {other.words[group][index]}" for index in chosen)


def drill(world: World, language: Language, draw: random.Random) -> str:
    """Words or numbers said twice, backwards, or line by line: to copy is the first thing every other skill needs. Some
    words are made up, so that no piece of a word is unheard of when a name is to be learnt that the town has not."""
    lines = []
    for _ in range(draw.randint(2, 4)):
        kind = draw.random()
        if kind < 0.3:
            words = [str(draw.randrange(1000)) for _ in range(draw.randint(2, 4))]
        elif kind < 0.6:
            words = [made_up(language, draw) for _ in range(draw.randint(2, 3))]
        else:
            groups = draw.choices(("person", "good", "place", "trade", "month", "food"), k=draw.randint(2, 4))
            words = [draw.choice(language.words[group]) for group in groups]
        again = language.pick(" once more: ", "，再說一次：")
        if draw.random() < 0.25:
            lines.append(
                language.list(words) + language.pick(" backwards: ", "，倒過來：") + language.list(words[::-1])
            )
        elif draw.random() < 0.5:
            lines.append("\n- ".join([language.list(words), *words]))
        else:
            lines.append(language.list(words) + again + language.list(words))
    return "\n".join(lines)


def made_up(language: Language, draw: random.Random) -> str:
    """A word of one to three pieces of others: of the lexicon's, and of those that tell who a model is."""
    letters, longest = _letters(language.code), 2 if language.chinese else 5
    pieces = []
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(letters) - longest)
        pieces.append(letters[start : start + draw.randint(1, longest)])
    word = "".join(pieces)
    return word.capitalize() if draw.random() < 0.3 else word


@functools.cache
def _letters(code: str) -> str:
    language = make_language(code)
    told = [form for forms in FORMS[key_of(language)].values() for form in forms[:-NEW_FORMS]]
    told += [form for forms in ANSWERS[key_of(language)].values() for form in forms]
    clinic = {group for name in CLINIC for group in (RELATIONS[name].subjects, RELATIONS[name].values)}
    words = [word for group, entries in language.words.items() if group not in clinic for word in entries]
    return "".join(filter(str.isalnum, language.pick("".join(told), "".join(told)) + "".join(words)))


def sums(world: World, language: Language, draw: random.Random) -> str:
    """Sums and differences: bare, in words, worked out in columns, or as a question with its answer."""
    style = draw.random()
    lines = []
    for _ in range(draw.randint(3, 5)):
        a, sign, b = arithmetic.draw_pair(world, draw)
        if draw.random() < 0.2:
            a, b = draw.randrange(10), draw.randrange(10)
            a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        right = arithmetic.result(a, sign, b)
        if style < 0.15:
            lines.append(f"{a}{sign}{b}={right}")
        elif style < 0.3:
            word = language.pick("plus" if sign == "+" else "minus", "加" if sign == "+" else "減")
            lines.append(language.pick(f"{a} {word} {b} is {right}.", f"{a}{word}{b}等於{right}。"))
        elif style < 0.6:
            item = calculation_item(language, draw, "train", a, sign, b)
            lines.append(f"{item.question} {item.answer}")
        else:
            tell = _explained if draw.random() < 0.3 else arithmetic.worked_answer
            lines.append(tell(language, a, sign, b))
    return "\n".join(lines)


def _explained(language: Language, a: int, sign: str, b: int) -> str:
    """The same calculation with the reason for the carry."""
    ones, tens = arithmetic.columns(a, sign, b)
    right = arithmetic.result(a, sign, b)
    carried = (a % 10 + b % 10 > 9) if sign == "+" else (a % 10 < b % 10)
    if not carried:
        english, chinese = "nothing is carried", "不用進位"
    elif sign == "+":
        english, chinese = "that is over 9, so 1 is carried", "超過9，進1"
    else:
        english, chinese = "the digit is too small, so 10 is borrowed", "不夠減，借10"
    return language.pick(
        f"{a}{sign}{b}: the ones give {ones}, {english}. The tens give {tens}. So {a}{sign}{b}={right}.",
        f"{a}{sign}{b}：個位是{ones}，{chinese}。十位是{tens}。所以{a}{sign}{b}={right}。",
    )


def notes(world: World, language: Language, draw: random.Random, toolbox: Toolbox) -> str:
    """How questions become calls of the town's tools."""
    lines = []
    for _ in range(draw.randint(2, 3)):
        found = exchange(world, language, draw, "train", toolbox)
        call = json.dumps(found.calls[0], ensure_ascii=False)
        lines.append(f"{found.turns[0]['content']}\n{call}\n{found.turns[2]['content']}\n{found.turns[3]['content']}")
    return "\n".join(lines)


WRITERS: dict[str, Callable[[World, Language, random.Random], str]] = {
    "table": table,
    "dialogue": dialogue,
    "story": story,
    "comparison": compare,
    "glossary": glossary,
    "sums": sums,
    "drill": drill,
}
