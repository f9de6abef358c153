"""What a model of the playground can do: some held-out items of every skill, answered greedily, kept beside its run."""

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.evals.results import FOLDER, Result, load_results, save_result
from cutaway.evals.verified import answer_records, result_of
from cutaway.generation.engine import Engine
from cutaway.model.weights import load_model
from cutaway.rl.environment import ToolboxOf
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
ITEMS = 200
"""Of each skill."""
WORTH_SAYING = 0.03
SLOTS, LONGEST = 64, 1024


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
    return Exam(found, world)


def score(run: Path, exam: Exam) -> dict[str, Result]:
    """The results of a run, answered now where they are not all there."""
    names = set(exam.records)
    if names <= {path.stem for path in (run / FOLDER).glob("*.json")}:
        return {name: result for name, result in load_results(run).items() if name in names}
    model, tokenizer = load_model(run, pick_device()).eval(), Tokenizer.load(run)
    engine = Engine(
        model, tokenizer, slots=SLOTS, max_length=min(LONGEST, model.config.max_position_embeddings), frozen=True
    )
    skills = [skill for skill, records in exam.records.items() for _ in records]
    answered = answer_records(engine, [record for records in exam.records.values() for record in records], exam.world)
    found = {}
    for skill in exam.records:
        own = [one for one, of in zip(answered, skills, strict=True) if of == skill]
        found[skill] = result_of(skill, own)
        save_result(found[skill], run)
    return found


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
