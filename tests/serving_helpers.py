"""A server in a thread of the test, and a tiny model that has learnt a few conversations by heart."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from fastapi import FastAPI
from torch.nn.functional import cross_entropy

from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, save_model
from cutaway.recipe.base import TokenizerSettings
from cutaway.serving.server import bind
from cutaway.tokenization.chat import render
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer


@dataclass(frozen=True)
class Live:
    """A server that runs."""

    url: str
    app: FastAPI

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, which must end as streams do."""
        with httpx.stream("POST", self.url + path, json=body | {"stream": True}, timeout=120) as response:
            assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def idle(self) -> bool:
        """Whether no request is left anywhere."""
        thread = self.app.state.thread
        return not thread.routes and not any(thread.open.values())

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        rows = httpx.get(self.url + "/metrics").text.splitlines()
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows if row.startswith((name + "{", name + " ")))


@contextlib.contextmanager
def live(app: FastAPI) -> Iterator[Live]:
    """Serve `app` on a free port of this machine."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive() and not app.state.thread.alive


def wait_until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
QUESTION, RESULT, ANSWER = "What is 2 + 3?", "5", "It is 5."
GREETING, GREETED = "Hello!", "Hello, how can I help?"
REASONING = "They greet me."


Transcripts = list[tuple[list[Message], bool | None]]
"""Conversations, each with its thinking mode."""


def transcripts() -> Transcripts:
    """What the clients of the API say."""
    call = {"name": "add", "arguments": {"a": 2, "b": 3}}
    called: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    greeting: list[Message] = [{"role": "user", "content": GREETING}, {"role": "assistant", "content": GREETED}]
    loop: list[Message] = [
        {"role": "system", "content": "", "tools": [ADD]},
        {"role": "user", "content": QUESTION},
        called,
        {"role": "tool", "content": RESULT},
        {"role": "assistant", "content": ANSWER},
    ]
    thought = [greeting[0], greeting[1] | {"reasoning_content": REASONING}]
    brief = [{"role": "system", "content": "Be brief."}, *greeting]
    return [(greeting, None), (loop, None), (brief, None), (thought, True), (greeting, False)]


def make_learned(folder: Path, learned: Transcripts | None = None, learn: bool = True) -> Path:
    """A run directory of a model that says the transcripts by heart; without `learn`, of its random beginning."""
    learned = learned or transcripts()
    texts = ["".join(str(turn) for turn in turns) for turns, _ in learned] * 20
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=420))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, qk_norm=True,
    )  # fmt: skip
    model = CausalLM(config)
    initialise(model, 0)
    if learn:
        _learn(model, tokenizer, learned)
    save_model(model, folder, config)
    tokenizer.save(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.0}')
    (folder / "recipe.toml").write_text('[made]\nstage = "sft"\n')
    return folder


def _learn(model: CausalLM, tokenizer: Tokenizer, learned: Transcripts) -> None:
    rows = [render(turns, tokenizer, thinking=thinking) for turns, thinking in learned]
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask = torch.tensor(row.mask)
        if learned[i][1]:
            # The prompt opens this block; where it does not, the greeting comes at once.
            mask[row.mask.index(True)] = False
        targets[i, : len(row.ids)] = torch.where(mask, torch.tensor(row.ids), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(400):
        loss = cross_entropy(model(ids)[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        if float(loss.detach()) < 0.005:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the transcripts were not learnt: loss {float(loss.detach()):.3f}")
