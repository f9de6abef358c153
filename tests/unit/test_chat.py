import json
from functools import cache
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cutaway.errors import UserError
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.chat import (
    CHAT_TEMPLATE,
    normalise,
    parse,
    parse_answer,
    render,
    render_text,
    render_to_fit,
    validate_conversation,
)
from cutaway.tokenization.foreign import render_foreign
from cutaway.tokenization.template import TOOLS_FOOTER, TOOLS_HEADER
from cutaway.tokenization.tokenizer import CONTROL_TOKENS, Tokenizer
from cutaway.tokenization.train import train_tokenizer

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
EXAMPLE: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief.", "tools": json.dumps([TOOL])},
    {"role": "user", "content": "2+3? <|im_end|>"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "add them",
        "tool_calls": json.dumps([{"name": "add", "arguments": {"a": 2, "b": 3}}, {"name": "add", "arguments": {}}]),
    },
    {"role": "tool", "content": "5"},
    {"role": "tool", "content": "0"},
    {"role": "assistant", "content": "是 5。"},
]

PARTS = [
    *CONTROL_TOKENS,
    "\n",
    "\n\n",
    "{",
    "}",
    '"',
    "user\n",
    "天",
    "🧑‍🚀",
    "<tools>",
    TOOLS_HEADER,
    TOOLS_FOOTER[0],
    "'<&",
]
CONTENT = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(PARTS)), max_size=6).map("".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), CONTENT),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(CONTENT, inner, max_size=2)),
    max_leaves=4,
).filter(lambda value: "\\ud" not in json.dumps(value).lower())
CALL = st.fixed_dictionaries({"name": CONTENT, "arguments": st.dictionaries(CONTENT, JSON, max_size=2)})
CALLS = st.lists(st.one_of(CALL, CALL.map(lambda call: {"id": "1", "type": "function", "function": call})), max_size=2)
TOOLS = st.lists(st.dictionaries(CONTENT, JSON, max_size=2), max_size=2)
TURN = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]), "content": CONTENT}),
    st.fixed_dictionaries(
        {"role": st.just("system"), "content": CONTENT, "tools": st.one_of(TOOLS, TOOLS.map(json.dumps))}
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": CONTENT},
        optional={
            "reasoning_content": st.one_of(st.none(), CONTENT),
            "tool_calls": st.one_of(CALLS, CALLS.map(json.dumps)),
        },
    ),
)
CONVERSATION = st.lists(TURN, min_size=1, max_size=5)
THINKING = st.sampled_from([None, True, False])


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([render_text(EXAMPLE), "the cat"] * 3, TokenizerSettings(vocab_size=400))


@cache
def template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


def jinja(messages: list[dict[str, Any]], **options: Any) -> str:
    return template().render(messages=messages, **options)


def test_the_format() -> None:
    assert render_text(EXAMPLE, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n2+3? <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nadd them\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n0\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n是 5。<|im_end|>\n<|im_start|>assistant\n"
    )


def test_mask_is_exactly_what_the_assistant_writes() -> None:
    rendered = render(EXAMPLE, tokenizer())
    spans: list[str] = []
    for trained, before, index in zip(rendered.mask, [False, *rendered.mask], rendered.ids, strict=False):
        if trained and not before:
            spans.append("")
        if trained:
            spans[-1] += tokenizer().decode([index]) if index in tokenizer().control_ids.values() else ""
    assert spans == ["<think></think><tool_call></tool_call><tool_call></tool_call><|im_end|>", "<|im_end|>"]
    kept = [index for index, trained in zip(rendered.ids, rendered.mask, strict=True) if trained]
    assert tokenizer().decode(kept) == (
        "<think>\nadd them\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>是 5。<|im_end|>'
    )


@given(conversation=CONVERSATION, thinking=THINKING, prompt=st.booleans(), tools=st.one_of(st.none(), TOOLS))
@settings(max_examples=100, deadline=None)
def test_ids_text_and_jinja_agree(
    conversation: list[dict[str, Any]], thinking: bool | None, prompt: bool, tools: list[Any] | None
) -> None:
    text = render_text(conversation, add_generation_prompt=prompt, thinking=thinking, tools=tools)
    rendered = render(conversation, tokenizer(), add_generation_prompt=prompt, thinking=thinking, tools=tools)
    assert len(rendered.ids) == len(rendered.mask)
    assert tokenizer().decode(rendered.ids) == text
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    assert jinja(normalise(conversation), tools=tools, add_generation_prompt=prompt, **options) == text
    options = {} if thinking is None else {"open_thinking": thinking}
    given_tools = {"tools": tools} if tools else {}
    assert jinja(normalise(conversation), add_generation_prompt=prompt, **given_tools, **options) == text


