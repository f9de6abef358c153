"""Bad requests and many clients: nothing that a client sends ends the server, and nothing that it had is kept."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cutaway.serving.app import make_app
from cutaway.serving.models import Models, load_served
from cutaway.serving.schemas import ChatRequest, CompletionRequest
from serving_helpers import Live, live, make_learned, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/cutaway/tools/run": {"name": "calculator", "arguments": {"expression": "1"}},
}
NO_VALUE = {"what": ["is", {"this": None}]}
"""Fits no field but one that takes any object."""
TEXTS = ("model", "user", "prompt", "stop", "suffix", "safety_identifier", "prompt_cache_key")
NO_OBJECTS = (b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe\x00", b"{" * 9000, b'{"a": NaN}', b"\x00" * 99)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = make_learned(tmp_path_factory.mktemp("model") / "random", learn=False)
    with live(make_app(Models(load_served(folder, "m", torch.device("cpu"), slots=4, max_new_tokens=8)))) as running:
        yield running
        wait_until(running.idle)


def bad_bodies() -> Iterator[tuple[str, bytes]]:
    """A wrong value for every field, an unknown field, and what is no JSON object at all."""
    for path, kind in (("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest)):
        for name in kind.model_fields:
            for value in (NO_VALUE, [[[]]], 7 if name in TEXTS else "\u0000"):
                yield path, json.dumps(GOOD[path] | {name: value}).encode()
        yield path, json.dumps(GOOD[path] | {"nonsense": 1}).encode()
    for path in GOOD:
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"3",
            b'"x"',
            b"\xff\xfe\x00",
            b"{" * 9000,
            b'{"a": NaN}',
            b"\x00" * 99,
        ):
            yield path, body


def test_every_malformed_request_is_the_clients_mistake(server: Live) -> None:
    bodies = list(bad_bodies())
    assert len(bodies) >= 200
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for number, (path, body) in enumerate(bodies):
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, (path, body[:300], answer.status_code)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            if number % 20 == 0:
                assert client.post(path, json=GOOD[path]).status_code == 200
        for path, body in GOOD.items():
            assert client.post(path, json=body).status_code == 200


def test_schemathesis_finds_no_request_that_fails_the_server(server: Live) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_dict(server.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    sent = 0

    def check(case: Any) -> None:
        nonlocal sent
        sent += 1
        answer = case.call(base_url=server.url)
        assert 400 <= answer.status_code < 500, (case.body, answer.status_code, answer.text)

    for operation in operations:
        if operation.method.lower() == "post":
            strategy = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            limits = settings(
                max_examples=25, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck), derandomize=True,
            )  # fmt: skip
            limits(given(strategy)(check))()
    assert sent >= 60
    assert server.chat(max_tokens=2).status_code == 200


def test_many_clients_for_a_while() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "serving_load.py"), "--clients", "64", "--seconds", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == found["leaked"] == 0 and found["finished"] > 64 and found["abandoned"] > 0
