"""Answering records with verifiers: tools are really called, and calls and last answer are judged."""

from collections.abc import Sequence
from typing import Any

import pytest

from cutaway.evals import verified
from cutaway.evals.verified import MAX_ROUNDS, answer_records, judge_record, shares
from cutaway.generation.engine import Completion, Engine
from cutaway.playground.world import make_world
from cutaway.playground.world_tools import make_toolbox
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.chat import render
from cutaway.tokenization.train import train_tokenizer

TOKENIZER = train_tokenizer(["How much is the lamp today? The lamp costs 12 coins today."], TokenizerSettings(300))
TOOLBOX = make_toolbox(make_world(0), 5)
CALL = {"name": "price", "arguments": {"item": "lamp"}}
PRICE = TOOLBOX.call("price", {"item": "lamp"}).text


def record(**more: Any) -> dict[str, Any]:
    return {
        "skill": "tool",
        "conversations": [{"role": "user", "content": "How much is the lamp today?"}],
        "verifier": {"name": "numeric", "args": {"expected": int(PRICE)}},
        "calls": [CALL],
        **more,
    }


def engine(max_length: int = 10_000) -> Engine:
    """One that writes nothing itself: `script` does."""
    made = Engine.__new__(Engine)
    made.tokenizer, made.max_length = TOKENIZER, max_length
    return made


def script(monkeypatch: pytest.MonkeyPatch, *rounds: dict[str, Any]) -> list[int]:
    """Let every prompt of round i be answered with the i-th turn, the last one for ever; gives the sizes of rounds."""
    sizes: list[int] = []

    def write(engine: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[Completion]:
        turn = {"role": "assistant", "content": "", **rounds[min(len(sizes), len(rounds) - 1)]}
        sizes.append(len(prompts))
        whole = render([{"role": "user", "content": ""}, turn], TOKENIZER)
        ids = [token for token, own in zip(whole.ids, whole.mask, strict=True) if own]
        return [Completion(0, list(prompt), ids, [0.0] * len(ids), "", "stop") for prompt in prompts]

    monkeypatch.setattr(verified, "generate", write)
    return sizes


def test_a_tool_is_called_and_its_result_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = script(monkeypatch, {"tool_calls": [CALL]}, {"content": f"The lamp costs {PRICE} coins today."})
    wrong = record(verifier={"name": "numeric", "args": {"expected": -1}})
    answered = answer_records(engine(), [record(), wrong], lambda one: TOOLBOX)
    assert [one.ok for one in answered] == [True, False]
    assert [turn["role"] for turn in answered[0].said] == ["assistant", "tool", "assistant"]
    assert answered[0].said[1]["content"] == PRICE
    assert sizes == [2, 2]


def test_without_a_toolbox_a_call_is_the_answer_and_endless_calls_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert script(monkeypatch, {"tool_calls": [CALL]}) == []
    assert not answer_records(engine(), [record()])[0].ok
    sizes = script(monkeypatch, {"tool_calls": [CALL]})
    assert not answer_records(engine(), [record()], lambda one: TOOLBOX)[0].ok
    assert len(sizes) == MAX_ROUNDS


def test_a_dialogue_that_grows_too_long_ends_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = script(monkeypatch, {"tool_calls": [CALL]}, {"content": f"The lamp costs {PRICE} coins today."})
    (one,) = answer_records(engine(max_length=40), [record()], lambda one: TOOLBOX)
    assert sizes == [1] and one.said[-1]["role"] == "tool" and not one.ok


def test_the_right_answer_by_other_calls_is_not_right() -> None:
    said = [{"role": "assistant", "content": f"It costs {PRICE} coins."}]
    assert not judge_record(record(), said).ok
    assert judge_record({"verifier": record()["verifier"]}, said).ok
    table = shares([judge_record(record(), said), judge_record(record(skill="other", calls=[]), said)], "skill")
    assert (table["tool",].share, table["other",].share) == (0.0, 1.0)
