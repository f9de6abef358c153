"""Bits per byte of files: against the definition a document at a time, labels, tables."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.errors import UserError
from cutaway.evals.text import language_of, score_text, summarise_text
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer

TEXTS = ["the cat sat on the mat " * 9, "你好，今天天氣很好。", "今天天气很好。" * 3, "the dog", "🧑‍🚀"]


@torch.no_grad()
def nats(text: str, row: int) -> float:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
    total = 0.0
    for start in range(0, len(ids) - 1, row):
        piece = ids[start : start + row + 1]
        logprobs = model(torch.tensor([piece[:-1]]))[0].double().log_softmax(-1)
        total -= sum(float(logprobs[i, token]) for i, token in enumerate(piece[1:]))
    return total


@pytest.mark.parametrize("row", [16, 128])
def test_equals_the_definition(row: int, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS])
    scores = score_text(tiny_model(), tiny_tokenizer(), "t", path, "pretrain", row=row)
    assert scores.nats.tolist() == pytest.approx([nats(text, row) for text in TEXTS], rel=1e-4)
    assert scores.bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert scores.languages == ["en", "zh-Hant", "zh-Hans", "en", "other"]
    table = summarise_text(scores)
    assert table["bpb"] == pytest.approx(scores.nats.sum() / math.log(2) / scores.bytes.sum())
    assert table["low"] <= table["bpb"] <= table["high"]
    english = [0, 3]
    expected = scores.nats[english].sum() / math.log(2) / scores.bytes[english].sum()
    assert table["languages"]["en"]["bpb"] == pytest.approx(expected)
    assert table["domains"] == {}


def test_domains_come_from_the_records(tmp_path: Path) -> None:
    records = [{"text": "the cat", "source": "a"}, {"text": "a dog", "source": "b", "domain": "c"}, {"text": "mat"}]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    scores = score_text(tiny_model(), tiny_tokenizer(), "t", path, "pretrain")
    assert scores.domains == ["a", "c", ""]
    assert set(summarise_text(scores)["domains"]) == {"", "a", "c"}


def test_conversations_count_the_assistant_only(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "on the mat"}]
    long = [{"role": "user", "content": "the dog " * 300}, {"role": "assistant", "content": "cat"}]
    path = write_jsonl(tmp_path / "c.jsonl", [{"conversations": turns}, {"conversations": long}])
    scores = score_text(tiny_model(), tiny_tokenizer(), "c", path, "sft", row=64)
    assert scores.bytes.tolist() == [len("on the mat")] and scores.dropped == 1
    assert scores.tokens.tolist() == [len(tiny_tokenizer().encode("on the mat")) + 1]
    assert np.isfinite(scores.nats).all() and summarise_text(scores)["of"] == "the assistant's tokens"


def test_only_the_first_megabytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "the cat sat"} for _ in range(50)])
    scores = score_text(tiny_model(), tiny_tokenizer(), "t", path, "pretrain", megabytes=1e-4)
    assert len(scores.nats) == 10


def test_a_bad_record_and_a_foreign_vocabulary_are_one_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "fine"}, {"text": ""}])
    with pytest.raises(UserError, match=r"t\.jsonl:2: 'text' is empty"):
        score_text(tiny_model(), tiny_tokenizer(), "t", path, "pretrain")
    model = tiny_model()
    small = type(model)(model.config.__class__(**{**vars(model.config), "vocab_size": 200}))
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, the model only 200"):
        score_text(small, tiny_tokenizer(), "t", path, "pretrain")


def test_language_of_a_text() -> None:
    assert language_of("Python 是一种编程语言，很好用") == "zh-Hans"
    assert language_of("きょうは天気がいいですね") == "other"
    assert language_of("See 你好 in the text, which is English otherwise") == "en"
    assert language_of("12345") == "other"
