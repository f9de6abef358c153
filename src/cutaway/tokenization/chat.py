"""The chat format: conversation to ids with the loss mask, and back.

    <|im_start|>ROLE\\n CONTENT <|im_end|>\\n          one turn; a tool result is a user turn of its own
    <think>\\n REASONING \\n</think>\\n\\n               first in an assistant turn that has reasoning_content
    <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>          after its content, one a call
    <tool_response>\\n RESULT \\n</tool_response>      the content of a tool result's turn

Every turn is written without a look at the turns after it, so a rendered conversation is a prefix of any continuation
of it (Qwen3's own template drops earlier thinking and groups tool results, and so is not). Only the format writes
control tokens; the same characters in a message are text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cutaway.tokenization.messages import Message, normalise, validate_conversation
from cutaway.tokenization.parse import parse, parse_answer
from cutaway.tokenization.template import CHAT_TEMPLATE, TOOLS_FOOTER, TOOLS_HEADER
from cutaway.tokenization.tokenizer import CONTROL_TOKENS, IM_END, IM_START, Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "Rendered",
    "normalise",
    "parse",
    "parse_answer",
    "render",
    "render_text",
    "render_to_fit",
    "validate_conversation",
]


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation; `mask[i]` says whether the assistant wrote `ids[i]`, which is what is trained."""

    ids: list[int]
    mask: list[bool]


class _Piece(NamedTuple):
    text: str
    trained: bool = False
    control: bool = False


def render(
    conversation: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = False,
    thinking: bool | None = None,
    tools: list[Any] | str | None = None,
) -> Rendered:
    """Token ids and loss mask of a conversation (no beginning-of-text token).

    The mask is true exactly on what the assistant writes: reasoning with its tags, content, tool calls and the
    `<|im_end|>` that ends the turn. It is false on headers, on the newline after a turn, and on an empty thinking
    block, since there the prompt writes it. `thinking` is the mode of the whole conversation: None writes thinking
    only where a turn has it; False gives every other assistant turn, and the generation prompt, an empty block; True
    lets the generation prompt open one. For an unfit turn see `messages.normalise`.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for piece in _pieces(normalise(conversation, thinking=thinking, tools=tools), add_generation_prompt, thinking):
        encoded = [tokenizer.control_id(piece.text)] if piece.control else tokenizer.encode(piece.text)
        ids += encoded
        mask += [piece.trained] * len(encoded)
    return Rendered(ids, mask)


def render_text(
    conversation: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    thinking: bool | None = None,
    tools: list[Any] | str | None = None,
) -> str:
    """The same as text. Here a typed marker looks like a control token, so training and inference use the ids."""
    pieces = _pieces(normalise(conversation, thinking=thinking, tools=tools), add_generation_prompt, thinking)
    return "".join(piece.text for piece in pieces)


def render_to_fit(conversation: Sequence[Message], tokenizer: Tokenizer, max_tokens: int) -> Rendered | None:
    """The longest beginning of the conversation that fits into `max_tokens` and ends with an assistant turn.

    The newline after the last turn is left out, since nothing follows it. None if not even the first answer fits.
    """
    whole = render(conversation, tokenizer)
    last = next(
        (i for i in range(min(max_tokens, len(whole.ids)) - 1, -1, -1) if _ends_answer(whole, i, tokenizer)), None
    )
    return None if last is None else Rendered(whole.ids[: last + 1], whole.mask[: last + 1])


def _ends_answer(rendered: Rendered, i: int, tokenizer: Tokenizer) -> bool:
    return rendered.mask[i] and rendered.ids[i] == tokenizer.im_end_id


def _pieces(turns: list[Message], add_generation_prompt: bool, thinking: bool | None) -> list[_Piece]:
    """The conversation as alternating control tokens and texts, each text encoded by itself."""
    pieces: list[_Piece] = []
    for turn in turns:
        trained = turn["role"] == "assistant"
        pieces.append(_control(IM_START))
        if trained:
            pieces += _answer(turn)
        elif turn["role"] == "tool":
            pieces += [_Piece("user\n"), _control("<tool_response>"), _Piece(f"\n{turn['content']}\n")]
            pieces.append(_control("</tool_response>"))
        else:
            pieces += _plain(turn)
        pieces += [_control(IM_END, trained), _Piece("\n")]
    if add_generation_prompt:
        pieces += [_control(IM_START), _Piece("assistant\n")]
        if thinking is True:
            pieces += [_control("<think>"), _Piece("\n")]
        elif thinking is False:
            pieces += _EMPTY_THINKING
    return pieces


def _plain(turn: Message) -> list[_Piece]:
    text = f"{turn['role']}\n{turn['content']}"
    if "tools" not in turn:
        return [_Piece(text)]
    gap = "\n\n" if turn["content"] else ""
    lines = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in turn["tools"])
    first, *rest = TOOLS_FOOTER
    section = [_Piece(text + gap + TOOLS_HEADER + lines + first)]
    return section + [_control(part) if part in CONTROL_TOKENS else _Piece(part) for part in rest]


def _answer(turn: Message) -> list[_Piece]:
    # The header, and the newline after <think>, end a generation prompt: text after them must not join their tokens.
    pieces = [_Piece("assistant\n")]
    content, calls = turn["content"], turn.get("tool_calls", [])
    reasoning = turn.get("reasoning_content")
    if reasoning == "":
        pieces += _EMPTY_THINKING
    elif reasoning is not None:
        pieces += [_control("<think>", True), _Piece("\n", True), _Piece(reasoning + "\n", True)]
        pieces.append(_control("</think>", True))
        content = "\n\n" + content
    if calls and turn["content"]:
        content += "\n"
    pieces.append(_Piece(content, True))
    for number, call in enumerate(calls):
        if number:
            pieces.append(_Piece("\n", True))
        line = json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
        pieces += [_control("<tool_call>", True), _Piece(f"\n{line}\n", True), _control("</tool_call>", True)]
    return pieces


def _control(token: str, trained: bool = False) -> _Piece:
    return _Piece(token, trained, control=True)


_EMPTY_THINKING = [_control("<think>"), _Piece("\n\n"), _control("</think>"), _Piece("\n\n")]
