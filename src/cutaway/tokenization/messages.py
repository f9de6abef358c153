"""Conversations as data: their normal form and what makes one unfit for training."""

import json
from collections.abc import Sequence
from typing import Any

from cutaway.errors import UserError
from cutaway.tokenization.tokenizer import well_formed

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]


def normalise(
    conversation: Sequence[Any], *, thinking: bool | None = None, tools: list[Any] | str | None = None
) -> list[Message]:
    """The form of a conversation that rendering and parsing back agree on.

    - keys other than role, content, reasoning_content, tools and tool_calls are dropped, a content of None is `""`;
    - `tools` and `tool_calls` may be lists or JSON strings and become lists, OpenAI's `{"function": {...}}` wrapping of
      a call and its arguments in a JSON string are undone; absent, None, `""` and `[]` all mean none;
    - the `tools` argument replaces those of the first system turn, which is added in front if there is none;
    - `reasoning_content` is kept if it is a string: `""` is an empty thinking block, absent is no block. With
      `thinking=False` assistant turns without one get the empty block.

    Raises UserError for what `validate_conversation` reports about single turns.
    """
    turns = [_normal_turn(message, number) for number, message in enumerate(conversation)]
    given = _json_list(tools, "tools")
    if given:
        system = next((turn for turn in turns if turn["role"] == "system"), None)
        if system is None:
            system = {"role": "system", "content": ""}
            turns.insert(0, system)
        system["tools"] = given
    if thinking is False:
        for turn in turns:
            if turn["role"] == "assistant":
                turn.setdefault("reasoning_content", "")
    return turns


def validate_conversation(conversation: Any) -> str | None:
    """Why this conversation cannot be trained on, in a few words; None if it can.

    Lenient where real data is: turns need not alternate, a system turn may stand anywhere, and a conversation may begin
    with the assistant or end with the user.
    """
    if not isinstance(conversation, list) or not conversation:
        return "conversation must be a list of at least one turn"
    try:
        turns = normalise(conversation)
    except UserError as error:
        return str(error)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        return "no assistant turn, so nothing to train on"
    if not any(turn["content"] or turn.get("tool_calls") or turn.get("reasoning_content") for turn in answers):
        return "every assistant turn is empty"
    for number, turn in enumerate(turns):
        if turn["role"] == "tool" and (number == 0 or turns[number - 1]["role"] not in ("assistant", "tool")):
            return f"turn {number}: a tool result must follow an assistant turn or another result"
    return None


def _normal_turn(message: Any, number: int) -> Message:
    where = f"turn {number}"
    if not isinstance(message, dict):
        raise UserError(f"{where} must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: role is {role!r}, must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise UserError(f"{where}: content must be a string, is {type(content).__name__}")
    turn: Message = {"role": role, "content": well_formed(content or "")}
    tools = _json_list(message.get("tools"), f"{where}: tools")
    calls = _json_list(message.get("tool_calls"), f"{where}: tool_calls")
    reasoning = message.get("reasoning_content")
    if tools and role != "system":
        raise UserError(f"{where}: tools belong on the system turn")
    if calls and role != "assistant":
        raise UserError(f"{where}: tool_calls belong on an assistant turn")
    if reasoning is not None and not isinstance(reasoning, str):
        raise UserError(f"{where}: reasoning_content must be a string, is {type(reasoning).__name__}")
    if reasoning and role != "assistant":
        raise UserError(f"{where}: reasoning_content belongs on an assistant turn")
    if role == "assistant" and reasoning is not None:
        turn["reasoning_content"] = well_formed(reasoning)
    if tools:
        turn["tools"] = tools
    if calls:
        turn["tool_calls"] = [_normal_call(call, f"{where}: tool_calls") for call in calls]
    return turn


def _normal_call(call: Any, where: str) -> dict[str, Any]:
    inner = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise UserError(f"{where}: every call needs a name")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: arguments of {inner['name']} are not valid JSON: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments of {inner['name']} must be an object")
    return {"name": inner["name"], "arguments": arguments}


def _json_list(value: Any, where: str) -> list[Any]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON: {error}") from None
    if not value:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list (or a JSON string of one)")
    return value
