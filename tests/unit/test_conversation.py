"""Tool calls in the terminal: a tiny model that knows a few transcripts by heart, and what is shown of them."""

import contextlib
import io
from functools import cache

import pytest
import torch

from cutaway.cli.fold import Fold
from cutaway.generation.conversation import MAX_TOOL_ROUNDS, Conversation, ToolUse
from cutaway.generation.engine import Engine, Piece, Request
from cutaway.model.transformer import CausalLM
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.chat import render, render_text
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from cutaway.tools.toolbox import Toolbox, ToolResult
from generation_helpers import tiny_model, tiny_tokenizer


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


TOOLBOX = Toolbox([add])
CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}
WRONG = {"name": "sub", "arguments": {}}
TRANSCRIPTS: list[list[Message]] = [
    [
        {"role": "user", "content": "sum"},
        {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [CALL]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    ],
    [
        {"role": "user", "content": "loop"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [WRONG]},
        {"role": "tool", "content": "Error: no tool 'sub' (known: add)"},
        *[
            {"role": "assistant", "content": "", "tool_calls": [WRONG]},
            {"role": "tool", "content": "Error: no tool 'sub' (known: add)"},
        ]
        * MAX_TOOL_ROUNDS,
    ],
]


@cache
def taught() -> tuple[CausalLM, Tokenizer]:
    """A model that has learnt the transcripts, with the tools in their system turn."""
    # A vocabulary of these very texts keeps the rows, and with them the training, short.
    texts = [render_text(one, tools=TOOLBOX.schemas()) for one in TRANSCRIPTS] * 20
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=450))
    rendered = [render(one, tokenizer, tools=TOOLBOX.schemas()) for one in TRANSCRIPTS]
    length = max(len(one.ids) for one in rendered)
    ids = torch.tensor([one.ids + [0] * (length - len(one.ids)) for one in rendered])
    mask = torch.tensor([one.mask + [False] * (length - len(one.mask)) for one in rendered])[:, 1:]
    config = tiny_model().config
    torch.manual_seed(0)
    model = CausalLM(type(config)(**vars(config) | {"vocab_size": tokenizer.vocab_size, "hidden_size": 64}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        nll = model(ids[:, :-1], targets=ids[:, 1:])
        loss = nll[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.005:
            break
    assert loss < 0.05
    return model.eval(), tokenizer


def conversation() -> Conversation:
    model, tokenizer = taught()
    return Conversation(Engine(model, tokenizer, slots=1, frozen=True), toolbox=TOOLBOX)


GREEDY = Request((), 80, temperature=0)


def shown(text: str, talk: Conversation) -> tuple[str, list[ToolUse]]:
    out, uses = io.StringIO(), []
    with contextlib.redirect_stdout(out):
        fold = Fold(talk.engine.tokenizer)
        for event in talk.ask(text, GREEDY):
            if isinstance(event, Piece):
                fold.show(event)
            else:
                fold.used(event)
                uses.append(event)
        fold.finish()
    return out.getvalue(), uses


@pytest.mark.slow
def test_a_call_is_executed_and_its_result_answered() -> None:
    talk = conversation()
    text, uses = shown("sum", talk)
    assert [(use.name, use.arguments, use.result.text, use.result.ok) for use in uses] == [
        ("add", {"a": 2, "b": 3}, "5", True)
    ]
    assert talk.messages == TRANSCRIPTS[0]
    lines = [line for line in text.splitlines() if line]
    assert lines[0].startswith("[thought for") and lines[1:] == ["[add(a=2, b=3) -> 5]", "It is 5."]
    assert "<" not in text and "I add" not in text


@pytest.mark.slow
def test_calls_without_end_are_stopped() -> None:
    talk = conversation()
    text, uses = shown("loop", talk)
    assert len(uses) == MAX_TOOL_ROUNDS and not any(use.result.ok for use in uses)
    assert text.startswith("Hm.") and "no tool 'sub'" in text
    assert talk.messages[-1]["role"] == "assistant" and talk.messages[-1]["tool_calls"] == [WRONG]


@pytest.mark.slow
def test_without_tools_a_call_is_only_text() -> None:
    talk = conversation()
    talk.toolbox = None
    _, uses = shown("sum", talk)
    assert uses == [] and [turn["role"] for turn in talk.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("thinking", "pieces", "expected"),
    [
        (False, ["Hel", "lo"], "Hello"),
        (False, ["<think>", "\n", "so", "\n", "</think>", "\n\nYes"], "[thought for 4 tokens: /thought shows it]\nYes"),
        (False, ["<think>", "\n\n", "</think>", "\n\n", "Yes"], "Yes"),
        (True, ["so", "</think>\n\nYes"], "[thought for 2 tokens: /thought shows it]\nYes"),
        (True, ["so"], "[thinking: 1 tokens, not finished]\n"),
        (False, ["a\n", "<tool_call>", "\n{"], "a\n[calling a tool: 1 tokens, not finished]\n\n{"),
    ],
)
def test_what_is_folded(thinking: bool, pieces: list[str], expected: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fold = Fold(tiny_tokenizer(), thinking)
        for text in pieces:
            fold.show(Piece(0, text, None, [1], [0.0]))
        fold.finish()
    assert out.getvalue() == expected and fold.count == len(pieces)


def test_no_control_character_reaches_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    with contextlib.redirect_stdout(out):
        fold = Fold(tiny_tokenizer())
        fold.show(Piece(0, "a\x1b[31m\tb\r\n", None, [1], [0.0]))
        fold.used(ToolUse("add", {}, ToolResult("\x1b]0;c", ok=False)))
        fold.show(Piece(0, "<tool_call>\x07", None, [1], [0.0]))
        fold.finish()
    shown = out.getvalue().replace("\r\x1b[K", "").replace("\r[calling", "[calling")
    assert "a\ufffd[31m\tb\ufffd\n" in shown and "-> \ufffd]0;c]" in shown
    assert not {"\x1b", "\x07", "\r"} & set(shown)
