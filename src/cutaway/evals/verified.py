"""Answers to records with verifiers, many at a time; a record with an environment may use its tools."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.evals.intervals import Share
from cutaway.evals.results import Result, short_key
from cutaway.generation.conversation import answer_message, answer_prompt
from cutaway.generation.engine import Engine
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.tokenization.messages import Message
from cutaway.tools.toolbox import Toolbox
from cutaway.verifiers.record import judge

Record = Mapping[str, Any]
GREEDY = Sampling(temperature=0.0)
MAX_ROUNDS = 6
"""Answers to one question, those that only call tools included."""


@dataclass(frozen=True)
class Answered:
    """A record, what was said after its prompt, and the verdict."""

    record: Record
    said: list[Message]
    ok: bool
    reason: str

    @property
    def text(self) -> str:
        """The last answer."""
        return str(self.said[-1]["content"])


def answer_records(
    engine: Engine,
    records: Sequence[Record],
    toolbox_of: Callable[[Record], Toolbox | None] = lambda record: None,
    max_new_tokens: int = 128,
    sampling: Sampling = GREEDY,
) -> list[Answered]:
    """Answer every record, greedily unless told otherwise. A record's `conversations` is the prompt, `thinking` opens a
    thinking block, `verifier` judges the last answer and `calls`, where it has any, all calls that were made."""
    said: list[list[Message]] = [[] for _ in records]
    active = list(range(len(records)))
    for _ in range(MAX_ROUNDS):
        prompts = {
            i: answer_prompt([*records[i]["conversations"], *said[i]], engine.tokenizer, records[i].get("thinking"))
            for i in active
        }
        # A dialogue that its own calls have made too long for the model ends where it stands, without an answer.
        prompts = {i: prompt for i, prompt in prompts.items() if not said[i] or len(prompt) < engine.max_length}
        if not prompts:
            break
        done = generate(engine, list(prompts.values()), sampling=sampling, max_new_tokens=max_new_tokens)
        going_on = []
        for i, completion in zip(prompts, done, strict=True):
            message = answer_message(completion.ids, engine.tokenizer, records[i].get("thinking"))
            said[i].append(message)
            toolbox = toolbox_of(records[i]) if message.get("tool_calls") else None
            if toolbox is not None:
                for call in message["tool_calls"]:
                    said[i].append({"role": "tool", "content": toolbox.call(call["name"], call["arguments"]).text})
                going_on.append(i)
        active = going_on
    return [judge_record(record, turns) for record, turns in zip(records, said, strict=True)]


def judge_record(record: Record, said: list[Message]) -> Answered:
    """The verdict on a transcript."""
    verdict = judge(record, said)
    return Answered(record, said, verdict.ok, verdict.reason)


def shares(answered: Sequence[Answered], *keys: str) -> dict[tuple[str, ...], Share]:
    """The share of right answers, with its interval, of each group that the records' `keys` make."""
    groups: dict[tuple[str, ...], list[bool]] = {}
    for one in answered:
        groups.setdefault(tuple(str(one.record[key]) for key in keys), []).append(one.ok)
    return {key: Share.of(flags) for key, flags in groups.items()}


def result_of(name: str, answered: Sequence[Answered]) -> Result:
    """The result of one set as `cutaway eval` writes it, by language too; items are paired by their `id`."""
    share = vars(Share.of([one.ok for one in answered]))
    ends = {"value": share["share"], "low": share["low"], "high": share["high"]}
    languages = {key[0]: vars(one) for key, one in sorted(shares(answered, "language").items())}
    examples = [
        {"prompt": str(one.record["conversations"][-1]["content"]), "answer": one.text, "ok": one.ok, "why": one.reason}
        for one in answered[:20]
    ]
    summary: dict[str, Any] = {
        "kind": "answers",
        "tasks": len(answered),
        "samples": 1,
        "pass": {"1": ends},
        "score": ends,
        "raised": 0,
        "too_long": 0,
        "verifiers": {},
        "subjects": languages if len(languages) > 1 else {},
        "reading": {},
        "examples": examples,
    }
    right = np.array([float(one.ok) for one in answered])
    return Result(name, "", summary, [short_key(str(one.record["id"])) for one in answered], right, np.ones(len(right)))