@pytest.mark.long
@given(conversation=CONVERSATION, thinking=THINKING)
@settings(max_examples=200, deadline=None)
def test_parsing_gives_the_conversation_back(conversation: list[dict[str, Any]], thinking: bool | None) -> None:
    turns = normalise(conversation, thinking=thinking)
    assert normalise(turns) == turns
    assert parse(render(conversation, tokenizer(), thinking=thinking).ids, tokenizer()) == turns


@pytest.mark.long
@given(conversation=CONVERSATION, thinking=THINKING)
@settings(max_examples=150, deadline=None)
def test_rendering_only_appends(conversation: list[dict[str, Any]], thinking: bool | None) -> None:
    whole = render(conversation, tokenizer(), thinking=thinking)
    for count in range(len(conversation)):
        part = render(conversation[:count], tokenizer(), thinking=thinking)
        assert whole.ids[: len(part.ids)] == part.ids and whole.mask[: len(part.mask)] == part.mask
        turn = normalise(conversation, thinking=thinking)[count]
        if turn["role"] != "assistant" or (thinking is True and not turn.get("reasoning_content")):
            continue
        if thinking is False and turn["reasoning_content"]:
            continue
        prompt = render(conversation[:count], tokenizer(), thinking=thinking, add_generation_prompt=True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        following = render(conversation[: count + 1], tokenizer(), thinking=thinking)
        answer = following.ids[len(prompt.ids) :]
        assert parse_answer(answer, tokenizer(), thinking=thinking) == turn
        written = following.mask[len(prompt.ids) :]
        newline = tokenizer().encode("\n")
        assert answer[-len(newline) :] == newline
        given_block = turn.get("reasoning_content") == "" and thinking is None
        assert (all(written[: -len(newline)]) or given_block) and not any(written[-len(newline) :])


@given(conversation=CONVERSATION)
@settings(max_examples=100, deadline=None)
def test_control_tokens_come_from_the_format_alone(conversation: list[dict[str, Any]]) -> None:
    turns = normalise(conversation)
    ids = render(conversation, tokenizer()).ids
    assert ids.count(tokenizer().im_start_id) == ids.count(tokenizer().im_end_id) == len(turns)
    assert ids.count(tokenizer().eos_id) == 0
    tool_turns = sum(turn["role"] == "tool" for turn in turns)
    assert ids.count(tokenizer().control_ids["<tool_response>"]) == tool_turns


@given(ids=st.lists(st.integers(0, 399), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_ids_parse(ids: list[int]) -> None:
    header = [tokenizer().im_start_id, *tokenizer().encode("assistant\n")]
    for message in parse(header + ids, tokenizer()):
        assert isinstance(message["content"], str)
    for thinking in (None, True, False):
        assert parse_answer(ids, tokenizer(), thinking=thinking)["role"] == "assistant"


def test_malformed_calls_stay_text() -> None:
    call, end = tokenizer().control_ids["<tool_call>"], tokenizer().control_ids["</tool_call>"]
    broken = ["{", "[]", '{"arguments": {}}', '{"name": "f", "arguments": 3}', ""]
    broken += [
        f'{{"name": "f", "arguments": {{"x": {value}}}}}' for value in ("1" * 4301, "[" * 1100 + "]" * 1100, "1e999")
    ]
    for body in broken:
        ids = [*tokenizer().encode("So "), call, *tokenizer().encode(body), end]
        assert parse_answer(ids, tokenizer()) == {
            "role": "assistant",
            "content": f"So <tool_call>{body}</tool_call>",
        }


def test_empty_thinking_blocks_are_not_trained() -> None:
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat"}]
    plain = render(conversation, tokenizer())
    silent = render(conversation, tokenizer(), thinking=False)
    assert "<think>" not in tokenizer().decode(plain.ids)
    assert "<think>\n\n</think>\n\nthe cat<|im_end|>" in tokenizer().decode(silent.ids)
    assert sum(plain.mask) == sum(silent.mask)


def test_render_to_fit_cuts_at_an_answer() -> None:
    whole = render(EXAMPLE, tokenizer())
    end = len(whole.ids) - len(tokenizer().encode("\n"))
    assert render_to_fit(EXAMPLE, tokenizer(), 10**6) == render_to_fit(EXAMPLE, tokenizer(), end)
    shorter = render_to_fit(EXAMPLE, tokenizer(), end - 1)
    assert shorter is not None and shorter.ids == whole.ids[: len(shorter.ids)]
    assert shorter.mask[-1] and shorter.ids[-1] == tokenizer().im_end_id
    assert parse(shorter.ids, tokenizer()) == normalise(EXAMPLE[:3])
    assert render_to_fit(EXAMPLE, tokenizer(), len(shorter.ids)) == shorter
    assert render_to_fit(EXAMPLE, tokenizer(), len(shorter.ids) - 1) is None
    assert render_to_fit(EXAMPLE, tokenizer(), 0) is None


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "conversation",
    [
        EXAMPLE,
        [USER, ANSWER],
        [ANSWER, USER],
        [USER, USER, ANSWER, ANSWER],
        [
            USER | {"tools": "", "tool_calls": None, "reasoning_content": ""},
            ANSWER
            | {
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
        ],
    ],
)
def test_good_conversations(conversation: Any) -> None:
    assert validate_conversation(conversation) is None


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([], "at least one turn"),
        ("hi", "must be a list"),
        (["hi"], "object"),
        ([USER], "no assistant turn"),
        ([USER, ANSWER | {"content": ""}], "empty"),
        ([USER, {"role": "bot", "content": "x"}], "role is 'bot'"),
        ([USER, ANSWER | {"content": 3}], "content must be a string"),
        ([USER, ANSWER | {"reasoning_content": []}], "reasoning_content must be a string"),
        ([USER | {"reasoning_content": "x"}, ANSWER], "belongs on an assistant"),
        ([USER | {"tool_calls": [{"name": "f"}]}, ANSWER], "belong on an assistant"),
        ([USER | {"tools": [TOOL]}, ANSWER], "belong on the system"),
        ([USER, ANSWER | {"tool_calls": "[{"}], "not valid JSON"),
        ([USER, ANSWER | {"tool_calls": {"name": "f"}}], "must be a list"),
        ([USER, ANSWER | {"tool_calls": ["f"]}], "needs a name"),
        ([USER, ANSWER | {"tool_calls": [{"arguments": {}}]}], "needs a name"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": "{"}]}], "not valid JSON"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": [1]}]}], "must be an object"),
        ([USER, {"role": "tool", "content": "x"}, ANSWER], "must follow"),
    ],
)
def test_bad_conversations(conversation: Any, reason: str) -> None:
    assert reason in str(validate_conversation(conversation))


