"""From a record of the RL format to a verdict: which verifier it asks for, and what that says of a whole answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cutaway.errors import UserError
from cutaway.verifiers.numerals import read_number
from cutaway.verifiers.table import VERIFIERS, Verifier, run_verifier
from cutaway.verifiers.verdict import Verdict


def verifier_of(gt: Any) -> dict[str, Any]:
    """The verifier for a record that gives only its `gt`: `numeric` for a number, else `contains` for the text or one
    of several. Raises UserError without a `gt`."""
    if gt is None or gt == "" or gt == []:
        raise UserError("neither 'gt' nor 'verifier', so no answer can be judged")
    if not isinstance(gt, list) and read_number(str(gt)) is not None:
        return {"name": "numeric", "args": {"expected": str(gt)}}
    return {"name": "contains", "args": {"expected": [str(one) for one in gt] if isinstance(gt, list) else str(gt)}}


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
