"""Prompts word for word, scores against the definition, every bad item on one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from cutaway.data.formats import BadCounter
from cutaway.errors import UserError
from cutaway.evals.multiple_choice import (
    Asking,
    Item,
    Scored,
    calibration,
    chance_level,
    constant_level,
    language_of,
    pick_examples,
    read_items,
    score,
    splits_after_newline,
    summarise,
)
from cutaway.tokenization.tokenizer import Tokenizer
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer

CAT = Item("Where did the cat sit?", ("on the mat", "on a dog", "nowhere"), 0, "cats")
DOG = Item("Where is the dog?", ("here", "there"), 1, "dogs")
SKY = Item("今天天氣如何？", ("很好", "下雨"), 0, "天")
RECORD: dict[str, Any] = {"question": "q", "choices": ["a", "b"], "answer": 0}


def test_prompts_are_those_of_lm_eval() -> None:
    letter, text, bare = (Asking(style) for style in ("letter", "text", "bare"))
    assert letter.ask(CAT) == "Where did the cat sit?\nA. on the mat\nB. on a dog\nC. nowhere\nAnswer:"
    assert text.ask(CAT) == "Question: Where did the cat sit?\nAnswer:"
    assert bare.ask(CAT) == "Where did the cat sit?"
    assert letter.answers(CAT) == ["A", "B", "C"] and text.answers(CAT) == list(CAT.choices)
    assert Asking("letter", "zh-Hant").ask(SKY) == "今天天氣如何？\nA. 很好\nB. 下雨\n答案："
    assert Asking("text", "zh-Hans").ask(SKY) == "问题：今天天氣如何？\n答案："


def test_language_of_a_set() -> None:
    assert language_of([CAT, DOG]) == "en"
    assert language_of([Item("这是什么东西 in English words?", ("a", "b"), 0)]) == "zh-Hans"
    assert language_of([Item("這是什麼東西？", ("a", "b"), 0)]) == "zh-Hant"


def test_worked_examples_are_of_the_set_and_subject_and_never_the_item() -> None:
    pool = [
        Item("1", ("a", "b"), 0, "cats", "other"),
        Item("2", ("a", "b"), 0, "dogs", "mine"),
        CAT,
        Item("3", ("a", "b"), 0, "cats", "mine"),
        Item("4", ("a", "b"), 0, "cats", "mine"),
    ]
    assert [one.question for one in pick_examples(CAT, pool, 1, "mine")] == ["3"]
    assert [one.question for one in pick_examples(CAT, pool, 5, "mine")] == ["3", "4"]
    assert [one.question for one in pick_examples(SKY, pool, 2, "mine")] == ["2", CAT.question]


@torch.no_grad()
def by_hand(context: str, continuation: str) -> float:
    """The log-likelihood by one forward pass over the whole text."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    before, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    logprobs = model(torch.tensor([whole]))[0].double().log_softmax(-1)
    return sum(float(logprobs[i - 1, whole[i]]) for i in range(len(before), len(whole)))


@pytest.mark.parametrize("style", ["letter", "text", "bare"])
@pytest.mark.parametrize("shots", [0, 2])
def test_scores_equal_the_definition(style: Any, shots: int) -> None:
    items, asking = [CAT, DOG, CAT, SKY], Asking(style, "en", shots)
    pool = [Item(f"Example {i} of the cat?", ("the mat", "a dog"), i % 2, "") for i in range(3)]
    scored = score(tiny_model(), tiny_tokenizer(), "set", items, asking, pool)
    header = "".join(f"{asking.ask(one)} {asking.answers(one)[one.answer]}\n\n" for one in pool[:shots])
    for item, sums in zip(items, scored.sums, strict=True):
        expected = [by_hand(header + asking.ask(item), f" {answer}") for answer in asking.answers(item)]
        assert sums.tolist() == pytest.approx(expected, abs=1e-4)


