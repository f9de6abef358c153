"""Answers that must have a form: a JSON schema, or well-formed tool calls. A thin layer over `llguidance`.

The library turns a grammar and the tokens so far into the set of tokens that may come next, and the engine puts the
logits of all others at minus infinity. So what comes out parses, unless the limit of length cuts it. Control tokens are
no text to a grammar: `<tool_call>` is the token, and cannot come inside a JSON string.
"""

import importlib
import json
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.errors import UserError
from cutaway.generation.defaults import stop_ids
from cutaway.generation.engine import Constraint
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.verifiers.json_schema import Schema

log = logging.getLogger("cutaway")

# The spacing of `json.dumps`, which is what the models were trained on; free spacing lets a weak one pad for ever.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_schema(schema: Schema, tokenizer: Tokenizer, after_thinking: bool = False) -> Callable[[], Constraint]:
    """The whole answer is one JSON value that fits `schema` (`{"type": "object"}` for any object).

    `after_thinking` leaves the text free up to the end of the thinking block. UserError for a schema that the library
    cannot take, with its reason.
    """
    gap = '"\\n\\n" ' if after_thinking else ""
    return _constraint(f"start: {gap}value\nvalue: %json {_json(schema)}\n", tokenizer, after_thinking)


def tool_calls(
    tools: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    *,
    required: bool = False,
    parallel: bool = True,
    after_thinking: bool = False,
) -> Callable[[], Constraint]:
    """Calls name one of `tools` and have arguments that fit its schema, and nothing follows them.

    With `required` the answer is calls and nothing else (to force one tool, hand in that alone); without, the text is
    free until the model opens a call. `parallel` allows several. `tools` are schemas as `Toolbox.schemas` gives them.
    """
    opening, closing = tokenizer.control_id("<tool_call>"), tokenizer.control_id("</tool_call>")
    if not tools:
        raise UserError("tool calls were asked for, but there are no tools")
    gap = '"\\n\\n" ' if after_thinking else ""
    # Where the text is free, the opening token of the first call has come already.
    start = f"{gap}<[{opening}]> call" if required else "call"
    more = f' ("\\n" <[{opening}]> call)*' if parallel else ""
    lines = [f"start: {start}{more}", f'call: "\\n" body "\\n" <[{closing}]>']
    lines.append("body: " + " | ".join(f"body{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        function = tool.get("function") or tool
        head = '{"name": ' + json.dumps(function["name"], ensure_ascii=False) + ', "arguments": '
        arguments = {"type": "object"} | (function.get("parameters") or {})
        lines.append(f'body{i}: {json.dumps(head, ensure_ascii=False)} arguments{i} "}}"')
        lines.append(f"arguments{i}: %json {_json(arguments)}")
    return _constraint("\n".join(lines) + "\n", tokenizer, after_thinking, None if required else opening)


def _json(schema: Schema) -> str:
    return json.dumps(schema | {"x-guidance": SPACING})


def _constraint(
    grammar: str, tokenizer: Tokenizer, after_thinking: bool, opening: int | None = None
) -> Callable[[], Constraint]:
    matcher = _library().LLMatcher(_vocabulary(tokenizer), "%llguidance {}\n" + grammar, log_level=0)
    if matcher.is_error():
        raise UserError(f"this form of answer cannot be enforced: {' '.join(matcher.get_error().split())}")
    free = [tokenizer.control_id("</think>")] if after_thinking else []
    may_end = opening is not None
    if opening is not None:
        free.append(opening)
    return lambda: _Grammar(matcher.deep_copy(), tokenizer, free, may_end)


class _Grammar:
    """A grammar and how far an answer has come in it; before it, free text up to each of some tokens in turn."""

    def __init__(self, matcher: Any, tokenizer: Tokenizer, free: Sequence[int], may_end: bool) -> None:
        self._matcher, self._free, self._may_end = matcher, list(free), may_end
        self._vocab_size, self._ends = tokenizer.vocab_size, list(stop_ids(tokenizer))

    def allowed(self) -> Bool[Tensor, " vocab"] | None:
        if self._free:
            return None if self._may_end else self._only_ends().logical_not()
        if self._matcher.is_stopped():
            if self._matcher.is_error():
                log.warning("the form of an answer was given up: %s", self._matcher.get_error())
            return self._only_ends()
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool))

    def accept(self, token: int) -> None:
        if self._free:
            if token == self._free[0]:
                del self._free[0]
        else:
            self._matcher.consume_token(token)

    def _only_ends(self) -> Bool[Tensor, " vocab"]:
        ends = torch.zeros(self._vocab_size, dtype=torch.bool)
        ends[self._ends] = True
        return ends


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise UserError("a fixed form of answer needs llguidance: pip install 'cutaway[serve]'") from None


_VOCABULARIES: "weakref.WeakKeyDictionary[Tokenizer, Any]" = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The library's form of a vocabulary, made once: for a large one that takes a second."""
    if tokenizer not in _VOCABULARIES:
        library, ends = _library(), list(stop_ids(tokenizer))
        wrapper = library.TokenizerWrapper(_Vocabulary(tokenizer, ends[0]))
        _VOCABULARIES[tokenizer] = library.LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size, eos_token=ends)
    return _VOCABULARIES[tokenizer]


class _Vocabulary:
    """What the library asks of a tokenizer; every control token is a special one there."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id = end
        self.special_token_ids = list(tokenizer.control_ids.values())
        self.tokens = [
            (tokenizer.control_text(i) or "").encode() or tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
