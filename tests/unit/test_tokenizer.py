import json
import logging
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cutaway.errors import UserError
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization import dump, train
from cutaway.tokenization.tokenizer import CONTROL_TOKENS, SPECIAL_TOKENS, Tokenizer
from cutaway.tokenization.train import sample_documents, train_tokenizer

CORPUS = [
    "The quick brown fox can't jump over 12345 lazy dogs; they're 67890 asleep.\n\nReally!",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。寒來暑往，秋收冬藏。",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。def f(x):\n    return x + 12345\n",
] * 3
MARKED = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*CONTROL_TOKENS, "\n", "<|", "🧑‍🚀", "天地"])))


@cache
def tokenizer(pattern: str = "qwen2", vocab_size: int = 400) -> Tokenizer:
    return train_tokenizer(CORPUS, TokenizerSettings(vocab_size=vocab_size, pattern=pattern))


@pytest.mark.parametrize("pattern", ["qwen2", "llama3"])
@given(parts=MARKED)
@settings(max_examples=150, deadline=None)
def test_every_string_round_trips_and_never_becomes_control(pattern: str, parts: list[str]) -> None:
    text, trained = "".join(parts), tokenizer(pattern)
    ids = trained.encode(text)
    assert not set(ids) & set(trained.control_ids.values())
    assert trained.decode(ids) == text
    assert trained.decode_bytes(ids) == text.encode()
    assert b"".join(trained.token_bytes(i) for i in ids) == text.encode()
    assert trained.encode_batch([text, text]) == [ids, ids]


@given(ids=st.lists(st.integers(0, 399), max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_ids_decode_as_the_library_decodes_them(ids: list[int]) -> None:
    trained = tokenizer()
    assert trained.decode(ids) == trained._full.decode(ids, skip_special_tokens=False)
    assert trained.decode(ids, skip_control=True) == trained._full.decode(ids, skip_special_tokens=True)


def test_vocabulary_is_bytes_then_merges_then_control_tokens() -> None:
    trained = tokenizer()
    assert trained.vocab_size == 400
    assert {trained.token_bytes(i) for i in range(256)} == {bytes([i]) for i in range(256)}
    assert list(trained.control_ids) == list(CONTROL_TOKENS)
    assert list(trained.control_ids.values()) == list(range(400 - len(CONTROL_TOKENS), 400))
    assert trained.special_ids == {trained.control_ids[token] for token in SPECIAL_TOKENS}
    assert all(trained.token_bytes(i) == b"" for i in trained.control_ids.values())
    assert trained.decode([trained.im_start_id, *trained.encode("user"), trained.im_end_id]) == (
        "<|im_start|>user<|im_end|>"
    )
    think = [trained.control_ids["<think>"], trained.im_end_id, trained.eos_id]
    assert trained.decode(think, skip_control=True) == "<think>"
    with pytest.raises(IndexError):
        trained.token_bytes(400)


def test_digits_stand_alone_in_qwen2_and_in_threes_in_llama3() -> None:
    assert len(tokenizer("qwen2").encode("12345")) == 5
    assert len(tokenizer("llama3").encode("12345")) < 5
    assert tokenizer("llama3").definition["model"]["ignore_merges"] is True
    assert tokenizer("qwen2").definition["model"]["ignore_merges"] is False


def test_lone_surrogates_become_replacement_characters() -> None:
    trained = tokenizer()
    assert trained.decode(trained.encode("a\ud83db\U0001f600")) == "a\ufffdb\U0001f600"


def test_saved_directory_loads_the_same(tmp_path: Path) -> None:
    trained = tokenizer()
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == trained.fingerprint != tokenizer("llama3").fingerprint
    assert loaded.encode("天地 fox 123") == trained.encode("天地 fox 123")
    assert loaded.is_native and loaded.control_ids == trained.control_ids
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == trained.chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_foreign_directory_loads(tmp_path: Path) -> None:
    tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    table = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    table["added_tokens"] = [table["added_tokens"][0] | {"content": "</s>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    foreign = Tokenizer.load(tmp_path)
    assert foreign.eos_id == foreign.control_ids["</s>"]
    assert foreign.chat_template is None and not foreign.is_native
    assert foreign.decode(foreign.encode("</s> 天")) == "</s> 天"
    with pytest.raises(UserError, match="im_end"):
        _ = foreign.im_end_id


@pytest.mark.parametrize("content", [None, "", "{}", "[1", '{"model": {"type": "BPE"}}', "\x00"])
def test_missing_or_corrupt_file_is_a_user_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer"):
        Tokenizer.load(tmp_path)


def test_corrupt_config_is_a_user_error(tmp_path: Path) -> None:
    tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="tokenizer_config"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("size", [-1, 0, 264, 1_000_001])
def test_impossible_vocab_size_is_a_user_error(size: int) -> None:
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer(CORPUS, TokenizerSettings(vocab_size=size))


def test_no_text_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([""], TokenizerSettings(vocab_size=300))


def test_too_little_text_gives_fewer_tokens_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    trained = train_tokenizer(["ab ab"], TokenizerSettings(vocab_size=300))
    assert trained.vocab_size < 300
    assert "repeats too little" in caplog.text


def test_training_is_deterministic_and_seed_chooses_the_sample(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"word{chr(97 + i % 7)} {chr(97 + i % 11) * 3} {i}" for i in range(400)]
    one, same, other = (
        train_tokenizer(iter(texts), TokenizerSettings(vocab_size=290, seed=seed), sample_bytes=1000)
        for seed in (0, 0, 1)
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    with caplog.at_level(logging.INFO, "cutaway"):
        train_tokenizer(texts, TokenizerSettings(vocab_size=300), sample_bytes=2000)
    assert "sample" in caplog.text


def test_sample_is_within_its_budget_and_in_order() -> None:
    texts = [f"{i:04d}" for i in range(1000)]
    sample, kept, seen = sample_documents(texts, 400, seed=3)
    assert kept == 400 and seen == 4000 and sample == sorted(sample) and len(set(sample)) == 100
    assert int(sample[-1]) > 900 and int(sample[0]) < 100
    everything, kept, seen = sample_documents(texts, 4000, seed=3)
    assert [piece.decode() for piece in everything] == texts and kept == seen


def test_text_without_spaces_is_cut_for_the_trainer() -> None:
    text = "天地" * 3000 + "=" * 700 + " " * 700 + "end"
    parts = list(train._cut_runs(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 512


def test_dump_shows_split_characters_as_bytes_and_marks_trained_tokens(tmp_path: Path) -> None:
    trained = tokenizer()
    ids = [trained.im_start_id, *trained.encode("a<b>\n犇"), trained.im_end_id]
    mask = [False] * (len(ids) - 1) + [True]
    labels = [dump.token_label(i, trained) for i in ids]
    assert "⟨e7⟩" in "".join(labels) and "↵" in labels and labels[-1] == "<|im_end|>"
    shown = dump.dump_terminal(ids, mask, trained)
    assert any("green" in str(span.style) for span in shown.spans)
    Console(file=(tmp_path / "terminal.txt").open("w", encoding="utf-8")).print(shown)
    page = dump.dump_html([(ids, mask), (ids, None)], trained, tmp_path / "tokens.html").read_text(encoding="utf-8")
    assert "&lt;|im_end|&gt;" in page and "<b>" not in page
    assert page.count('class="t') == len(ids) + 1
