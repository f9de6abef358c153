"""A reward model and a judge as rewards."""

import math
from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.model.reward import RewardModel
from cutaway.rl.scorers import Judge, RewardScorer
from cutaway.tokenization.chat import render
from generation_helpers import tiny_model, tiny_tokenizer
from http_helpers import stand_in

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


def repeat(path: str, body: Any) -> tuple[int, Any]:
    """Say the answer that should be judged."""
    said = body["messages"][-1]["content"].splitlines()[-1]
    return (500, {}) if said == "broken" else (200, {"choices": [{"message": {"content": said}}]})


def test_a_judge_and_its_failures() -> None:
    with stand_in(repeat) as server:
        judge = Judge(server.url + "/v1", "judge")
        found = judge([dialogue(text) for text in ("7", "Score: 10", "12", "broken", "none")])
        same = judge([dialogue(text) for text in ("8/10", "8 out of 10", "**8** / 10.", "Score: 8/10")])
    assert found[:2] == [0.7, 1.0]
    assert all(math.isnan(value) for value in found[2:])
    assert same == [0.8] * 4
    with pytest.raises(UserError, match="http"):
        Judge("localhost", "judge")
