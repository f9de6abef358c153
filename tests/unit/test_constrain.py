"""Random models, which would never write JSON by themselves, must under a constraint."""

import json
import math
import sys
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.generation.constrain import json_schema, tool_calls
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.tokenization.chat import parse_answer
from cutaway.verifiers.json_schema import mismatch
from generation_helpers import tiny_model, tiny_tokenizer

pytest.importorskip("llguidance")

# Enumerations and short strings, so that a random model comes to an end.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "青"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}},
    {"name": "rest", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]


def answers(constraint: Any, seeds: int = 12, **settings: Any) -> list[Completion]:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=4)
    for seed in range(seeds):
        # Every other request is free, and must not be touched by its neighbours' masks.
        engine.submit(Request([5, 9, 40], 200, seed, constraint=constraint, **settings))
        engine.submit(Request([5, 9, 40], 20, seed, stop_ids=()))
    while engine.busy:
        engine.step()
    done = sorted(engine.collect(), key=lambda one: one.id)
    free = Engine(tiny_model(), tiny_tokenizer(), slots=1)
    free.submit(Request([5, 9, 40], 20, 0, stop_ids=()))
    while free.busy:
        free.step()
    assert done[1].ids == free.collect()[0].ids
    return done[::2]


@pytest.mark.long
def test_every_answer_fits_the_schema() -> None:
    found = set()
    for done in answers(json_schema(SCHEMA, tiny_tokenizer())):
        assert done.finish_reason == "stop"
        value = json.loads(done.text)
        assert mismatch(value, SCHEMA, "value") is None
        found.add(value["colour"])
        # A character of several tokens came through whole.
        assert done.text == json.dumps(value, ensure_ascii=False) or "\\" in done.text
    assert found == {"red", "青"}


def test_thinking_is_free_and_then_the_form_holds() -> None:
    tokenizer = tiny_tokenizer()
    constraint = json_schema(SCHEMA, tokenizer, after_thinking=True)
    state = constraint()
    for token in tokenizer.encode("let me think"):
        allowed = state.allowed()
        # It may say anything but may not end.
        assert allowed is not None and allowed[token] and not allowed[tokenizer.im_end_id]
        state.accept(token)
    state.accept(tokenizer.control_id("</think>"))
    for token in tokenizer.encode('\n\n{"colour": "red", "count": 7, "tags": []}'):
        allowed = state.allowed()
        assert allowed is not None and allowed[token]
        state.accept(token)
    allowed = state.allowed()
    assert allowed is not None and {int(i) for i in allowed.nonzero()} == {tokenizer.im_end_id, tokenizer.eos_id}


@pytest.mark.long
@pytest.mark.parametrize("parallel", [False, True])
def test_required_tool_calls_parse_back(parallel: bool) -> None:
    counts, names = set(), set()
    constraint = tool_calls(TOOLS, tiny_tokenizer(), required=True, parallel=parallel)
    # Hot, so that ending and going on are about equally likely.
    for done in answers(constraint, seeds=20, temperature=8.0):
        if done.finish_reason == "length":
            continue
        message = parse_answer(done.ids, tiny_tokenizer())
        assert message["content"] == ""
        counts.add(len(message["tool_calls"]))
        for call in message["tool_calls"]:
            names.add(call["name"])
            schema = SCHEMA if call["name"] == "paint" else {"type": "object", "additionalProperties": False}
            assert mismatch(call["arguments"], schema, "arguments") is None
    assert names == {"paint", "rest"}
    assert (counts == {1}) != parallel


def test_a_call_the_model_opens_is_completed_and_free_text_stays_free() -> None:
    tokenizer = tiny_tokenizer()
    state = tool_calls(TOOLS, tokenizer)()
    assert state.allowed() is None
    for token in [*tokenizer.encode("I will. "), tokenizer.control_id("<tool_call>")]:
        state.accept(token)
    allowed = state.allowed()
    assert allowed is not None and allowed.nonzero().flatten().tolist() == tokenizer.encode("\n")
    for token in [*tokenizer.encode('\n{"name": "rest", "arguments": {}}\n'), tokenizer.control_id("</tool_call>")]:
        allowed = state.allowed()
        assert allowed is not None and allowed[token]
        state.accept(token)
    allowed = state.allowed()
    assert allowed is not None and allowed[tokenizer.im_end_id] and not allowed[tokenizer.encode("a")[0]]


def test_log_probabilities_are_those_among_the_allowed_tokens() -> None:
    (done, *_) = answers(json_schema({"const": "a"}, tiny_tokenizer()), top_logprobs=3)
    assert done.text == '"a"' and len(done.top_logprobs) == len(done.ids)
    quote = tiny_tokenizer().encode('"')[0]
    assert sum(math.exp(value) for _, value in done.top_logprobs[0]) == pytest.approx(1)
    assert quote in dict(done.top_logprobs[0])
    places = zip(done.top_logprobs, done.ids, done.logprobs, strict=True)
    assert all(dict(top)[token] == logprob for top, token, logprob in places)


@pytest.mark.parametrize("bad", [{"type": "foo"}, {"$ref": "#/nope"}, {"type": "string", "pattern": "("}])
def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(bad: Any) -> None:
    with pytest.raises(UserError, match="cannot be enforced"):
        json_schema(bad, tiny_tokenizer())


def test_no_tools_and_no_library_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tools"):
        tool_calls([], tiny_tokenizer())
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"cutaway\[serve\]"):
        json_schema({}, tiny_tokenizer())
