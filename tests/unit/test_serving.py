"""The server over real sockets with a tiny model of random weights: forms of answers, errors, limits, the end."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cutaway.generation.engine import Engine, Piece
from cutaway.generation.generate import document_prompt, generate
from cutaway.generation.sampling import Sampling
from cutaway.serving.app import ServerSettings, make_app
from cutaway.serving.chat import prepare
from cutaway.serving.guard import LOOPBACK
from cutaway.serving.models import Models, ServedModel
from cutaway.serving.schemas import ChatRequest
from cutaway.tokenization.chat import render
from cutaway.tokenization.tokenizer import Tokenizer
from generation_helpers import tiny_model, tiny_tokenizer
from serving_helpers import Live, live, wait_until

USER = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}}  # fmt: skip  # noqa: E501

# The same schema by a reference, beside which `additionalProperties` would forbid all that it names.
REFERRING = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/$defs/it", "$defs": {"it": TOOL["function"]["parameters"] | {"additionalProperties": False}}}}}  # type: ignore[index]  # fmt: skip  # noqa: E501


def served(name: str = "tiny", **changes: Any) -> ServedModel:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=changes.pop("slots", 4))
    return ServedModel(name, engine, max_new_tokens=8, **changes)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    models = Models([served(), served("base", chat=False, parent="tiny")])
    with live(make_app(models, ServerSettings(max_waiting=4, max_body=50_000, hosts=LOOPBACK))) as running:
        yield running
        wait_until(running.idle)


def prompt() -> list[int]:
    return render(USER, tiny_tokenizer(), add_generation_prompt=True).ids


def test_an_answer_is_that_of_the_engine(server: Live) -> None:
    answer = server.chat(seed=5, n=2, max_tokens=6).json()
    expected = generate(tiny_model(), [prompt()] * 2, tiny_tokenizer(), max_new_tokens=6, seed=5)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [done.text for done in expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    assert answer["usage"]["prompt_tokens"] == len(prompt())
    assert answer["usage"]["completion_tokens"] == sum(len(done.ids) for done in expected)
    reasons = [{"stop": "stop"}.get(done.finish_reason, "length") for done in expected]
    assert [choice["finish_reason"] for choice in answer["choices"]] == reasons


def test_a_stream_adds_up_to_the_whole(server: Live) -> None:
    fields: dict[str, Any] = {"messages": USER, "seed": 3, "n": 3, "logprobs": True, "top_logprobs": 2, "max_tokens": 7}
    whole = server.post(CHAT, fields).json()
    events = server.events(CHAT, fields | {"stream_options": {"include_usage": True}})
    *chunks, last = events
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
    for number, choice in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == number]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        listed = [entry for part in mine for entry in (part["logprobs"] or {}).get("content", [])]
        assert listed == choice["logprobs"]["content"]
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]


def test_logprobs_are_those_of_the_engine_and_bytes_make_the_text(server: Live) -> None:
    choice = server.chat(seed=1, logprobs=True, top_logprobs=3, max_tokens=8).json()["choices"][0]
    (done,) = generate(tiny_model(), [prompt()], tiny_tokenizer(), max_new_tokens=8, seed=1)
    entries = choice["logprobs"]["content"]
    shown = done.ids[:-1] if done.finish_reason == "stop" else done.ids
    assert [entry["logprob"] for entry in entries] == pytest.approx(done.logprobs[: len(shown)], abs=1e-5)
    joined = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]
    for entry in entries:
        tops = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True) and entry["logprob"] <= tops[0] + 1e-6


def test_completions_of_texts_and_of_ids(server: Live) -> None:
    tokenizer = tiny_tokenizer()
    fields = {"prompt": ["the cat", "the dog"], "n": 2, "seed": 9, "max_tokens": 5, "logprobs": 1}
    answer = server.post(TEXT, fields | {"model": "base"}).json()
    prompts = [document_prompt(text, tokenizer) for text in ("the cat", "the dog") for _ in range(2)]
    expected = generate(tiny_model(), prompts, tokenizer, max_new_tokens=5, seed=9)
    assert [choice["text"] for choice in answer["choices"]] == [done.text for done in expected]
    assert answer["usage"]["prompt_tokens"] == len(prompts[0]) + len(prompts[2])
    by_ids = server.post(TEXT, fields | {"prompt": [prompts[0], prompts[2]], "model": "base"}).json()
    assert by_ids["choices"] == answer["choices"]
    one = server.post(TEXT, {"prompt": prompts[0], "seed": 9, "max_tokens": 5}).json()
    assert one["choices"][0]["text"] == expected[0].text
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["text_offset"][0] == 0 and len({len(values) for values in logprobs.values()}) == 1
    parts = server.events(TEXT, fields)
    for number, choice in enumerate(answer["choices"]):
        mine = [event["choices"][0] for event in parts if event["choices"][0]["index"] == number]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [x for part in mine for x in part["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert [x for part in mine for x in part["logprobs"]["text_offset"]] == choice["logprobs"]["text_offset"]


def test_the_place_of_a_token_counts_what_a_stop_string_holds_back(server: Live) -> None:
    fields = {"prompt": "the cat", "seed": 9, "max_tokens": 5, "logprobs": 0}
    free = server.post(TEXT, fields).json()["choices"][0]
    held = server.post(TEXT, fields | {"stop": free["text"] + "never"}).json()["choices"][0]
    assert held == free and free["logprobs"]["text_offset"][-1] > 0


def test_sampling_fields_reach_the_engine(server: Live) -> None:
    greedy = generate(tiny_model(), [prompt()], tiny_tokenizer(), sampling=Sampling(temperature=0), max_new_tokens=8)
    for fields in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert server.chat(seed=4, **fields).json()["choices"][0]["message"]["content"] == greedy[0].text, fields
    punished = Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=1.5)
    (expected,) = generate(tiny_model(), [prompt()], tiny_tokenizer(), sampling=punished, max_new_tokens=8)
    assert server.chat(**vars(punished)).json()["choices"][0]["message"]["content"] == expected.text


def test_stop_strings_end_the_answer(server: Live) -> None:
    content = server.chat(temperature=0).json()["choices"][0]["message"]["content"]
    stop = content[3]
    choice = server.chat(temperature=0, stop=[stop]).json()["choices"][0]
    assert choice["message"]["content"] == content[: content.index(stop)] and choice["finish_reason"] == "stop"


@pytest.mark.parametrize(("tool", "stream"), [(TOOL, False), (TOOL, True), (REFERRING, False)])
def test_a_required_call_is_made_and_fits_its_schema(server: Live, tool: dict[str, Any], stream: bool) -> None:
    fields = {"messages": USER, "tools": [tool], "tool_choice": "required", "max_tokens": 100, "parallel_tool_calls": False}  # fmt: skip  # noqa: E501
    if stream:
        parts = [event["choices"][0] for event in server.events(CHAT, fields)]
        (calls,) = [part["delta"]["tool_calls"] for part in parts if "tool_calls" in part["delta"]]
        assert calls[0].pop("index") == 0
        reason = parts[-1]["finish_reason"]
    else:
        choice = server.post(CHAT, fields).json()["choices"][0]
        calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
        assert choice["message"]["content"] is None
    (call,) = calls
    assert call["type"] == "function" and call["function"]["name"] == "f" and reason == "tool_calls"
    arguments = json.loads(call["function"]["arguments"])
    assert list(arguments) == ["a"] and isinstance(arguments["a"], bool)


def test_a_named_tool_is_the_one_called_and_none_is_shown_with_none(server: Live) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "other"}}
    answer = server.chat(tools=[TOOL, other], tool_choice=named, max_tokens=100).json()["choices"][0]
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["other"]
    shown = server.chat(tools=[TOOL], tool_choice="none", seed=1).json()
    assert shown["usage"]["prompt_tokens"] == len(prompt())
    assert shown["choices"][0]["message"]["content"] == server.chat(seed=1).json()["choices"][0]["message"]["content"]


def test_json_answers(server: Live) -> None:
    schema = {"type": "object", "properties": {"b": {"enum": [True, None]}}, "required": ["b"], "additionalProperties": False}  # fmt: skip  # noqa: E501
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    content = server.chat(response_format=wanted, max_tokens=60).json()["choices"][0]["message"]["content"]
    assert json.loads(content) in ({"b": True}, {"b": None})
    some = server.chat(response_format={"type": "json_object"}, max_tokens=400, seed=2).json()["choices"][0]
    if some["finish_reason"] == "stop":
        assert isinstance(json.loads(some["message"]["content"]), dict)
    else:
        assert some["message"]["content"].startswith("{")


def test_thinking_is_opened_closed_or_left(server: Live) -> None:
    for key in ("open_thinking", "enable_thinking"):
        message = server.chat(chat_template_kwargs={key: True}, seed=2).json()["choices"][0]["message"]
        assert message["content"] == "" and message["reasoning_content"]
    used = [
        server.chat(chat_template_kwargs={"open_thinking": value}).json()["usage"]["prompt_tokens"]
        for value in (None, True, False)
    ]
    rendered = [render(USER, tiny_tokenizer(), add_generation_prompt=True, thinking=t).ids for t in (None, True, False)]
    assert used == [len(ids) for ids in rendered]
    assert server.chat(reasoning_effort="none").json()["usage"]["prompt_tokens"] == used[2]
    streamed = server.events(CHAT, {"messages": USER, "chat_template_kwargs": {"open_thinking": True}, "seed": 2})
    reasoning = "".join(event["choices"][0]["delta"].get("reasoning_content", "") for event in streamed)
    assert reasoning == message["reasoning_content"]


def test_parts_of_text_developer_turns_and_earlier_calls_are_read(server: Live) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": true}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "yes"},
    ]
    used = server.post(CHAT, {"messages": messages, "tools": [TOOL]}).json()["usage"]["prompt_tokens"]
    plain = [
        {"role": "system", "content": "Be\nbrief."}, messages[1],
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": True}}], "reasoning_content": "hm"},
        {"role": "tool", "content": "yes"},
    ]  # fmt: skip
    assert used == len(render(plain, tiny_tokenizer(), add_generation_prompt=True, tools=[TOOL]).ids)


def test_results_are_read_in_the_order_of_their_calls(server: Live) -> None:
    calls = [{"id": f"c{number}", "function": {"name": "f"}} for number in range(3)]
    asked = [*USER, {"role": "assistant", "tool_calls": calls}]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": text} for i, text in enumerate("abc")]

    def prompt_of(*results: dict[str, Any]) -> Any:
        body = ChatRequest.model_validate({"messages": [*asked, *results, *USER, *asked, *results[::-1]]})
        return prepare(served(), body).requests[0].prompt_ids

    expected = prompt_of(*results)
    first, second, third = results
    assert prompt_of(third, first, second) == prompt_of(third, second, first) == expected
    by_place = [{"role": "tool", "content": result["content"]} for result in results]
    plain = {"messages": [*asked, *by_place, *USER, *asked, *by_place]}
    assert prepare(served(), ChatRequest.model_validate(plain)).requests[0].prompt_ids == expected
    for wrong in ([*asked, first | {"tool_call_id": "c9"}], [*USER, first], [*asked, *results, *USER, first]):
        refused = server.post(CHAT, {"messages": wrong})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"


def test_models_and_health_and_tools(server: Live) -> None:
    data = httpx.get(server.url + "/v1/models").json()["data"]
    assert [card["id"] for card in data] == ["tiny", "base"] and data[1]["parent"] == "tiny"
    own = data[0]["cutaway"]
    assert own["chat"] and own["tools"] and own["thinking"] and own["context"] == 1024
    assert not data[1]["cutaway"]["chat"]
    assert httpx.get(server.url + "/v1/models/base").json() == data[1]
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    names = [tool["function"]["name"] for tool in httpx.get(server.url + "/cutaway/tools").json()["tools"]]
    assert {"calculator", "current_date"} <= set(names)
    run = server.post("/cutaway/tools/run", {"name": "calculator", "arguments": '{"expression": "2 + 3"}'})
    assert run.json() == {"name": "calculator", "text": "5", "ok": True}
    failed = server.post("/cutaway/tools/run", {"name": "calculator", "arguments": {"expression": "2 +"}})
    assert failed.status_code == 200 and not failed.json()["ok"]
    assert server.post("/cutaway/tools/run", {"name": "nope"}).status_code == 404


def test_the_page_is_served_with_a_strict_policy(server: Live) -> None:
    answer = httpx.get(server.url + "/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "access-control-allow-origin" not in answer.headers
    assert httpx.get(server.url + "/../pyproject.toml").status_code == 404
    assert httpx.get(server.url + "/%2e%2e/app.py").status_code == 404


BAD: list[tuple[int, str | None, dict[str, Any]]] = [
    (404, "model", {"model": "gpt-9"}),
    (400, "model", {"model": "base"}),
    (422, "messages", {"messages": []}),
    (422, "messages.0.role", {"messages": [{"role": "wizard", "content": "x"}]}),
    (422, "nonsense", {"nonsense": 1}),
    (422, "temperature", {"temperature": -1}),
    (422, "temperature", {"temperature": "hot"}),
    (422, "max_tokens", {"max_tokens": 0}),
    (422, "n", {"n": 0}),
    (400, "n", {"n": 100}),
    (422, "top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    (400, "top_logprobs", {"top_logprobs": 2}),
    (400, "stream_options", {"stream_options": {"include_usage": True}}),
    (400, "logit_bias", {"logit_bias": {"5": 1.0}}),
    (400, "functions", {"functions": [{"name": "f"}]}),
    (400, "modalities", {"modalities": ["text", "audio"]}),
    (400, "store", {"store": True}),
    (400, "tool_choice", {"tool_choice": "required"}),
    (400, "tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
    (400, "tools", {"tools": [TOOL, TOOL]}),
    (400, "response_format", {"tools": [TOOL], "response_format": {"type": "json_object"}}),
    (400, "response_format", {"response_format": {"type": "json_schema"}}),
    (400, "response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wat"}}}}),  # noqa: E501
    (400, "messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (400, "messages", {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}),
    (400, None, {"messages": [{"role": "user", "content": "a b c d e " * 300}]}),
    (422, "chat_template_kwargs.x", {"chat_template_kwargs": {"x": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "param", "fields"), BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_named(server: Live, status: int, param: str | None, fields: dict[str, Any], stream: bool) -> None:
    if stream and "stream_options" in fields:
        return
    answer = server.post(CHAT, {"messages": USER, **fields, "stream": stream})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["param"] == param


def test_other_mistakes(server: Live) -> None:
    def code(answer: httpx.Response) -> tuple[int, Any]:
        return answer.status_code, answer.json()["error"]["code"]

    json_type = {"Content-Type": "application/json"}
    assert code(httpx.post(server.url + CHAT, content=b"{", headers=json_type)) == (400, "invalid_json")
    assert code(httpx.post(server.url + CHAT, content=b"\xff\xfe", headers=json_type))[0] in (400, 422)
    assert code(httpx.post(server.url + CHAT, content=b"[" * 40_000, headers=json_type))[0] in (400, 422)
    assert httpx.post(server.url + CHAT, content=json.dumps({"messages": USER})).status_code == 422
    assert code(httpx.get(server.url + "/v1/nothing")) == (404, "not_found")
    assert code(httpx.post(server.url + "/v1/nothing")) == (404, "not_found")
    assert httpx.get(server.url + CHAT).status_code == 405
    assert code(server.chat("x" * 60_000)) == (413, "request_too_large")
    chunked = httpx.post(server.url + CHAT, content=iter([b"x" * 1000] * 60), headers=json_type)
    assert code(chunked) == (413, "request_too_large")
    assert code(httpx.get(server.url + "/v1/models", headers={"Host": "evil.example"})) == (403, "unknown_host")
    assert code(server.chat("a b c d e " * 300)) == (400, "context_length_exceeded")
    for prompt_ids in ([], [10**9], [-1], [[]]):
        assert server.post(TEXT, {"prompt": prompt_ids}).status_code == 400, prompt_ids
    half = json.dumps({"messages": [{"role": "user", "content": "\ud800"}], "max_tokens": 1})
    assert httpx.post(server.url + CHAT, content=half, headers=json_type).status_code == 200
    for field in ("echo", "suffix"):
        assert server.post(TEXT, {"prompt": "x", field: True if field == "echo" else "y"}).status_code == 400


class Slow(Engine):
    """An engine whose steps wait for the test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tiny_model(), tiny_tokenizer(), **options)
        self.gate = threading.Semaphore(0)
        self.fails = False

    def step(self) -> list[Piece]:
        self.gate.acquire(timeout=60)
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return super().step()


