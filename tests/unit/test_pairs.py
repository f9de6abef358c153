"""Pairs of answers: what is trained of them, how they are packed, and what is left out and counted."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.data.pairs import Answer, Pair, PairSource, at_the_end, mismatched, pair_batches, read_pairs, split_pairs
from cutaway.errors import UserError
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat and said hello"] * 20, TokenizerSettings(vocab_size=300))


def record(question: str, chosen: str, rejected: str, before: list[dict[str, str]] | None = None) -> dict[str, Any]:
    asked = [*(before or []), {"role": "user", "content": question}]
    answers = ([*asked, {"role": "assistant", "content": text}] for text in (chosen, rejected))
    return dict(zip(("chosen", "rejected"), answers, strict=True))


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in records), encoding="utf-8")
    return path


def test_only_the_last_answers_are_trained(tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the same in both"}]
    file = write(tmp_path / "pairs.jsonl", [record("and the cat", "sat", "said hello", before)])
    (pair,) = read_pairs([file], tokenizer, 256)
    for answer, text in ((pair.chosen, "sat"), (pair.rejected, "said hello")):
        assert tokenizer.decode(answer.ids[answer.trained > 0].tolist()) == text + "<|im_end|>"
        assert answer.ids[-1] == tokenizer.im_end_id and answer.trained[-1]


def test_what_is_left_out_is_counted(tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        record("a", "sat", "said"),
        record("b", "sat", "sat"),
        record("c", "", "sat"),
        record("d", "sat " * 500, "sat"),
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    with caplog.at_level(logging.WARNING, "cutaway"):
        assert len(read_pairs([file], tokenizer, 128)) == 1
    said = "\n".join(message.getMessage() for message in caplog.records)
    for part in ("the same (the first", "empty (the first", "longer than a row of 128", ":2)", ":3)", ":4)"):
        assert part in said, part
    with pytest.raises(UserError, match="no usable pair is left"):
        read_pairs([write(tmp_path / "one.jsonl", rows[1:2])], tokenizer, 128)


def test_a_bad_record_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [record("a", "sat", "said"), {"chosen": [{"role": "user", "content": "x"}], "rejected": []}]
    with pytest.raises(UserError, match=r"pairs.jsonl:2: 'chosen' must end with an assistant turn"):
        read_pairs([write(tmp_path / "pairs.jsonl", rows)], tokenizer, 128)


def random_pairs(sizes: list[tuple[int, int, int]]) -> list[Pair]:
    """Pairs of given lengths; the ids of a pair are its own, so that a mistaken one shows."""
    pairs = []
    for number, (prompt, chosen, rejected) in enumerate(sizes):
        answers = []
        for side, length in enumerate((chosen, rejected)):
            ids = np.arange(prompt + length) + 1000 * (2 * number + side)
            answers.append(Answer(ids, (np.arange(prompt + length) >= prompt).astype(np.uint8)))
        pairs.append(Pair(answers[0], answers[1], number))
    return pairs


SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20)


@given(SIZES, st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_every_answer_stands_whole_and_by_itself(sizes: list[tuple[int, int, int]], rows: int) -> None:
    pairs = random_pairs(sizes)
    seen: list[int] = []
    for batch in pair_batches(pairs, range(len(pairs)), rows, 32):
        assert batch.input_ids.shape == (rows, 32)
        for place, member in enumerate(batch.index.tolist()):
            seen.append(member)
            for side, answer in enumerate((pairs[member].chosen, pairs[member].rejected)):
                mine = batch.answer == 2 * place + side
                assert batch.targets[mine].tolist() == answer.ids[answer.trained > 0].tolist()
                row = int(mine.nonzero()[0, 0])
                document = batch.documents[row][mine[row]]
                assert (document == document[0]).all()
                inside = batch.documents[row] == document[0]
                assert batch.input_ids[row][inside].tolist() == answer.ids[:-1].tolist()
                assert batch.positions[row][inside].tolist() == list(range(len(answer.ids) - 1))
        assert ((batch.targets != -100) == (batch.answer >= 0)).all()
    assert sorted(seen) == list(range(len(pairs)))


@given(SIZES, st.integers(1, 3), st.integers(0, 9), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_the_stream_depends_on_the_seed_alone_and_resumes_anywhere(
    sizes: list[tuple[int, int, int]], rows: int, seed: int, steps: int
) -> None:
    pairs = random_pairs(sizes)

    def source(world: int = 1, rank: int = 0, size: int = rows) -> PairSource:
        return PairSource(pairs, rows=size, seq=32, seed=seed, rank=rank, world=world)

    whole = source()
    batches = [next(whole) for _ in range(steps + 2)]
    resumed = source()
    for _ in range(steps):
        next(resumed)
    again = source()
    again.load_state_dict(resumed.state_dict())
    for expected in batches[steps:]:
        got = next(again)
        assert torch.equal(got.input_ids, expected.input_ids) and torch.equal(got.index, expected.index)
    # Two ranks together take what one takes in two micro-batches.
    first, second = source(2, 0), source(2, 1)
    both = [next(first).index.tolist(), next(second).index.tolist()]
    assert both == [batch.index.tolist() for batch in batches[:2]]


def test_a_state_of_other_data_is_refused() -> None:
    source = PairSource(random_pairs([(1, 2, 3)]), rows=1, seq=32)
    other = PairSource(random_pairs([(1, 2, 3), (1, 1, 1)]), rows=1, seq=32)
    with pytest.raises(UserError, match="cannot resume"):
        other.load_state_dict(source.state_dict())


@given(SIZES, st.integers(0, 200), st.integers(0, 3), st.integers(1, 4))
@settings(deadline=None)
def test_a_prompt_is_on_one_side_only(sizes: list[tuple[int, int, int]], tokens: int, seed: int, prompts: int) -> None:
    pairs = [Pair(pair.chosen, pair.rejected, number % prompts) for number, pair in enumerate(random_pairs(sizes))]
    train, heldout = split_pairs(pairs, tokens, seed)
    assert sorted(train + heldout) == list(range(len(pairs))) and train
    assert not {pairs[i].prompt for i in train} & {pairs[i].prompt for i in heldout}
    assert (tokens > 0) or not heldout


@given(SIZES)
@settings(deadline=None, max_examples=50)
def test_a_score_is_read_behind_the_last_token(sizes: list[tuple[int, int, int]]) -> None:
    pairs = random_pairs(sizes)
    for batch in pair_batches([at_the_end(pair) for pair in pairs], range(len(pairs)), 2, 32):
        for place, member in enumerate(batch.index.tolist()):
            for side, answer in enumerate((pairs[member].chosen, pairs[member].rejected)):
                mine = batch.answer == 2 * place + side
                assert mine.sum() == 1
                assert batch.input_ids[mine].item() == answer.ids[-1]
                row, column = mine.nonzero()[0].tolist()
                document = batch.documents[row] == batch.documents[row, column]
                assert batch.input_ids[row][document].tolist() == answer.ids.tolist()


@given(SIZES, st.integers(1, 4), st.integers(10, 40))
@settings(deadline=None, max_examples=50)
def test_mismatched_answers_are_those_to_another_prompt(
    sizes: list[tuple[int, int, int]], prompts: int, seq: int
) -> None:
    numbered = [Pair(pair.chosen, pair.rejected, number % prompts) for number, pair in enumerate(random_pairs(sizes))]
    pairs = [pair for pair in numbered if pair.size <= seq]
    several = len({pair.prompt for pair in pairs}) > 1
    for number, (pair, other) in enumerate(zip(pairs, mismatched(pairs, seq), strict=True)):
        assert other.size <= seq and other.prompt == pair.prompt
        begin = int(pair.chosen.trained.argmax())
        for answer in (other.chosen, other.rejected):
            assert answer.ids[:begin].tolist() == pair.chosen.ids[:begin].tolist()
            assert answer.trained[begin:].all() and not answer.trained[:begin].any() and len(answer.ids) > begin
            if several:  # the ids of a pair are its own, from 2000 times its number on
                whose = numbered[int(answer.ids[begin]) // 2000]
                assert whose.prompt != pair.prompt, number
