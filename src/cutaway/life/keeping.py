"""What a stage must not unlearn: records of earlier lessons and the model's own answers, beside those of its lesson."""

import itertools
import json
import logging
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cutaway.evals.verified import answer_records
from cutaway.generation.engine import Engine
from cutaway.life.steps import HELD, LIFE_MINUTES
from cutaway.model.weights import load_model, write_text
from cutaway.playground.alignment import agent_tasks
from cutaway.playground.evaluation import item_record
from cutaway.playground.identity import identity_prompts, identity_records
from cutaway.playground.language import make_language
from cutaway.playground.skills import MAKERS
from cutaway.playground.world import World
from cutaway.playground.write import PlaygroundSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

log = logging.getLogger("cutaway")
Record = dict[str, Any]
OWN_ANSWERS = 1500
"""Prompts that the model answers itself before its adapter is trained, in a life of `LIFE_MINUTES`."""
_ANSWER_TOKENS, _LONGEST, _SLOTS = 64, 512, 64
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
    """The tasks of two and three calls, which are there to be learnt, and beside every third of them one in a form that
    the model can solve already: dynamic sampling leaves that alone until it begins to fail."""
    with (data / "agent.jsonl").open(encoding="utf-8") as lines:
        new = [record for record in map(json.loads, lines) if record["level"] > 1]
    yield from new
    known = agent_tasks(world, settings.seed, settings.languages, len(new) // 3, "train")
    yield from ({**record, "level": f"known {record['level']}"} for record in known)


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


def write_own_answers(model: Path, data: Path, minutes: float | None) -> None:
    """`lora_own.jsonl`: what a model answers, rightly or not, to prompts that reinforcement learning will practise.

    An adapter that is trained on them too leaves them as they are, and does not take every unusual question for one
    about itself. (Self-synthesized rehearsal, arXiv 2403.01244, whose prompts the model writes too.) Greedy, so that
    an interruption changes nothing.
    """
    out = data / "lora_own.jsonl"
    count = round(OWN_ANSWERS * (minutes or LIFE_MINUTES) / LIFE_MINUTES)
    if not out.is_file():
        with (data / "rl.jsonl").open(encoding="utf-8") as lines:
            prompts = [json.loads(line) for line in itertools.islice(lines, count)]
        trained, tokenizer = load_model(model, pick_device()).eval(), Tokenizer.load(model)
        longest = min(_LONGEST, trained.config.max_position_embeddings)
        engine = Engine(trained, tokenizer, slots=_SLOTS, max_length=longest, frozen=True)
        answered = answer_records(engine, prompts, max_new_tokens=_ANSWER_TOKENS)
        write_records(out, ({"conversations": [*one.record["conversations"], *one.said]} for one in answered))
        log.info("  %d answers of its own, which the adapter is to leave as they are", len(answered))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """As JSON lines; the file is there as a whole or not at all."""
    write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), path)
