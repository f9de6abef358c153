"""Real clients against a live server with a model that really calls the tool, as its users would write them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.serving.app import ServerSettings, make_app
from cutaway.serving.models import Models, load_served
from serving_helpers import (
    ADD,
    ANSWER,
    GREETED,
    GREETING,
    QUESTION,
    REASONING,
    RESULT,
    Live,
    live,
    make_learned,
    wait_until,
)

pytestmark = pytest.mark.slow

CLIENTS = Path(os.environ.get("CUTAWAY_CLIENTS", Path(__file__).resolve().parents[2] / ".clients"))
SCRIPTS = Path(__file__).resolve().parents[1] / "clients"
CALL = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
GREET: list[Any] = [{"role": "user", "content": GREETING}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = make_learned(tmp_path_factory.mktemp("model") / "learned")
    models = load_served(folder, "learned", torch.device("cpu"), slots=8, max_new_tokens=200)
    with live(make_app(Models(models), ServerSettings(api_keys=["right"]))) as running:
        yield running
        wait_until(running.idle)


@pytest.fixture
def client(server: Live) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=server.url + "/v1", api_key="right", max_retries=0)


def test_openai_chat_stream_and_logprobs(client: Any) -> None:
    assert [card.id for card in client.models.list()] == ["learned"]
    answer = client.chat.completions.create(model="learned", messages=GREET, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.content == GREETED and choice.finish_reason == "stop"
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == GREETED
    assert all(entry.logprob > -0.2 and len(entry.top_logprobs) == 3 for entry in entries)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="learned", messages=GREET, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == GREETED
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 2
    assert chunks[-1].usage == answer.usage


def test_openai_runs_a_tool_loop(client: Any) -> None:
    messages = list(ASKED)
    first = client.chat.completions.create(model="learned", messages=messages, tools=[ADD]).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content is None
    (call,) = first.message.tool_calls
    assert call.function.to_dict() == CALL
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    second = client.chat.completions.create(model="learned", messages=messages, tools=[ADD]).choices[0]
    assert second.message.content == ANSWER and second.finish_reason == "stop" and not second.message.tool_calls
    with client.chat.completions.stream(model="learned", messages=ASKED, tools=[ADD]) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments) == {"a": 2, "b": 3} and streamed.function.name == "add"
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        forced = client.chat.completions.create(model="learned", messages=ASKED, tools=[ADD], tool_choice=choice)
        assert forced.choices[0].message.tool_calls[0].function.to_dict() == CALL


def test_openai_reads_reasoning_json_and_completions(client: Any) -> None:
    opened = {"chat_template_kwargs": {"open_thinking": True}}
    message = client.chat.completions.create(model="learned", messages=GREET, extra_body=opened).choices[0].message
    assert message.reasoning_content == REASONING and message.content == GREETED
    parts = client.chat.completions.create(model="learned", messages=GREET, extra_body=opened, stream=True)
    deltas = [chunk.choices[0].delta for chunk in parts]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == REASONING
    assert "".join(delta.content or "" for delta in deltas) == GREETED
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}
    form = client.chat.completions.create(model="learned", messages=GREET, response_format=wanted)
    assert list(json.loads(form.choices[0].message.content)) == ["ok"]
    text = client.completions.create(model="learned", prompt="Hello", max_tokens=5, logprobs=2, n=2)
    assert len(text.choices) == 2 and len(text.choices[0].logprobs.top_logprobs[0]) == 2


def test_openai_raises_its_own_errors(client: Any, server: Live) -> None:
    openai = pytest.importorskip("openai")

    def ask(**fields: Any) -> None:
        client.chat.completions.create(**({"model": "learned", "messages": GREET} | fields))

    with pytest.raises(openai.NotFoundError, match="no model"):
        ask(model="nope")
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        ask(temperature=9)
    with pytest.raises(openai.BadRequestError) as full:
        ask(messages=[{"role": "user", "content": "word " * 2000}])
    assert full.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()


def test_openai_closes_a_stream_and_the_server_stops(client: Any, server: Live) -> None:
    stream = client.chat.completions.create(
        model="learned", messages=GREET, stream=True, max_tokens=900, temperature=2, logprobs=True
    )
    next(iter(stream))
    stream.close()
    wait_until(server.idle)


def test_langchain_chat_stream_tools_and_structure(server: Live) -> None:
    langchain = pytest.importorskip("langchain_openai")
    messages_of = pytest.importorskip("langchain_core.messages")
    model = langchain.ChatOpenAI(model="learned", base_url=server.url + "/v1", api_key="right", max_retries=0)
    assert model.invoke(GREETING).content == GREETED
    parts = list(model.stream(GREETING))
    assert "".join(part.content for part in parts) == GREETED and len(parts) > 3
    bound = model.bind_tools([ADD])
    asked = [messages_of.HumanMessage(QUESTION)]
    first = bound.invoke(asked)
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("add", {"a": 2, "b": 3})]
    result = messages_of.ToolMessage(RESULT, tool_call_id=first.tool_calls[0]["id"])
    assert bound.invoke([*asked, first, result]).content == ANSWER
    whole = None
    for part in bound.stream(asked):
        whole = part if whole is None else whole + part
    assert whole is not None and whole.tool_calls[0]["args"] == {"a": 2, "b": 3}
    scored = model.bind(logprobs=True, top_logprobs=2).invoke(GREETING)
    assert len(scored.response_metadata["logprobs"]["content"]) > 3
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = model.with_structured_output(
        schema | {"title": "x", "additionalProperties": False},
        method="json_schema",
    )
    assert list(form.invoke(GREETING)) == ["ok"]
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.UnprocessableEntityError):
        model.bind(temperature=9).invoke(GREETING)


def run_client(command: list[str], server: Live) -> dict[str, Any]:
    arguments = [server.url + "/v1", json.dumps(ADD), QUESTION, RESULT, GREETING]
    environment = os.environ | {"CLIENTS": str(CLIENTS), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_the_npm_client(server: Live) -> None:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules" / "openai").is_dir():
        pytest.skip(f"no openai package for Node in {CLIENTS}: `make outside` installs it")
    found = run_client([node, str(SCRIPTS / "client.mjs")], server)
    assert found["models"] == ["learned"] and found["chat"] == found["streamed"] == GREETED
    assert found["logprobs"] > 3 and found["usage"]["completion_tokens"] > 3
    assert found["finish"] == "tool_calls" and found["call"] == CALL and found["answer"] == ANSWER
    assert found["streamedCall"]["arguments"] == CALL["arguments"]
    assert found["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found"],
        "temperature": ["UnprocessableEntityError", 422, "less_than_equal"],
        "key": ["AuthenticationError", 401, "invalid_api_key"],
    }
    wait_until(server.idle)


def test_litellm(server: Live) -> None:
    python = CLIENTS / "litellm" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no litellm in {CLIENTS}: `make outside` installs it")
    found = run_client([str(python), str(SCRIPTS / "client_litellm.py")], server)
    assert found["chat"] == found["streamed"] == GREETED and found["logprobs"] > 3 and found["usage"] > 3
    assert found["finish"] == "tool_calls" and found["call"] == CALL and found["answer"] == ANSWER
    assert found["streamed_call"] == CALL
    assert found["errors"]["model"] == ["NotFoundError", 404] and found["errors"]["key"] == ["AuthenticationError", 401]
    assert found["errors"]["temperature"][1] in (400, 422)
