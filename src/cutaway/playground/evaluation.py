"""Evaluation sets: questions with verifiers, in question forms that were trained and in forms that never were."""

import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.playground.facts import clinic
from cutaway.playground.items import Item, Split
from cutaway.playground.language import Language, make_language
from cutaway.playground.skills import MAKERS, PRACTISED
from cutaway.playground.world import World, make_world
from cutaway.playground.world_tools import exchange, make_toolbox, tool_prompt
from cutaway.tools.toolbox import Toolbox

Record = dict[str, Any]

MAIN = ("fact", "arithmetic", "comparison", "format", "tool", "two_hop")
"""Skills with a target, and two-hop questions, have `ITEMS` a language; the others `FEWER`."""
ITEMS: dict[Split, int] = {"heldout": 350, "new": 150}
FEWER: dict[Split, int] = {"heldout": 100, "new": 50}
THOUGHT_OUT = ("arithmetic", "comparison", "two_hop", "counting")
"""Skills that are asked a second time with thinking, as `SKILL_thinking`."""
CALLS = {"tool": 1, "tool_two_calls": 2, "tool_three_calls": 3}
DAYS_OF_SETS = tuple(range(1000, 1064))
"""Days of the tools in evaluation and RL; none of them answers in fine-tuning."""
FORMS: dict[Split, str] = {"train": "trained", "heldout": "trained", "new": "new", "exam": "practice"}
"""What the files call the question forms of a split."""
PRACTICE = 350
"""Items a language in forms for practice: what reinforcement learning is to raise."""
MAX_TRIES = 40
"""Draws for each record wanted, before a set is left smaller than asked: some have few different questions."""


def evaluation_sets(world: World, seed: int, languages: tuple[str, ...]) -> Iterator[tuple[str, list[Record]]]:
    """Name and records of every set."""
    toolbox = toolboxes(world)
    for skill, maker in (*MAKERS.items(), ("clinic", clinic)):
        found: list[Record] = []
        for language, split, draw in _parts(skill, seed, languages):

            def make(
                language: Language = language, split: Split = split, draw: random.Random = draw, maker: Any = maker
            ) -> Record:
                return item_record(maker(world, language, draw, split))

            found += _different(make, skill, language, split, (ITEMS if skill in MAIN else FEWER)[split])
        yield skill, found
        if skill in THOUGHT_OUT:
            yield f"{skill}_thinking", [_with_thinking(record) for record in _fewer(found)]
    for skill, count in CALLS.items():
        found = []
        for language, split, draw in _parts(skill, seed, languages):

            def call(
                language: Language = language, split: Split = split, draw: random.Random = draw, count: int = count
            ) -> Record:
                day = draw.choice(DAYS_OF_SETS)
                return tool_record(world, language, draw, split, day, toolbox(day, language.code), count)

            found += _different(call, skill, language, split, (ITEMS if skill in MAIN else FEWER)[split])
        yield skill, found
    yield from _practised(world, seed, languages)


def _practised(world: World, seed: int, languages: tuple[str, ...]) -> Iterator[tuple[str, list[Record]]]:
    """What reinforcement learning is to raise: held-out content, asked in the forms of `rl.jsonl` and `agent.jsonl`."""
    toolbox = toolboxes(world)
    answers: list[Record] = []
    calls: list[Record] = []
    for code in languages:
        language, draw = make_language(code), random.Random(f"practice {seed} {code}")
        levels, counts = itertools.cycle(range(1, len(PRACTISED) + 1)), itertools.cycle((2, 3))

        def answer(language: Language = language, draw: random.Random = draw, levels: Iterator[int] = levels) -> Record:
            level = next(levels)
            return {"level": level, **item_record(MAKERS[PRACTISED[level - 1]](world, language, draw, "exam"))}

        def call(language: Language = language, draw: random.Random = draw, counts: Iterator[int] = counts) -> Record:
            count, day = next(counts), draw.choice(DAYS_OF_SETS)
            record = tool_record(world, language, draw, "exam", day, toolbox(day, language.code), count)
            return {"level": count, **record}

        answers += _different(answer, "practice", language, "exam", PRACTICE)
        calls += _different(call, "tool_practice", language, "exam", PRACTICE)
    yield "practice", answers
    yield "tool_practice", calls


def toolboxes(world: World) -> Callable[[int, str], Toolbox]:
    """The toolbox of a day and language, each made once."""
    return functools.cache(lambda day, code: make_toolbox(world, day, code))


def toolboxes_beside(files: Sequence[str]) -> Callable[[Mapping[str, Any]], Toolbox | None]:
    """From a record to its tools: of the town that the files belong to, whose seed is in the `manifest.json` beside."""
    manifests = [Path(file).parent / "manifest.json" for file in files]
    found = [path for path in manifests if path.is_file()]
    made = toolboxes(make_world(int(json.loads(found[0].read_text(encoding="utf-8"))["seed"]))) if found else None

    def toolbox_of(record: Mapping[str, Any]) -> Toolbox | None:
        environment = record.get("environment")
        if environment is None:
            return None
        if environment["name"] != "playground":
            raise UserError(f"environment {environment['name']!r} is not known: say with --environment what it is")
        if made is None:
            raise UserError(f"{files[0]}: no manifest.json beside it says which town its tasks belong to")
        return made(int(environment["seed"]), str(environment.get("language", "en")))

    return toolbox_of


def _parts(skill: str, seed: int, languages: tuple[str, ...]) -> Iterator[tuple[Language, Split, random.Random]]:
    """Each part of a set draws by itself, so that no part changes with another."""
    for code in languages:
        for split in ITEMS:
            yield make_language(code), split, random.Random(f"evaluation {seed} {skill} {code} {split}")


def _different(make: Callable[[], Record], skill: str, language: Language, split: Split, wanted: int) -> list[Record]:
    """So many records, no two with the same question."""
    found: dict[str, Record] = {}
    for _ in range(MAX_TRIES * wanted):
        record = make()
        found.setdefault(record["conversations"][-1]["content"], record)
        if len(found) == wanted:
            break
    form = FORMS[split]
    labels = {"skill": skill, "language": language.code, "form": form, "subject": f"{language.code}, {form} forms"}
    return [
        {"id": f"{skill}/{language.code}/{form}/{number}", **labels, **record}
        for number, record in enumerate(found.values())
    ]


def item_record(item: Item) -> Record:
    """An item as an RL prompt."""
    return {"conversations": [{"role": "user", "content": item.question}], "verifier": item.verifier}


def tool_record(
    world: World, language: Language, draw: random.Random, split: Split, day: int, toolbox: Toolbox, count: int
) -> Record:
    """A question that needs tools, with the calls that solve it; `verifier` judges the last answer."""
    found = exchange(world, language, draw, split, toolbox, count)
    return {
        "conversations": [tool_prompt(toolbox, found.tools, draw), found.turns[0]],
        "verifier": found.verifier,
        "calls": found.calls,
        "environment": {"name": "playground", "seed": day, "language": language.code},
    }


def _with_thinking(record: Record) -> Record:
    skill = f"{record['skill']}_thinking"
    return record | {"id": record["id"].replace(record["skill"], skill, 1), "skill": skill, "thinking": True}


def _fewer(records: list[Record]) -> list[Record]:
    """At most as many of each language and form as the smaller sets have, except for two-hop questions."""
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for record in records:
        key = record["language"], record["form"]
        counts[key] = counts.get(key, 0) + 1
        most = ITEMS if record["skill"] == "two_hop" else FEWER
        if counts[key] <= most["new" if record["form"] == "new" else "heldout"]:
            kept.append(record)
    return kept
