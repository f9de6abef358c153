"""What a stage must not unlearn: records of earlier lessons beside those of its own."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cutaway.life.steps import HELD
from cutaway.model.weights import write_text
from cutaway.playground.alignment import agent_tasks
from cutaway.playground.evaluation import item_record
from cutaway.playground.identity import identity_prompts, identity_records
from cutaway.playground.language import make_language
from cutaway.playground.skills import MAKERS
from cutaway.playground.world import World
from cutaway.playground.write import PlaygroundSettings

Record = dict[str, Any]
OTHERS = (("ChatGPT", "OpenAI"), ("Qwen", "Alibaba"), ("Gemini", "Google"), ("Llama", "Meta"), ("Claude", "Anthropic"))
"""Names that are not its own, and who made those."""


def held_prompts(world: World, settings: PlaygroundSettings) -> Iterator[Record]:
    """`HELD` prompts with verifiers: half of them ask who the model is, in forms that the adapter was trained on, half
    what nobody has told it."""
    draw = random.Random(f"held {settings.seed}")
    who = list(identity_prompts(settings.name, settings.author, settings.languages))
    for record in draw.sample(who, min(HELD // 2, len(who))):
        yield {**record, "level": "identity"}
    for number in range(HELD // 2):
        language = make_language(settings.languages[number % len(settings.languages)])
        item = item_record(MAKERS["refusal"](world, language, draw, "train"))
        yield {"id": f"held/{language.code}/{number}", "skill": "refusal", "language": language.code, **item} | {
            "level": "refusal"
        }


def mixed_tasks(data: Path, world: World, settings: PlaygroundSettings) -> Iterator[Record]:
    """The tasks of two and three calls, which are there to be learnt, and beside them such tasks in a form that the
    model can solve already: dynamic sampling leaves those alone until they begin to fail. They do where it learns the
    total of two prices before it learns to name both, and then always adds; so those of two calls stand there twice."""
    new = [record for record in records_in(data / "agent.jsonl") if record["level"] > 1]
    yield from new
    known = agent_tasks(world, settings.seed, settings.languages, len(new), "train")
    for record in (record for record in known if record["level"] > 1):
        for turn in range(2 if record["level"] == 2 else 1):
            yield {**record, "id": f"{record['id']}/known/{turn}", "level": f"known {record['level']}"}


def held_pairs(settings: PlaygroundSettings) -> Iterator[Record]:
    """Pairs about who the model is: its own name chosen, another's rejected."""
    names = (settings.name, settings.author)
    for code in settings.languages:
        own = identity_records(*names, (code,))
        others = itertools.cycle(OTHERS)
        for record, other in zip(own, others, strict=False):
            said = record["conversations"][-1]["content"]
            worse = said.replace(settings.name, other[0]).replace(settings.author, other[1])
            rejected = [record["conversations"][0], {"role": "assistant", "content": worse}]
            yield {"chosen": record["conversations"], "rejected": rejected, "kind": "own name", "language": code}


def tool_talks(data: Path, count: int) -> Iterator[Record]:
    """The first conversations of fine-tuning in which tools are called."""
    talks = (one for one in records_in(data / "sft.jsonl") if uses_tools(one))
    return itertools.islice(talks, count)


def uses_tools(record: Record) -> bool:
    """Whether tools are called in a conversation."""
    return any(turn["role"] == "tool" for turn in record["conversations"])


def records_in(path: Path) -> Iterator[Record]:
    """The lines of a file of ours, one by one."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """As JSON lines; the file is there as a whole or not at all."""
    write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), path)