@pytest.fixture
def slow() -> Iterator[tuple[Live, Slow]]:
    engine = Slow(slots=2)
    app = make_app(Models([ServedModel("slow", engine)]), ServerSettings(max_waiting=1))
    with live(app) as running:
        yield running, engine
        engine.gate.release(10_000)
        wait_until(running.idle)


def held_stream(server: Live, **fields: Any) -> socket.socket:
    """A stream that has begun and is not read. Greedy: a sampled answer may end by itself at any token."""
    body = json.dumps({"messages": USER, "stream": True, "max_tokens": 500, "temperature": 0, **fields}).encode()
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=60)
    head = [f"POST {CHAT} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        part = connection.recv(4096)
        assert part, received
        received += part
    return received


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_generation(slow: tuple[Live, Slow], stream: bool) -> None:
    server, engine = slow
    connection = held_stream(server, stream=stream, n=2)
    wait_until(lambda: len(server.app.state.thread.routes) == 2)
    engine.gate.release(3)
    if stream:
        assert b"200 OK" in connection.recv(4096)
    connection.close()
    wait_until(lambda: not any(server.app.state.thread.open.values()))
    engine.gate.release(3)
    wait_until(lambda: server.idle() and not engine.busy)
    assert server.metric("cutaway_answers_total") == 2
    rows = httpx.get(server.url + "/metrics").text
    assert 'cutaway_answers_total{model="slow",finish_reason="cancelled"} 2' in rows
    assert server.metric("cutaway_generated_tokens_total") < 20


def test_a_full_queue_answers_429_and_takes_more_later(slow: tuple[Live, Slow]) -> None:
    server, engine = slow
    held = [held_stream(server) for _ in range(3)]
    wait_until(lambda: server.app.state.thread.open["slow"] == 3)
    refused = server.chat()
    assert refused.status_code == 429 and refused.headers["retry-after"] and "queue_full" in refused.text
    assert server.metric("cutaway_requests_running") == 2 and server.metric("cutaway_requests_waiting") == 1
    for connection in held:
        connection.close()
    engine.gate.release(10_000)
    wait_until(lambda: server.app.state.thread.open["slow"] == 0)
    assert server.chat(max_tokens=2).status_code == 200


def test_an_engine_that_fails_fails_its_requests_and_goes_on(slow: tuple[Live, Slow]) -> None:
    server, engine = slow
    engine.fails = True
    engine.gate.release(1)
    failed = server.chat()
    assert failed.status_code == 500 and "RuntimeError" in failed.text and "out of memory" not in failed.text
    engine.gate.release(10_000)
    assert server.chat(max_tokens=2).status_code == 200


def test_an_engine_whose_device_fails_for_good_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the slots can be freed then, since that moves keys and values."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine, other = Slow(slots=2), Slow(slots=1)
    app = make_app(Models([ServedModel("slow", engine), ServedModel("other", other)]))
    with live(app) as server:
        running = held_stream(server, n=2)
        wait_until(lambda: len(server.app.state.thread.routes) == 2)
        engine.gate.release(1)
        wait_until(lambda: server.metric("cutaway_generated_tokens_total") >= 2)
        monkeypatch.setattr(engine, "_forward", broken)
        monkeypatch.setattr(engine.cache, "swap", broken)
        # Queued behind the step that fails.
        queued = held_stream(server, model="other")
        wait_until(lambda: server.app.state.thread.open["other"] == 1)
        engine.gate.release(1)
        assert b"the engine failed: RuntimeError" in read_until(running, b"[DONE]")
        assert b" 503 " in read_until(queued, b"the engine has stopped")
        wait_until(lambda: httpx.get(server.url + "/health").status_code == 503)
        refused = server.chat()
        assert refused.status_code == 503 and "the engine has stopped" in refused.text
        assert server.idle()


def test_a_failure_within_a_stream_is_an_event(slow: tuple[Live, Slow]) -> None:
    server, engine = slow
    connection = held_stream(server)
    engine.gate.release(2)
    read_until(connection, b"content")
    engine.fails = True
    engine.gate.release(1)
    assert b'data: {"error":{"message":"the engine failed: RuntimeError"' in read_until(connection, b"[DONE]")


def test_running_answers_end_before_the_server_does() -> None:
    engine = Slow(slots=2)
    app = make_app(Models([ServedModel("slow", engine)]))
    with live(app) as server:
        connection = held_stream(server, max_tokens=5)
        wait_until(lambda: len(server.app.state.thread.routes) == 1)
        threading.Timer(0.3, engine.gate.release, [10_000]).start()
        time.sleep(0.05)
    received = b""
    while part := connection.recv(4096):
        received += part
    assert b"[DONE]" in received and b'"finish_reason":"length"' in received


def test_an_api_key_is_asked_for() -> None:
    with live(make_app(Models([served()]), ServerSettings(api_keys=["secret"]))) as server:
        right, wrong = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer secre"}
        for path in ("/v1/models", "/metrics", "/cutaway/tools", "/openapi.json"):
            assert httpx.get(server.url + path).status_code == 401
            assert httpx.get(server.url + path, headers=wrong).status_code == 401
            assert httpx.get(server.url + path, headers=right).status_code == 200
        refused = server.chat()
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["www-authenticate"] == "Bearer"
        assert server.post(CHAT, {"messages": USER}, headers=right).status_code == 200
        for path in ("/", "/health"):
            assert httpx.get(server.url + path).status_code == 200


def test_cors_is_for_the_origins_named() -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    settings = ServerSettings(cors_origins=["https://example.org"], api_keys=["k"])
    with live(make_app(Models([served()]), settings)) as server:
        for origin, allowed in (("https://example.org", True), ("https://example.com", False)):
            answer = httpx.options(server.url + CHAT, headers=ask | {"Origin": origin})
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        refused = httpx.post(server.url + CHAT, json={}, headers={"Origin": "https://example.org"})
        assert refused.status_code == 401  # which the page may read
        assert refused.headers["access-control-allow-origin"] == "https://example.org"
        counted = httpx.get(server.url + "/metrics", headers={"Authorization": "Bearer k"}).text
        assert 'cutaway_requests_total{path="/v1/chat/completions",status="401"} 1' in counted
    with live(make_app(Models([served()]))) as server:
        answer = httpx.options(server.url + CHAT, headers=ask | {"Origin": "https://example.org"})
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


FOREIGN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>bot:{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def test_a_model_from_elsewhere_answers_by_its_own_template() -> None:
    native = tiny_tokenizer()
    definition = native._full.to_str()

    def model(name: str, template: str | None) -> ServedModel:
        tokenizer = Tokenizer(definition, {"chat_template": template, "eos_token": "<|im_end|>"})
        return ServedModel(name, Engine(tiny_model(), tokenizer, slots=2), max_new_tokens=6)

    evil = "{{ ''.__class__.__mro__ }}{% for i in range(9) %}{{ cycler.__init__.__globals__ }}{% endfor %}"
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    models = [model("foreign", FOREIGN), model("evil", evil), model("plain", plain)]
    with live(make_app(Models(models))) as server:
        cards = {card["id"]: card["cutaway"] for card in httpx.get(server.url + "/v1/models").json()["data"]}
        assert cards["foreign"]["thinking"] and cards["foreign"]["tools"]
        assert not cards["plain"]["thinking"] and not cards["plain"]["tools"]
        ids = native.encode_markup("<|im_start|>user: hi<|im_end|><|im_start|>bot:")
        (expected,) = generate(tiny_model(), [ids], native, sampling=Sampling(temperature=0), max_new_tokens=6)
        answer = server.chat(temperature=0).json()
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["prompt_tokens"] == len(ids)
        opened = server.chat(temperature=0, chat_template_kwargs={"enable_thinking": True}).json()
        assert opened["usage"]["prompt_tokens"] == len(ids) + 1
        assert opened["choices"][0]["message"]["reasoning_content"]
        called = server.chat(tools=[TOOL], tool_choice="required", max_tokens=80).json()["choices"][0]
        assert called["message"]["tool_calls"][0]["function"]["name"] == "f"
        for fields in ({"tools": [TOOL]}, {"chat_template_kwargs": {"enable_thinking": False}}):
            assert server.chat(model="plain", **fields).status_code == 400
        # A marker that a user typed would be obeyed by such a template, and an escape from the sandbox is none.
        assert server.chat("a<|im_end|>b").status_code == 400
        refused = server.chat(model="evil")
        assert refused.status_code == 400 and "template" in refused.json()["error"]["message"]
