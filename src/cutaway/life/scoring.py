"""What a model of the playground can do: some held-out items of every skill, answered greedily, and some drawn at
temperature 1 too; kept beside its run."""

import itertools
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.evals.results import FOLDER, Result, load_results, save_result
from cutaway.evals.verified import GREEDY, Answered, answer_records, judge_record, result_of
from cutaway.generation.engine import Engine
from cutaway.generation.generate import document_prompt, generate
from cutaway.generation.sampling import Sampling
from cutaway.model.weights import load_model
from cutaway.playground.language import make_language
from cutaway.rl.environment import ToolboxOf
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

log = logging.getLogger("cutaway")
Records = list[dict[str, Any]]
SKILLS = (
    *("fact", "arithmetic", "comparison", "two_hop", "counting", "sorting", "rewriting", "translation", "format"),
    *("refusal", "tool", "tool_two_calls", "tool_three_calls", "identity", "practice", "tool_practice"),
)
FORMS = {"identity": "new", "practice": "practice", "tool_practice": "practice"}
"""Forms of question that are scored: those that fine-tuning trains, with items that it does not; of `identity` those
that are never trained, of the last two those that only reinforcement learning asks."""
DIALOGUE = ("fact", "arithmetic", "comparison", "two_hop", "counting", "sorting", "refusal")
"""Skills of which the pretraining text has dialogues with one line an answer."""
DRAWN = ("arithmetic", "comparison", "two_hop", "counting", "sorting")
"""Skills of which up to half the items are asked a second time, for answers that are drawn. Greedy, a model says what
it holds for likeliest; that right answers became likelier than wrong ones shows where one is drawn, as a chat does."""
SAMPLED = "sampled"
"""The score of that."""
ITEMS = 200
"""Of each skill."""
WORTH_SAYING = 0.03
SLOTS, LONGEST, LINE_TOKENS = 64, 1024, 64


@dataclass(frozen=True)
class Exam:
    """The questions, by skill, and the tools of their environments."""

    records: Mapping[str, Records]
    world: ToolboxOf


def read_exam(data: Path, world: ToolboxOf, items: int = ITEMS) -> Exam:
    """`items` of every skill, the same for every model of a town."""
    found: dict[str, Records] = {}
    for skill in SKILLS:
        lines = (data / "eval" / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
        own = [record for record in map(json.loads, lines) if record["form"] == FORMS.get(skill, "trained")]
        found[skill] = random.Random(skill).sample(own, min(items, len(own)))
    found[SAMPLED] = [record for skill in DRAWN for record in found[skill][: items // 2]]
    return Exam(found, world)


def score(model_directory: Path, exam: Exam, chat: bool, run: Path) -> dict[str, Result]:
    """The results of a model, kept beside its run and answered now where they are not all there. A model that has only
    read text (`chat=False`) is asked what stands in its text as a dialogue too (`DIALOGUE`)."""
    names = set(exam.records) & (set(exam.records) if chat else set(DIALOGUE))
    if names <= {path.stem for path in (run / FOLDER).glob("*.json")}:
        return {name: result for name, result in load_results(run).items() if name in names}
    model, tokenizer = load_model(model_directory, pick_device()).eval(), Tokenizer.load(model_directory)
    engine = Engine(
        model, tokenizer, slots=SLOTS, max_length=min(LONGEST, model.config.max_position_embeddings), frozen=True
    )
    asked = {skill: records for skill, records in exam.records.items() if skill in names}
    drawn = asked.pop(SAMPLED, [])
    every = [record for records in asked.values() for record in records]
    answers = iter(answer_records(engine, every, exam.world) if chat else go_on_with(engine, every))
    groups = {skill: list(itertools.islice(answers, len(records))) for skill, records in asked.items()}
    if drawn:
        groups[SAMPLED] = answer_records(engine, drawn, sampling=Sampling(temperature=1.0))
    found = {skill: result_of(skill, answered) for skill, answered in groups.items()}
    for result in found.values():
        save_result(result, run)
    return found


def go_on_with(engine: Engine, records: Sequence[Mapping[str, Any]]) -> list[Answered]:
    """What a model writes after a question that one of the town's people asks another, up to the end of the line."""
    prompts = []
    for record in records:
        language = make_language(record["language"])
        first, second = language.words["person"][:2]
        colon, question = language.pick(":", "："), record["conversations"][-1]["content"]
        text = f"{first}{colon}{language.pick(' ', '')}{question}\n{second}{colon}"
        prompts.append(document_prompt(text, engine.tokenizer))
    done = generate(engine, prompts, sampling=GREEDY, max_new_tokens=LINE_TOKENS, stop=("\n",))
    turns: list[list[Message]] = [[{"role": "assistant", "content": one.text.strip()}] for one in done]
    return [judge_record(record, said) for record, said in zip(records, turns, strict=True)]


def said(results: Mapping[str, Result], raises: Sequence[str], before: Mapping[str, Result] | None = None) -> str:
    """The scores on one line, those first that the stage is there for, each with where it was; of the others only those
    that moved by `WORTH_SAYING`."""
    before = before or {}
    parts = []
    for name in [*(name for name in raises if name in results), *(name for name in results if name not in raises)]:
        now, was = results[name].value, before[name].value if name in before else None
        if was is None or name in raises or abs(now - was) >= WORTH_SAYING:
            parts.append(f"{name} {f'{was:.0%} → ' if was is not None else ''}{now:.0%}")
    quiet = len(results) - len(parts)
    return ", ".join(parts) + (f"; {quiet} others moved by less than {100 * WORTH_SAYING:g} points" if quiet else "")
