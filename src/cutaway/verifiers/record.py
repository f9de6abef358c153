"""From a record of the RL format to a verdict: which verifier it asks for, and what that says of a whole answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cutaway.errors import UserError
from cutaway.verifiers.numerals import read_number
from cutaway.verifiers.table import VERIFIERS, Verifier, run_verifier
from cutaway.verifiers.verdict import Verdict


def given(value: Any) -> bool:
    """Whether a record says something there; 0 is something."""
    return value not in (None, "", [])


def can_be_judged(record: Mapping[str, Any]) -> bool:
    """Whether a record has something to judge an answer by."""
    return bool(record.get("verifier")) or given(record.get("gt"))


def verifier_of(gt: Any) -> dict[str, Any]:
    """The verifier for a record that gives only its `gt`: `numeric` for a number, `contains` for a text, `contains_all`
    for a list of several, as MiniMind means it (`train_agent.py` `validate_gt_in_text`). Raises UserError without a
    `gt`."""
    if not given(gt):
        raise UserError("neither 'gt' nor 'verifier', so no answer can be judged")
    if isinstance(gt, list):
        if len(gt) == 1:
            return verifier_of(gt[0])
        return {"name": "contains_all", "args": {"expected": [str(one) for one in gt]}}
    return {"name": "contains" if read_number(str(gt)) is None else "numeric", "args": {"expected": str(gt)}}


def judge(
    record: Mapping[str, Any], said: Sequence[Mapping[str, Any]], verifiers: Mapping[str, Verifier] = VERIFIERS
) -> Verdict:
    """The verdict on a transcript: `verifier` (or `gt`) judges `last_answer` and `calls`, where the record has any, all
    calls that were made."""
    spec = record.get("verifier") or verifier_of(record.get("gt"))
    verdict = run_verifier(spec, last_answer(said), verifiers)
    if verdict.ok and "calls" in record:
        calls = [call for message in said for call in message.get("tool_calls", ())]
        text = "\n".join(f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in calls)
        verdict = run_verifier({"name": "tool_calls", "args": {"calls": record["calls"]}}, text)
    return verdict


def last_answer(said: Sequence[Mapping[str, Any]]) -> str:
    """What a user sees at the end of a transcript; nothing where a tool had the last word."""
    return str(said[-1]["content"]) if said and said[-1].get("role") != "tool" else ""
