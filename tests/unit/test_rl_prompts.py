"""Reading prompts and drawing them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.rl.prompts import in_order, informative, read_prompts, uncertainty, weighted
from data_helpers import write_jsonl
from generation_helpers import tiny_tokenizer


def record(text: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"role": "user", "content": text}], "gt": "4", **more}


def test_reading_leaves_out_what_is_too_long_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answered = record("the dog", id="b", level=3)
    answered["conversations"].append({"role": "assistant", "content": "4"})
    path = write_jsonl(tmp_path / "p.jsonl", [record("the cat", id="a"), answered, record("the cat " * 50, id="long")])
    found = read_prompts([str(path)], tiny_tokenizer(), longest=40)
    assert [prompt.id for prompt in found.usable] == ["a", "b"]
    assert found.usable[1].level == "3"
    assert [turn["role"] for turn in found.usable[1].record["conversations"]] == ["user"]
    assert found.too_long == 1
    assert "p.jsonl:3: prompt long has" in caplog.text


def test_a_zero_is_a_value(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [record("3 - 3?", id=0, level=0, subject="sums", gt=0)])
    for judged in (True, False):
        prompt = read_prompts([str(path)], tiny_tokenizer(), longest=40, judged=judged).usable[0]
        assert (prompt.id, prompt.level, prompt.record["gt"]) == ("0", "0", 0)
    nothing = record("x", id="", level="", subject="sums")
    (prompt,) = read_prompts([str(write_jsonl(path, [nothing]))], tiny_tokenizer(), longest=40).usable
    assert (prompt.id, prompt.level) == (f"{path}:1", "sums")
    # Where nothing asks for a verifier, one that is there must still be one that can be used.
    path = write_jsonl(path, [record("x", gt=["a", ""])])
    with pytest.raises(UserError, match="only white space"):
        read_prompts([str(path)], tiny_tokenizer(), longest=40, judged=False)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("x", id="a"), "occurred before"),
        (record("x", gt=None), "neither 'gt' nor 'verifier'"),
        (record("x", verifier={"name": "nobody"}), "no verifier 'nobody'"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [record("one", id="a"), bad])
    with pytest.raises(UserError, match=f"p.jsonl:2: .*{reason}"):
        read_prompts([str(path)], tiny_tokenizer(), longest=40)
    assert len(read_prompts([str(path)], tiny_tokenizer(), longest=40, skip_bad=1).usable) == 1


def test_nothing_usable_is_a_mistake(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [record("the cat " * 50)])
    with pytest.raises(UserError, match="no usable prompt"):
        read_prompts([str(path)], tiny_tokenizer(), longest=40)


def test_the_walk_goes_through_all_prompts_and_can_be_entered_anywhere() -> None:
    walk = in_order(7, 0, 21, seed=3)
    assert [sorted(walk[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert walk[:7] != walk[7:14]
    assert in_order(7, 5, 9, seed=3) == walk[5:14]
    assert in_order(7, 0, 7, seed=4) != walk[:7]


def test_uncertain_prompts_are_drawn_more_often() -> None:
    values = np.array([0.0, 0.5, 1.0, 0.5])
    weights = uncertainty(values)
    assert weights.tolist() == pytest.approx([0.05, 0.55, 0.05, 0.55])
    draws = [weighted(weights, 1, key)[0] for key in range(2000)]
    shares = np.bincount(draws, minlength=4) / 2000
    assert shares == pytest.approx(weights / weights.sum(), abs=0.03)
    drawn = weighted(weights, 3, 11)
    assert len(set(drawn)) == 3 and drawn == weighted(weights, 3, 11)
    with pytest.raises(UserError, match="there are only 4"):
        weighted(weights, 5, 0)


def test_dynamic_sampling_keeps_what_teaches() -> None:
    rewards = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [np.nan, 1, 1], [np.nan, 0, 1], [np.nan] * 3])
    assert informative(rewards) == [False, True, False, False, True, False]
