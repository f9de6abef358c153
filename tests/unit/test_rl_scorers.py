"""A reward model and a judge as rewards."""

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from generation_helpers import tiny_model, tiny_tokenizer

from cutaway.errors import UserError
from cutaway.model.reward import RewardModel
from cutaway.rl.scorers import Judge, RewardScorer
from cutaway.tokenization.chat import render

TOKENIZER = tiny_tokenizer()


def dialogue(answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": answer}]


def test_a_reward_model_is_read_at_the_end_of_the_turn() -> None:
    model = RewardModel.on(tiny_model())
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    dialogues = [dialogue(text) for text in ("sat", "sat on the mat", "", "the dog " * 400)]
    scores = RewardScorer(model, TOKENIZER)(dialogues)
    for one, score in zip(dialogues[:3], scores, strict=False):
        ids = render(one, TOKENIZER).ids
        end = len(ids) - 1 - ids[::-1].index(TOKENIZER.im_end_id)
        with torch.no_grad():
            assert score == pytest.approx(float(model(torch.tensor([ids[: end + 1]]))[0, -1]), abs=1e-5)
    assert math.isnan(scores[3])  # longer than the model's context
    assert len(set(scores[:3])) == 3


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"].splitlines()[-1]
        if said == "broken":
            self.send_error(500)
            return
        answer = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_and_its_failures(url: str) -> None:
    """The stand-in repeats the answer that it should judge."""
    found = Judge(url, "judge")([dialogue(text) for text in ("7", "Score: 10", "12", "broken", "none")])
    assert found[:2] == [0.7, 1.0]
    assert all(math.isnan(value) for value in found[2:])
    with pytest.raises(UserError, match="http"):
        Judge("localhost", "judge")
