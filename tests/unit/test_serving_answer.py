"""Reading an answer token by token gives what parsing it as a whole gives."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutaway.generation.stop import TextStream
from cutaway.serving.answer import AnswerReader, Delta
from cutaway.tokenization.chat import render
from cutaway.tokenization.parse import parse_answer
from generation_helpers import tiny_tokenizer

T = tiny_tokenizer()
TEXT = st.text(st.sampled_from('ab \n你🧑{}"<>'), max_size=12)


def read(ids: list[int], thinks: bool | None, stop: tuple[str, ...] = (), tools: bool = True) -> tuple[Delta, int]:
    """The sum of all deltas, and how many of them said something."""
    stream, reader, whole, spoke = TextStream(T, stop), AnswerReader(T, thinks=thinks, tools=tools), Delta(), 0
    deltas = []
    for number, token in enumerate(ids):
        text = stream.push(token)
        ended = stream.stopped or number == len(ids) - 1
        deltas.append(reader.push([token], text + (stream.finish() if ended else "")))
        if ended:
            break
    for delta in [*deltas, reader.finish()]:
        whole.reasoning += delta.reasoning
        whole.content += delta.content
        whole.calls += delta.calls
        spoke += bool(delta)
    return whole, spoke


def answer_ids(message: dict[str, Any], thinking: bool | None) -> list[int]:
    asked = [{"role": "user", "content": "x"}]
    prompt = render(asked, T, add_generation_prompt=True, thinking=thinking).ids
    whole = render([*asked, {"role": "assistant", **message}], T, thinking=thinking).ids
    assert whole[: len(prompt)] == prompt
    written = whole[len(prompt) :]
    return written[: written.index(T.im_end_id) + 1]


CALLS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "arguments": st.dictionaries(TEXT, TEXT, max_size=2)}),
    max_size=3,
)


@given(TEXT, st.none() | TEXT, CALLS)
@example("", "", [{"name": "f", "arguments": {}}])
@example("\n", "\n\n", [])
@example("a\n\n", None, [{"name": "f", "arguments": {"</tool_call>": "<tool_call>"}}] * 2)
@settings(max_examples=40, deadline=None)
def test_deltas_add_up_to_the_parsed_message(content: str, reasoning: str | None, calls: list[dict[str, Any]]) -> None:
    message: dict[str, Any] = {"content": content, "tool_calls": calls}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    for thinking in (None, True) if reasoning else (None,):
        ids = answer_ids(message, thinking)
        expected = parse_answer(ids, T, thinking=thinking)
        got, _ = read(ids, thinking)
        assert got.content == expected["content"]
        assert got.reasoning == expected.get("reasoning_content", "")
        assert got.calls == expected.get("tool_calls", [])


@given(st.lists(st.integers(0, T.vocab_size - 1) | st.sampled_from(sorted(T.control_ids.values())), max_size=30))
@settings(max_examples=80, deadline=None)
def test_whatever_a_model_writes_is_read_and_nothing_is_lost_without_calls(ids: list[int]) -> None:
    special = T.special_ids
    ids = [token for token in ids if token not in special]
    for thinks in (None, True, False):
        got, _ = read(ids, thinks, tools=False)
        expected = parse_answer(ids, T, thinking=thinks)
        if not expected.get("tool_calls"):
            assert got.content == expected["content"]
            assert got.reasoning == expected.get("reasoning_content", "")


def test_text_comes_as_it_is_written() -> None:
    _, spoke = read(T.encode("abcdefgh"), None)
    assert spoke == len(T.encode("abcdefgh"))


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ('\n{"name": "f"\n', '<tool_call>\n{"name": "f"\n</tool_call>'),
        ("\n[1]\n", "<tool_call>\n[1]\n</tool_call>"),
        ('\n{"name": "f", "arguments": 3}\n', '<tool_call>\n{"name": "f", "arguments": 3}\n</tool_call>'),
        ('{"name": "f", "arguments": {"x": 1e999}}', '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>'),
        ('{"name": "f", "arguments": {"x": NaN}}', '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>'),
        ("[" * 5000, "<tool_call>" + "[" * 5000 + "</tool_call>"),
    ],
)
def test_a_malformed_call_is_shown_as_text(body: str, content: str) -> None:
    ids = [*T.encode("x\n"), T.control_id("<tool_call>"), *T.encode(body), T.control_id("</tool_call>")]
    got, _ = read(ids, None)
    assert got.content == "x\n" + content and not got.calls


def test_an_unfinished_call_is_text_and_without_tools_every_call_is() -> None:
    call = [T.control_id("<tool_call>"), *T.encode('\n{"name": "f", "arguments": {}}\n')]
    assert read(call, None)[0].content == '<tool_call>\n{"name": "f", "arguments": {}}\n'
    closed = [*call, T.control_id("</tool_call>")]
    assert read(closed, None)[0].calls == [{"name": "f", "arguments": {}}]
    assert read(closed, None, tools=False)[0].content.endswith("</tool_call>")


def test_a_typed_tag_is_text() -> None:
    written = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert read(T.encode(written), None)[0] == Delta(content=written)
    assert read(T.encode("<think>\na\n</think>"), None)[0] == Delta(content="<think>\na\n</think>")


@pytest.mark.parametrize("stop", ["d", "</tool", "call>", "\n", "cd", "e{"])
def test_a_stop_string_cuts_where_the_engine_cuts(stop: str) -> None:
    ids = [*T.encode("abcd"), T.control_id("</tool_call>"), *T.encode("e{\nf")]
    stream = TextStream(T, [stop])
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    assert read(ids, None, (stop,))[0].content == text
    assert stop not in text and text


def test_the_text_of_a_call_that_is_cut_is_no_call() -> None:
    body = json.dumps({"name": "f", "arguments": {"a": "stop"}})
    ids = [T.control_id("<tool_call>"), *T.encode(f"\n{body}\n"), T.control_id("</tool_call>")]
    got, _ = read(ids, None, ("stop",))
    assert not got.calls and got.content.startswith("<tool_call>")
