"""Reading ids back into messages: the inverse of `chat.render`, and what a model generated."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cutaway.tokenization.messages import Message
from cutaway.tokenization.template import TOOLS_FOOTER, TOOLS_HEADER
from cutaway.tokenization.tokenizer import END_OF_TEXT, IM_END, IM_START, Tokenizer

_Part = tuple[str, bool]
"""Text between control tokens, or a control token (true)."""


def parse(ids: Iterable[int], tokenizer: Tokenizer) -> list[Message]:
    """The conversation that `ids` render: `parse(render(x).ids) == normalise(x)`.

    Ids that no conversation renders to, as a model may write them, still give messages: an unfinished last turn counts,
    and control tokens out of place, such as a tool call that is not valid JSON, show as text in the content.
    """
    turns: list[Message] = []
    current: list[_Part] | None = None
    for text, control in _parts(ids, tokenizer):
        if control and text == IM_START:
            if current is not None:
                turns.append(_turn(current))
            current = []
        elif control and text in (IM_END, END_OF_TEXT):
            if current is not None:
                turns.append(_turn(current))
            current = None
        elif current is not None:
            current.append((text, control))
    if current is not None:
        turns.append(_turn(current))
    return turns


def parse_answer(ids: Sequence[int], tokenizer: Tokenizer, *, thinking: bool | None = None) -> Message:
    """The assistant message in generated ids that follow a generation prompt; `thinking` as in that prompt."""
    parts: list[_Part] = []
    for text, control in _parts(ids, tokenizer):
        if control and text in (IM_START, IM_END, END_OF_TEXT):
            break
        parts.append((text, control))
    if thinking is True:
        parts = [("<think>", True), *_with_text("\n", parts)]
    elif thinking is False:
        parts = [("<think>", True), ("\n\n", False), ("</think>", True), *_with_text("\n\n", parts)]
    return _answer(parts)


def _with_text(text: str, parts: list[_Part]) -> list[_Part]:
    if parts and not parts[0][1]:
        return [(text + parts[0][0], False), *parts[1:]]
    return [(text, False), *parts]


def _parts(ids: Iterable[int], tokenizer: Tokenizer) -> list[_Part]:
    """Control tokens, and the texts between them (adjacent text tokens decoded together: characters span tokens)."""
    names = {index: name for name, index in tokenizer.control_ids.items()}
    parts: list[_Part] = []
    run: list[int] = []
    for index in ids:
        if index not in names:
            run.append(index)
            continue
        if run:
            parts.append((tokenizer.decode(run), False))
            run = []
        parts.append((names[index], True))
    if run:
        parts.append((tokenizer.decode(run), False))
    return parts


def _turn(parts: list[_Part]) -> Message:
    header = parts[0][0] if parts and not parts[0][1] else ""
    role, newline, first = header.partition("\n")
    body = ([(first, False)] if first else []) + parts[1 if header else 0 :]
    if role == "assistant" and newline:
        return _answer(body)
    if role == "system" and len(body) > 1:
        return _system(body)
    controls = [text for text, control in body if control]
    if role == "user" and controls == ["<tool_response>", "</tool_response>"] and body[0][1] and body[-1][1]:
        return {"role": "tool", "content": _unwrap("".join(text for text, control in body if not control))}
    return {"role": role, "content": _literal(body)}


def _system(body: list[_Part]) -> Message:
    text = body[0][0]
    start = text.rfind(TOOLS_HEADER)
    footer = [part for part, _ in body[1:]]
    if start < 0 or not text.endswith(TOOLS_FOOTER[0]) or footer != list(TOOLS_FOOTER[1:]):
        return {"role": "system", "content": _literal(body)}
    lines = text[start + len(TOOLS_HEADER) : -len(TOOLS_FOOTER[0])].split("\n")
    try:
        tools = [json.loads(line) for line in lines if line]
    except (ValueError, RecursionError):
        return {"role": "system", "content": _literal(body)}
    return {"role": "system", "content": text[:start].removesuffix("\n\n"), "tools": tools}


def _answer(parts: list[_Part]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    if parts and parts[0] == ("<think>", True):
        close = next((i for i, part in enumerate(parts) if part == ("</think>", True)), len(parts))
        message["reasoning_content"] = _unwrap(_literal(parts[1:close]))
        parts = parts[close + 1 :]
        if parts and not parts[0][1]:
            parts = [(parts[0][0].removeprefix("\n\n"), False), *parts[1:]]
    first_call = next((i for i, part in enumerate(parts) if part == ("<tool_call>", True)), len(parts))
    calls = _calls(parts[first_call:])
    if calls:
        message["content"] = _literal(parts[:first_call]).removesuffix("\n")
        message["tool_calls"] = calls
    else:
        message["content"] = _literal(parts)
    return message


def _calls(parts: list[_Part]) -> list[dict[str, Any]] | None:
    """Tool calls up to the end of the turn; None where anything else is among them."""
    calls: list[dict[str, Any]] = []
    rest = [part for part in parts if part[1] or part[0].strip()]
    for i in range(0, len(rest), 3):
        if len(rest) < i + 3 or rest[i] != ("<tool_call>", True) or rest[i + 2] != ("</tool_call>", True):
            return None
        try:
            call = json.loads(rest[i + 1][0])
            json.dumps(call, allow_nan=False)  # Python reads NaN, and 1e999 as infinity: nothing that JSON can say
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        calls.append({"name": call["name"], "arguments": arguments})
    return calls


def _unwrap(text: str) -> str:
    """Without the one newline that the format puts at each end."""
    return text.removeprefix("\n").removesuffix("\n")


def _literal(parts: list[_Part]) -> str:
    return "".join(text for text, _ in parts)
