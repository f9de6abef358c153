"""What of an answer is shown as it comes: thinking and tool calls are folded away, everything else is printed."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutaway.generation.conversation import ToolUse
    from cutaway.generation.engine import Piece
    from cutaway.tokenization.tokenizer import Tokenizer

ENDS = {"<think>": "</think>", "<tool_call>": "</tool_call>"}
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text for stdout: without control characters where that is a terminal, which would obey what a model wrote."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


class Fold:
    """Prints the pieces of an answer. `thinking` says that the prompt has opened a thinking block."""

    def __init__(self, tokenizer: "Tokenizer", thinking: bool = False, count: int = 0) -> None:
        self._tokenizer, self._out = tokenizer, sys.stdout
        self._until = "</think>" if thinking else None
        self._hidden, self._count, self._fresh = "", 0, not thinking
        self.count = count
        """Tokens shown and hidden."""

    def show(self, piece: "Piece") -> None:
        """Print what of a piece is to be seen."""
        self.count += len(piece.ids)
        self._count += len(piece.ids)
        text = piece.text
        while text:
            text = self._inside(text) if self._until else self._outside(text)
        if self._until and self._out.isatty():
            self._out.write(f"\r[{self._what()}: {self._count} tokens]")
        self._out.flush()

    def finish(self) -> None:
        """Print what was hidden and turned out to be no whole block, such as a call cut off at the limit."""
        if self._until:
            self._close(f"[{self._what()}: {self._count} tokens, not finished]\n")
            self._out.write(printable(self._hidden) if self._until == "</tool_call>" else "")
            self._out.flush()

    def used(self, use: "ToolUse") -> None:
        """Print a call and its result in one line."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in use.arguments.items())
        self._out.write(printable(f"[{use.name}({arguments}) -> {_one_line(use.result.text)}]\n"))
        self._until, self._hidden, self._count, self._fresh = None, "", 0, True

    def _outside(self, text: str) -> str:
        """Print up to the next tag; give back what follows it."""
        found = [(text.index(tag), tag) for tag in ENDS if tag in text and tag in self._tokenizer.control_ids]
        place, tag = min(found, default=(len(text), ""))
        before = text[:place]
        # The format puts newlines after a folded block, and before a call.
        if self._fresh:
            before = before.lstrip("\n")
        self._fresh = self._fresh and not before
        self._out.write(printable(before))
        if not tag:
            return ""
        self._until, self._hidden, self._count = ENDS[tag], "", 0
        return text[place + len(tag) :]

    def _inside(self, text: str) -> str:
        """Keep up to the closing tag; give back what follows it."""
        assert self._until is not None
        inner, tag, rest = text.partition(self._until)
        self._hidden += inner
        if not tag:
            return ""
        what, empty = self._what(), not self._hidden.strip()
        self._close("" if empty or what != "thinking" else f"[thought for {self._count} tokens: /thought shows it]\n")
        self._until, self._fresh = None, True
        return rest

    def _close(self, line: str) -> None:
        if self._out.isatty():
            self._out.write("\r\x1b[K")
        elif self._until == "</tool_call>" and not line:
            self._out.write("\n")
        self._out.write(line)

    def _what(self) -> str:
        return "thinking" if self._until == "</think>" else "calling a tool"


def _one_line(text: str, most: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"
