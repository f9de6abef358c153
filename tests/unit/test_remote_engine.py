"""The remote engine against a loopback server that answers as vLLM or SGLang do, with the engine here behind it."""

from collections.abc import Iterator
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.generation.defaults import stop_ids
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.generation.remote import Dialect, RemoteEngine
from generation_helpers import tiny_model, tiny_tokenizer
from http_helpers import StandIn, stand_in


def here(prompt: list[int], length: int, seed: int, body: dict[str, Any], top: int) -> Completion:
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    settings = {name: body[name] for name in names} | {"top_k": max(0, body["top_k"])}
    ends = body["stop_token_ids"]
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=1)
    request = Request(prompt, length, seed, stop_ids=ends, stop=body["stop"], top_logprobs=top, **settings)
    engine.submit(request)
    while engine.busy:
        engine.step()
    return engine.collect()[0]


def vllm(body: dict[str, Any]) -> dict[str, Any]:
    assert body["model"] == "tiny" and body["ignore_eos"] and body["return_tokens_as_token_ids"]
    done = here(body["prompt"], body["max_tokens"], body["seed"], body, body["logprobs"])
    logprobs = {
        "tokens": [f"token_id:{token}" for token in done.ids],
        "token_logprobs": done.logprobs,
        "top_logprobs": [{f"token_id:{token}": value for token, value in top} for top in done.top_logprobs] or None,
    }
    return {"choices": [{"text": "?", "logprobs": logprobs, "finish_reason": done.finish_reason}]}


def sglang(body: dict[str, Any]) -> dict[str, Any]:
    settings = body["sampling_params"]
    top = body["top_logprobs_num"]
    # With `ignore_eos` no token ends the text there; without it, the end tokens of its model do, too.
    settings["stop_token_ids"] += stop_ids(tiny_tokenizer())
    settings["stop_token_ids"] *= not settings["ignore_eos"]
    done = here(body["input_ids"], settings["max_new_tokens"], settings["sampling_seed"], settings, top)
    meta = {
        "finish_reason": {"type": done.finish_reason},
        "output_token_logprobs": [[value, token, None] for token, value in zip(done.ids, done.logprobs, strict=True)],
        "output_top_logprobs": [[[value, token, None] for token, value in place] for place in done.top_logprobs],
    }
    return {"text": "?", "meta_info": meta}


ANSWERS = {"/v1/completions": vllm, "/generate": sglang}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(lambda path, body: (200, ANSWERS[path](body))) as one:
        yield one


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_it_gives_what_the_engine_behind_the_server_gives(server: StandIn, dialect: Dialect) -> None:
    remote = RemoteEngine(server.url + "/", "tiny", tiny_tokenizer(), dialect=dialect, slots=3, api_key="k")
    local = Engine(tiny_model(), tiny_tokenizer(), slots=1)
    free = Request([5, 9, 40], 14, 3, stop_ids=())
    local.submit(free)
    while local.busy:
        local.step()
    (done,) = local.collect()
    wanted = [Request([5, 9, 40], 20, seed, temperature=0.8, top_p=0.9, top_k=50, top_logprobs=2) for seed in range(4)]
    wanted += [
        Request([5, 9, 40], 14, 3, stop_ids=(), stop=[done.text[3:6]]),
        Request([7], 6, stop_ids=(), temperature=0),
    ]
    wanted += [Request([5, 9, 40], 14, 3, stop_ids=[done.ids[6]])]
    ids = [remote.submit(request) for request in wanted]
    pieces = []
    while remote.busy:
        pieces += remote.step()
    answers = {one.id: one for one in remote.collect()}
    assert sorted(answers) == ids and remote.collect() == []
    for number, request in zip(ids, wanted, strict=True):
        local.submit(request)
        while local.busy:
            local.step()
        expected, got = local.collect()[0], answers[number]
        assert (got.ids, got.text, got.finish_reason) == (expected.ids, expected.text, expected.finish_reason)
        assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-6) and got.prompt_ids == expected.prompt_ids
        assert [[token for token, _ in top] for top in got.top_logprobs] == [
            [token for token, _ in top] for top in expected.top_logprobs
        ]
    assert answers[ids[-1]].finish_reason == "stop"
    assert {piece.id: piece.ids for piece in pieces} == {number: one.ids for number, one in answers.items()}
    assert all(call.key == "Bearer k" for call in server.asked)
    remote.close()


def test_what_goes_wrong_is_one_line(server: StandIn) -> None:
    remote = RemoteEngine(server.url, "tiny", tiny_tokenizer())
    for broken, reason in (
        ((500, b"out of memory"), "HTTP 500: out of memory"),
        ((200, b"<html>"), "no answer"),
        ((200, b'{"choices": []}'), "not an answer of vllm"),
        (
            (200, b'{"choices": [{"logprobs": {"tokens": [], "token_logprobs": []}, "finish_reason": "stop"}]}'),
            "0 tokens",
        ),
    ):
        server.reply = lambda path, body, broken=broken: broken  # type: ignore[misc]
        remote.submit(Request([1]))
        with pytest.raises(UserError, match=reason):
            remote.step()
        assert not remote.busy
    gone = RemoteEngine("http://127.0.0.1:9", "tiny", tiny_tokenizer(), seconds=5)
    gone.submit(Request([1]))
    with pytest.raises(UserError, match="no answer"):
        gone.step()
    for request, reason in ((Request([]), "empty"), (Request([1], constraint=lambda: None), "form of answer")):  # type: ignore[arg-type, return-value]
        with pytest.raises(UserError, match=reason):
            remote.submit(request)
    with pytest.raises(UserError, match="http://"):
        RemoteEngine("127.0.0.1:80", "tiny", tiny_tokenizer())


def test_a_cancelled_request_is_dropped(server: StandIn) -> None:
    remote = RemoteEngine(server.url, "tiny", tiny_tokenizer())
    first, second = remote.submit(Request([5], 3, stop_ids=())), remote.submit(Request([6], 3, stop_ids=()))
    remote.cancel(first)
    while remote.busy:
        remote.step()
    assert [one.id for one in remote.collect()] == [second]
