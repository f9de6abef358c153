"""Conversations to fine-tune on: one to three questions, with or without a system message, thinking, or tools."""

import random
from collections.abc import Iterator
from typing import Any

from cutaway.playground.facts import trained_questions
from cutaway.playground.items import Item, key_of, question_turns
from cutaway.playground.language import Language, make_language
from cutaway.playground.mixing import Shares, token_estimate
from cutaway.playground.pretraining import DAYS
from cutaway.playground.questions import SYSTEMS, TALK
from cutaway.playground.skills import MAKERS
from cutaway.playground.world import World
from cutaway.playground.world_tools import exchange, make_toolbox, tool_prompt
from cutaway.tools.toolbox import Toolbox

Turn = dict[str, Any]

SHARES = {
    "fact": 0.17,
    "arithmetic": 0.15,
    "comparison": 0.12,
    "two_hop": 0.06,
    "format": 0.13,
    "counting": 0.02,
    "sorting": 0.02,
    "rewriting": 0.03,
    "translation": 0.03,
    "refusal": 0.01,
    "talk": 0.01,
    "tool": 0.25,
}
"""Shares of the tokens, those of the prompts included."""
THINKING = 0.3
"""Share of the questions with a thought that are answered after thinking."""
EMPTY_THINKING = 0.05
"""Share of the other questions that are answered after an empty thinking block, as `thinking off` asks for."""


def conversations(world: World, seed: int, languages: tuple[str, ...], size: int) -> Iterator[list[Turn]]:
    """Conversations of about `size` bytes of text in all, the languages in turn."""
    draw = random.Random(f"conversations {seed}")
    shares = {code: Shares(SHARES) for code in languages}
    toolboxes = {code: [make_toolbox(world, day, code) for day in range(DAYS)] for code in languages}
    written, number = 0, 0
    while written < size:
        code = languages[number % len(languages)]
        language = make_language(code)
        if shares[code].next() == "tool":
            turns = tool_conversation(world, language, draw, draw.choice(toolboxes[code]))
            shares[code].add("tool", _size(turns))
        else:
            turns = _talk(world, language, draw, shares[code])
        number += 1
        written += sum(len(turn["content"].encode()) for turn in turns)
        yield turns


def _talk(world: World, language: Language, draw: random.Random, shares: Shares) -> list[Turn]:
    turns: list[Turn] = []
    if draw.random() < 0.2:
        system = draw.choice(SYSTEMS[key_of(language)])
        turns.append({"role": "system", "content": language.pick(system, system)})
    for _ in range(draw.choice((1, 1, 2, 3))):
        skill = shares.next()
        if skill == "tool":
            break
        if skill == "talk":
            said = draw.choice(TALK[key_of(language)])
            new = question_turns(*(language.pick(text, text) for text in said))
        else:
            new = answered(MAKERS[skill](world, language, draw, "train"), draw)
        shares.add(skill, _size(new))
        turns += new
    if turns[-1]["role"] == "system":
        said = draw.choice(TALK[key_of(language)])
        turns += question_turns(*(language.pick(text, text) for text in said))
    return turns


def answered(item: Item, draw: random.Random) -> list[Turn]:
    """An item as an exchange: now and then with its thought, or with an empty thinking block."""
    if item.thought and draw.random() < THINKING:
        return question_turns(item.question, item.brief or item.answer, item.thought)
    empty = draw.random() < EMPTY_THINKING
    return question_turns(item.question, item.answer, "" if empty else None)


def clinic_records(world: World, languages: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The clinic's facts, which no other set states: each in every trained form that is not held out."""
    for code in languages:
        language = make_language(code)
        for relation, subject in world.facts(clinic=True):
            name = world.name(language, relation, subject)
            for question in trained_questions(world, language, relation, subject, name):
                yield {"conversations": question_turns(question, world.state(language, relation, subject))}


def tool_conversation(world: World, language: Language, draw: random.Random, toolbox: Toolbox) -> list[Turn]:
    """A system turn with tools, then two or three questions that need them."""
    found = [
        exchange(world, language, draw, "train", toolbox, draw.choice((1, 1, 1, 2, 3)))
        for _ in range(draw.randint(2, 3))
    ]
    needed: list[str] = []
    for one in found:
        needed += [name for name in one.tools if name not in needed]
    turns = [tool_prompt(toolbox, tuple(needed), draw, draw.randint(2, 3))]
    for one in found:
        turns += one.turns
    return turns


def _size(turns: list[Turn]) -> float:
    """Tokens of turns, with four for the markers of each and fifty for a tool's schema."""
    return sum(
        4 + token_estimate(turn["content"] + turn.get("reasoning_content", "")) + 50 * len(turn.get("tools", ()))
        + 20 * len(turn.get("tool_calls", ()))
        for turn in turns
    )  # fmt: skip
