"""Sets for the stages after fine-tuning: preference pairs, RL prompts by difficulty, and tasks for agents."""

import random
import re
from collections.abc import Iterator
from typing import Any

from cutaway.playground.evaluation import DAYS_OF_SETS, item_record, tool_record, toolboxes
from cutaway.playground.items import Item, Split, fill, key_of, question_turns
from cutaway.playground.language import Language, make_language
from cutaway.playground.skills import MAKERS, PRACTISED
from cutaway.playground.world import World

Record = dict[str, Any]

KINDS = (
    *("right over wrong", "concise over rambling", "polite over rude"),
    *("in format over out of format", "complete over cut short"),
)
TURNS = (KINDS[0], KINDS[1], KINDS[4], KINDS[0], KINDS[2], KINDS[4], KINDS[3])
"""As many are cut short as say too much: from either alone a model learns to end late, or early, everywhere."""
DISPUTED = ("fact", "arithmetic", "comparison", "two_hop", "counting", "sorting")
"""Skills of which a wrong answer stands beside a right one."""
LONG = ("comparison", "arithmetic", "sorting")
"""Skills whose answers have parts."""
PAUSE = r"(?<=[.。=])(?=.)|, |，|、"
"""Where an answer can be cut short."""
RUDE: dict[str, tuple[str, ...]] = {
    "en": ("What a silly question.", "Look it up yourself next time.", "You really do not know that?", "Now go away."),
    "zh": ("真是個笨問題。", "下次自己去查。", "你連這個都不知道？", "現在走開。"),
}
RAMBLING: dict[str, tuple[str, ...]] = {
    "en": (
        "That was an interesting question.", "There is much to say here.", "Many people ask this.",
        "I could go on about it.", "It is worth thinking about.", "As I said, that is the answer.",
    ),
    "zh": (
        "這是個很有趣的問題。", "這件事可以說很多。", "很多人問過這個。", "我還可以說下去。", "這值得想一想。",
        "就像我說的，這就是答案。",
    ),
}  # fmt: skip


def preferences(world: World, seed: int, languages: tuple[str, ...], count: int) -> Iterator[Record]:
    """Pairs of answers to one question, the kinds in turn (`TURNS`); `kind` says why one is chosen."""
    draw = random.Random(f"preferences {seed}")
    for number in range(count):
        language = make_language(languages[number % len(languages)])
        kind = TURNS[number // len(languages) % len(TURNS)]
        yield preference(world, language, draw, kind)


def preference(world: World, language: Language, draw: random.Random, kind: str) -> Record:
    """One pair of a kind.

    What is said too much or rudely comes after the right answer, so that both answers of the pair begin with it and
    only the rest is trained. Before it, or with other facts of the town in it, truth would be made less likely.
    """
    skills = {KINDS[0]: DISPUTED, KINDS[3]: ("format",), KINDS[4]: LONG}.get(kind, ("fact", *LONG, "refusal"))
    item = MAKERS[draw.choice(skills)](world, language, draw, "train")
    if kind == KINDS[0] or kind == KINDS[3]:
        worse = draw.choice(item.wrong)
    elif kind == KINDS[4]:
        worse = item.answer[: draw.choice([found.start() for found in re.finditer(PAUSE, item.answer)])]
    else:
        phrases, most = (RAMBLING, 3) if kind == KINDS[1] else (RUDE, 1)
        more = draw.sample(phrases[key_of(language)], draw.randint(1, most))
        worse = language.join([item.answer, *(language.pick(phrase, phrase) for phrase in more)])
    return {
        "chosen": question_turns(item.question, item.answer),
        "rejected": question_turns(item.question, worse),
        "kind": kind,
        "language": language.code,
    }


# RL


def product(world: World, language: Language, draw: random.Random, split: Split) -> Item:
    """The product of two three-digit numbers, out of reach without a calculator."""
    a, b = draw.randrange(100, 1000), draw.randrange(100, 1000)
    question = fill(language.pick("What is {x}?", "{x}等於多少？"), x=f"{a}*{b}")
    verifier = {"name": "numeric", "args": {"expected": a * b}}
    return Item("product", language.code, question, f"{a}*{b}={a * b}", verifier, (f"{a}*{b}={a * b + 10}",))


def rl_prompts(world: World, seed: int, languages: tuple[str, ...], count: int, hard: bool = False) -> Iterator[Record]:
    """Prompts with verifiers, the languages and levels (`PRACTISED`, in turn) in forms that fine-tuning never has.

    The model knows what to answer and is often lost by the wording, so part of its samples is right: what a verifier
    can teach and further fine-tuning cannot. The `hard` ones are products that hardly any sample solves.
    """
    draw = random.Random(f"rl {seed} {hard}")
    asked: set[str] = set()
    for number in range(count):
        language = make_language(languages[number % len(languages)])
        level = 5 if hard else number // len(languages) % len(PRACTISED) + 1
        for _ in range(100):
            item = (product if hard else MAKERS[PRACTISED[level - 1]])(world, language, draw, "practice")
            if item.question not in asked:
                break
        asked.add(item.question)
        name = "hard" if hard else "rl"
        labels = {"skill": item.skill, "language": language.code, "level": level}
        yield {"id": f"{name}/{language.code}/{number}", **labels, **item_record(item)}


def agent_tasks(
    world: World, seed: int, languages: tuple[str, ...], count: int, split: Split = "practice"
) -> Iterator[Record]:
    """Questions that need one to three calls of the town's tools, those of two and three in forms for practice, or in
    those that fine-tuning trains (`split` train)."""
    draw = random.Random(f"agent {seed}" if split == "practice" else f"agent {seed} {split}")
    toolbox = toolboxes(world)
    for number in range(count):
        language = make_language(languages[number % len(languages)])
        calls = number // len(languages) % 3 + 1
        day = draw.choice(DAYS_OF_SETS)
        record = tool_record(world, language, draw, split, day, toolbox(day, language.code), calls)
        labels = {"skill": "agent", "language": language.code, "level": calls}
        name = "agent" if split == "practice" else f"agent-{split}"
        yield {"id": f"{name}/{language.code}/{number}", **labels, **record}
