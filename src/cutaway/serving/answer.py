"""From tokens as they come to the parts of an assistant's message: reasoning, content and tool calls.

The same reader serves streams and whole answers, so both say the same; for an answer in the chat format its sum is
`tokenization.parse.parse_answer`. Only control tokens count as tags. The same characters written as text are text, so
that a page which a model quotes cannot make it call a tool.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cutaway.generation.stop import TextStream
from cutaway.tokenization.tokenizer import TAG_TOKENS, Tokenizer

_Mode = Literal["start", "reasoning", "gap", "content", "call", "between"]


@dataclass
class Delta:
    """What one step added to a message."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Complete calls, `{"name", "arguments"}`, the arguments an object."""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class AnswerReader:
    """Reads one answer. `push` what a step of the engine gave, `finish` after the last."""

    def __init__(self, tokenizer: Tokenizer, *, thinks: bool | None, tools: bool) -> None:
        """`thinks`: the prompt has opened a thinking block (True), closed one (False), or neither (None).

        Without `tools`, tool calls are text.
        """
        self._segments = _Segments(tokenizer)
        self._mode: _Mode = "start" if thinks is None else "reasoning" if thinks else "content"
        self._tools = tools
        self._held = ""
        self._lead = ""
        self.reasoning_tokens = 0

    def push(self, ids: Sequence[int], text: str) -> Delta:
        """What these tokens, and the text that is settled with them, add to the message."""
        delta = Delta()
        for part, is_tag in self._segments.push(ids, text):
            self._take(part, is_tag, delta)
        self.reasoning_tokens += len(ids) if self._mode == "reasoning" else 0
        return delta

    def finish(self) -> Delta:
        """What was held back, once no token will follow."""
        delta = Delta()
        rest = self._segments.finish()
        if rest:
            self._take(rest, False, delta)
        if self._mode in ("call", "content", "gap"):
            delta.content += self._held
        self._held = ""
        return delta

    def _take(self, part: str, is_tag: bool, delta: Delta) -> None:
        if self._mode == "start":
            self._mode = "content"
            if is_tag and part == "<think>":
                self._mode, self._lead = "reasoning", "\n"
                return
        if self._mode == "reasoning":
            self._reason(part, is_tag, delta)
        elif self._mode == "call":
            self._call(part, is_tag, delta)
        elif is_tag and part == "<tool_call>" and self._tools:
            # The newline before a call belongs to the format; it is given out only if this turns out to be no call.
            self._mode, self._held = "call", self._held + part
        elif self._mode == "between":
            if part.strip():
                self._mode, self._held = "content", ""
                self._say(part, delta)
        else:
            self._say(part, delta)

    def _reason(self, part: str, is_tag: bool, delta: Delta) -> None:
        if is_tag and part == "</think>":
            self._mode, self._held = "gap", ""
            return
        text = self._held + self._without_lead(part)
        self._held = "\n" if text.endswith("\n") else ""
        delta.reasoning += text.removesuffix("\n")

    def _say(self, part: str, delta: Delta) -> None:
        if self._mode == "gap":
            # Two newlines follow a thinking block; fewer are kept as they are.
            text = self._held + part
            if len(text) < 2 and "\n\n".startswith(text):
                self._held = text
                return
            self._mode, self._held, part = "content", "", text.removeprefix("\n\n")
        text = self._held + part
        self._held = "\n" if text.endswith("\n") else ""
        delta.content += text.removesuffix("\n")

    def _without_lead(self, part: str) -> str:
        lead, self._lead = self._lead, ""
        return part.removeprefix(lead)

    def _call(self, part: str, is_tag: bool, delta: Delta) -> None:
        self._held += part
        if not (is_tag and part == "</tool_call>"):
            return
        written = self._held
        call = read_call(written[written.index("<tool_call>") + len("<tool_call>") : -len("</tool_call>")])
        self._held = ""
        if call is None:
            self._mode = "content"
            delta.content += written
        else:
            self._mode = "between"
            delta.calls.append(call)


def read_call(text: str) -> dict[str, Any] | None:
    """The call in the text between the tags, None if it is none."""
    try:
        call = json.loads(text)
        # Python reads NaN, and 1e999 as infinity: nothing that JSON could hand on.
        json.dumps(call, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, dict) else None


class _Segments:
    """Text between tags, and tags. The engine settles text later than tokens come, and a stop string may cut it, so the
    place of every tag in the text is remembered until the text arrives there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        known, special = tokenizer.control_ids, tokenizer.special_ids
        self._tags = {known[tag]: tag for tag in TAG_TOKENS if tag in known and known[tag] not in special}
        self._stream = TextStream(tokenizer)
        self._decoded = 0
        self._passed = 0
        self._held = ""
        self._places: deque[tuple[int, str]] = deque()

    def push(self, ids: Sequence[int], text: str) -> Iterator[tuple[str, bool]]:
        for index in ids:
            self._decoded += len(self._stream.push(index))
            tag = self._tags.get(index)
            if tag is not None:
                self._places.append((self._decoded - len(tag), tag))
        self._held += text
        while self._held:
            if not self._places or self._places[0][0] >= self._passed + len(self._held):
                yield self._cut(len(self._held)), False
                return
            start, tag = self._places[0]
            if start > self._passed:
                yield self._cut(start - self._passed), False
            if len(self._held) < len(tag):
                return
            self._places.popleft()
            yield self._cut(len(tag)), True

    def finish(self) -> str:
        """The beginning of a tag that a stop string cut."""
        return self._cut(len(self._held))

    def _cut(self, length: int) -> str:
        part, self._held = self._held[:length], self._held[length:]
        self._passed += length
        return part