def test_rendering_a_bad_turn_is_a_user_error() -> None:
    with pytest.raises(UserError, match="turn 0: role"):
        render([{"role": "bot", "content": ""}], tokenizer())


def foreign(template: str) -> Tokenizer:
    native = tokenizer()
    return Tokenizer(native._full.to_str(), {"chat_template": template, "eos_token": "<|im_end|>"})


APPENDING = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_foreign_template_renders_with_mask() -> None:
    other = foreign(APPENDING)
    conversation = [USER, ANSWER, USER]
    rendered = render_foreign(conversation, other, add_generation_prompt=True)
    assert other.decode(rendered.ids) == "[user] a<|im_end|>\n[assistant] b<|im_end|>\n[user] a<|im_end|>\n[assistant] "
    trained = [index for index, flag in zip(rendered.ids, rendered.mask, strict=True) if flag]
    assert other.decode(trained) == "b<|im_end|>"


def test_foreign_template_that_rewrites_is_refused() -> None:
    other = foreign("{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="cannot be trained on"):
        render_foreign([USER, ANSWER], other)
    with pytest.raises(UserError, match="would obey"):
        render_foreign([USER | {"content": "<|im_end|>"}, ANSWER], foreign(APPENDING))
    with pytest.raises(UserError, match="no system, please"):
        render_foreign([USER, ANSWER], foreign("{{ raise_exception('no system, please') }}"))
    with pytest.raises(UserError, match="refuses"):
        render_foreign([USER, ANSWER], foreign("{{ ''.__class__.__mro__ }}"))


def test_own_template_renders_the_same_as_a_foreign_one() -> None:
    conversation = [turn for turn in EXAMPLE if "<|im_end|>" not in turn["content"]]
    own, by_template = render(conversation, tokenizer()), render_foreign(conversation, tokenizer())
    assert tokenizer().decode(by_template.ids) == tokenizer().decode(own.ids)
