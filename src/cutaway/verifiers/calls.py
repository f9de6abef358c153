"""The verifier of tool calls: their names, arguments and order, read from `<tool_call>` blocks in the answer."""

import unicodedata
from typing import Any, Literal

from cutaway.errors import UserError
from cutaway.verifiers.form import load_json
from cutaway.verifiers.json_schema import same
from cutaway.verifiers.verdict import Verdict, failed, passed, shown

Arguments = Literal["equal", "subset", "ignore"]
MAX_CALLS = 50
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def tool_calls(
    answer: str, calls: list[dict[str, Any]], ordered: bool = True, arguments: Arguments = "equal"
) -> Verdict:
    """The answer makes exactly `calls`, each `{"name", "arguments"?}`; none for an empty list.

    With `ordered` false any order will do. `arguments`: `equal`; `subset`: the answer may give more than expected;
    `ignore`. An expected call without `arguments` is met by any. Strings compare after NFKC, without case and white
    space; 1 equals 1.0. The score is the share of calls that hold, out of the longer list.
    """
    for call in calls:
        if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments", {}), dict):
            raise UserError("every expected call must have a string name and, if any, an object of arguments")
        if unknown := call.keys() - {"name", "arguments"}:
            raise UserError(f"an expected call has name and arguments, no {', '.join(sorted(map(str, unknown)))}")
    if len(calls) > MAX_CALLS:
        raise UserError(f"more than {MAX_CALLS} expected calls")
    made, why = find_tool_calls(answer)
    if why:
        return failed(why)
    if ordered:
        held = sum(_meets(a, b, arguments) for a, b in zip(made, calls, strict=False))
    else:
        held = _matching([[_meets(a, b, arguments) for b in calls] for a in made], len(calls))
    most = max(len(made), len(calls))
    if held == most:
        return passed(f"{most} calls as expected")
    return failed(f"{held} of {most} calls hold: {shown([call['name'] for call in made], 200)}", held / most)


def find_tool_calls(answer: str) -> tuple[list[dict[str, Any]], str | None]:
    """The calls in an answer and None, or what is wrong with the first that is not well formed."""
    made: list[dict[str, Any]] = []
    rest = answer
    while _OPEN in rest:
        body, closed, rest = rest.partition(_OPEN)[2].partition(_CLOSE)
        if not closed:
            return made, "a tool call without its end"
        call, why = load_json(body.strip())
        if why:
            return made, f"tool call {len(made) + 1}: {why}"
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return made, f"tool call {len(made) + 1} has no name"
        if not isinstance(call.get("arguments", {}), dict):
            return made, f"tool call {len(made) + 1}: arguments must be an object"
        made.append({"name": call["name"], "arguments": call.get("arguments", {})})
        if len(made) > MAX_CALLS:
            return made, f"more than {MAX_CALLS} tool calls"
    return made, "a tool call without its beginning" if _CLOSE in rest else None


def _meets(made: dict[str, Any], expected: dict[str, Any], how: Arguments) -> bool:
    if made["name"] != expected["name"]:
        return False
    if how == "ignore" or "arguments" not in expected:
        return True
    given, wanted = _plain(made["arguments"]), _plain(expected["arguments"])
    if how == "subset":
        given = {key: value for key, value in given.items() if key in wanted}
    return same(given, wanted)


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return "".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list) and depth < 50:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < 50:
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    return value


def _matching(meets: list[list[bool]], columns: int) -> int:
    """The most pairs (call made, call expected) that hold at once, by augmenting paths."""
    partner: list[int | None] = [None] * columns

    def place(row: int, tried: set[int]) -> bool:
        for column in range(columns):
            if meets[row][column] and column not in tried:
                tried.add(column)
                held_by = partner[column]
                if held_by is None or place(held_by, tried):
                    partner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(meets)))