def test_chat_asks_in_the_chat_format() -> None:
    scored = score(tiny_model(), tiny_tokenizer(), "set", [DOG], Asking("letter", "en", 1, chat=True), [CAT])
    tokenizer = tiny_tokenizer()
    ids: list[int] = []
    for role, text in (("user", CAT), ("assistant", "A"), ("user", DOG)):
        content = Asking("letter").ask(text) if isinstance(text, Item) else text
        ids += [tokenizer.im_start_id, *tokenizer.encode(f"{role}\n")] if role == "assistant" else [
            tokenizer.im_start_id
        ]  # fmt: skip
        ids += tokenizer.encode(content) if role == "assistant" else tokenizer.encode(f"{role}\n{content}")
        ids += [tokenizer.im_end_id, *tokenizer.encode("\n")]
    ids += [tokenizer.im_start_id, *tokenizer.encode("assistant\n")]
    with torch.no_grad():
        logprobs = tiny_model()(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
    expected = [float(logprobs[tokenizer.encode(letter)[0]]) for letter in "AB"]
    assert scored.sums[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_header_encoded_once_gives_the_same_ids() -> None:
    tokenizer = tiny_tokenizer()
    assert splits_after_newline(tokenizer)
    header, body = "問題：天氣？\n答案： 很好\n\n", "Question: the cat"
    assert tokenizer.encode(header) + tokenizer.encode(body) == tokenizer.encode(header + body)
    other = Library(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not splits_after_newline(Tokenizer(other.to_str()))


def scored_as(sums: list[list[float]], items: list[Item], style: Any = "text") -> Scored:
    lengths = {
        "sum": [np.ones(len(one)) for one in sums],
        "token": [np.arange(1.0, len(one) + 1) for one in sums],
        "character": [np.array([float(len(c)) for c in item.choices]) for item in items],
        "byte": [np.array([float(len(c.encode())) for c in item.choices]) for item in items],
    }
    return Scored("set", items, Asking(style), [np.array(one, dtype=np.float64) for one in sums], lengths)


def test_each_rule_divides_by_its_own_length() -> None:
    item = Item("q", ("a", "bb", "天"), 0)
    scored = scored_as([[-2.0, -2.2, -3.0]], [item])
    assert scored.correct("sum") == [True] and scored.correct("character") == [False]
    assert [one.argmax() for one in scored.normalised("byte")] == [2]
    figures = summarise(scored)["scores"]
    assert figures["sum"]["margin"] == pytest.approx(-2.0 + 2.6)
    assert figures["byte"]["margin"] == pytest.approx(-2.0 + (1.1 + 1.0) / 2)


def test_the_first_of_equal_choices_counts() -> None:
    assert scored_as([[-1.0, -1.0]], [DOG]).correct("sum") == [False]
    assert scored_as([[-1.0, -1.0]], [CAT]).correct("sum") == [True]


def test_words_and_levels() -> None:
    items = [Item(str(i), ("a", "b", "c", "d"), i % 4) for i in range(400)]
    guessing = [list(np.random.default_rng(i).normal(size=4)) for i in range(400)]
    table = summarise(scored_as(guessing, items, "letter"))
    assert table["chance"] == 0.25 == table["constant"] and list(table["scores"]) == ["sum"]
    assert table["scores"]["sum"]["verdict"] == "not distinguishable from guessing"
    assert table["scores"]["sum"]["margin_low"] < 0 < table["scores"]["sum"]["margin_high"]
    # A model that leans to the right answer by a tenth of the noise: accuracy hides it, the margin may show it.
    knowing = [[value + 2 * (k == i % 4) for k, value in enumerate(values)] for i, values in enumerate(guessing)]
    better = summarise(scored_as(knowing, items, "letter"))["scores"]["sum"]
    assert better["verdict"] == "better than guessing" and better["margin_verdict"] == "favours right"
    assert chance_level([CAT, DOG]) == pytest.approx((1 / 3 + 1 / 2) / 2) and constant_level([CAT, DOG, SKY]) == 2 / 3


def test_subjects_have_their_own_rows() -> None:
    items = [Item("1", ("a", "b"), 0, "x"), Item("2", ("a", "b"), 0, "y"), Item("3", ("a", "b"), 1, "y")]
    table = summarise(scored_as([[0, -1], [0, -1], [0, -1]], items))["subjects"]
    assert {name: (one["items"], one["accuracy"]) for name, one in table.items()} == {"x": (1, 1.0), "y": (2, 0.5)}


def test_calibration_by_hand() -> None:
    sure, half = [0.0, -math.log(9)], [0.0, 0.0]  # 0.9 and 0.1; 0.5 and 0.5
    items = [Item(str(i), ("a", "b"), answer) for i, answer in enumerate((0, 1, 0))]
    table = calibration(scored_as([sure, sure, half], items))
    assert table["confidence"] == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    assert table["ece"] == pytest.approx(2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1 - 0.5))
    assert table["brier"] == pytest.approx((0.02 + 1.62 + 0.5) / 3)
    assert [one["items"] for one in table["bins"]] == [1, 2]


MISTAKES = {
    "answer out of range": (RECORD | {"answer": 2}, "'answer' must be an index from 0 to 1, is 2"),
    "negative answer": (RECORD | {"answer": -1}, "'answer' must be an index from 0 to 1, is -1"),
    "answer is a letter": (RECORD | {"answer": "A"}, "'answer' must be an index from 0 to 1, is 'A'"),
    "no choices": ({"question": "q", "answer": 0, "choices": []}, "'choices' must be a list of two or more strings"),
    "choices missing": ({"question": "q", "answer": 0}, "'choices' must be a list of two or more strings"),
    "one choice": (RECORD | {"choices": ["a"]}, "'choices' must be a list of two or more strings"),
    "duplicate choices": (RECORD | {"choices": ["b", "a", "b"]}, "the right choice 'b' stands there twice"),
    "empty choice": (RECORD | {"choices": ["a", " "]}, "a choice is empty"),
    "empty question": (RECORD | {"question": " "}, "'question' is empty"),
    "no question": ({"choices": ["a", "b"], "answer": 0}, "'question' must be a string, is missing"),
    "too many choices": (RECORD | {"choices": [str(i) for i in range(27)]}, "27 choices, must be 2 to 26"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_item_is_one_line_with_its_place(mistake: str, tmp_path: Path) -> None:
    record, reason = MISTAKES[mistake]
    path = write_jsonl(tmp_path / "set.jsonl", [RECORD, record, RECORD | {"question": "r"}])
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert str(caught.value) == f"{path}:2: {reason}"
    assert [item.line for item in read_items(path, skip_bad=1)] == [1, 3]
    path = write_jsonl(path, [RECORD, record, {"question": "no choices"}])  # of either kind, they count together
    with pytest.raises(UserError, match=r"bad record 2, --skip-bad 1 allows no more"):
        read_items(path, skip_bad=1)


def test_wrong_choices_may_stand_twice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "set.jsonl", [RECORD | {"choices": ["a", "b", "b"]}])
    assert [item.choices for item in read_items(path)] == [("a", "b", "b")]


def test_text_outside_the_vocabulary_is_one_line_with_its_place(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "set.jsonl", [RECORD, RECORD | {"question": "naïve 天"}])
    items = read_items(path)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    small = type(model)(model.config.__class__(**{**vars(model.config), "vocab_size": 200}))
    with pytest.raises(UserError, match=r"set\.jsonl:2: token \d+ is outside the model's vocabulary of 200"):
        score(small, tokenizer, "set", items[1:], Asking("bare"))
    words = Library(models.WordLevel({"q": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    words.add_special_tokens(["<unk>"])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    foreign = Tokenizer(words.to_str())
    with pytest.raises(UserError, match=r"set\.jsonl:2: text that the vocabulary has no token for"):
        score(model, foreign, "set", items, Asking("bare"))
    assert score(model, foreign, "set", items, Asking("bare"), bad=BadCounter(1)).items == items[:1]
    with pytest.raises(UserError, match="set: no usable item"):
        score(model, foreign, "set", items[1:], Asking("bare"), bad=BadCounter(1))


def test_without_worked_examples_there_are_no_shots() -> None:
    with pytest.raises(UserError, match="no worked example for it"):
        score(tiny_model(), tiny_tokenizer(), "set", [CAT], Asking("text", "en", 2), [CAT])


def test_a_file_without_items(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(RECORD | {"answer": 9}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="no usable item"):
        read_items(path, skip_bad=5)
