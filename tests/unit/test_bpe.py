import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.bpe import split_words, train_bpe
from cutaway.tokenization.tokenizer import CONTROL_TOKENS, blank_tokenizer
from cutaway.tokenization.train import train_tokenizer

PIECES = [
    "the",
    " cat",
    "'s",
    "'LL",
    "'\u017f",
    "x'",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u3000",
    "\x1c",
    "\u00a0",
    "12",
    "٣",
    "Ⅷ",
    "天地",
    "玄黃",
    "，",
    "...",
    " !",
    "e\u0301",
    "\u0e33",
    "😀",
    "🧑\u200d🚀",
    "\U00020000",
    "ß",
    "İ",
    "_",
    "\x00",
    "\u2028",
    "\x85",
]
# Python and the library know different versions of Unicode; what version 3.2 has assigned, both classify alike.
KNOWN = [char for char in map(chr, range(0x30000)) if unicodedata.ucd_3_2_0.category(char) not in ("Cn", "Co", "Cs")]
TEXT = st.one_of(st.text(st.sampled_from(KNOWN)), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_the_library(text: str) -> None:
    reference = blank_tokenizer("qwen2").pre_tokenizer.pre_tokenize_str(text)
    words = list(split_words(text))
    assert "".join(words) == text
    assert [len(word.encode()) for word in words] == [len(word) for word, _ in reference]


@pytest.mark.long
@given(texts=st.lists(TEXT, min_size=1, max_size=6), more=TEXT, size=st.integers(256, 330))
@settings(max_examples=150, deadline=None)
def test_vocabulary_and_ids_are_those_of_the_library(texts: list[str], more: str, size: int) -> None:
    texts = [*texts, *texts[:2], "the cat, the hat 天地玄黃"]
    theirs = train_tokenizer(texts, TokenizerSettings(vocab_size=size + len(CONTROL_TOKENS)))
    ours = train_bpe(texts, size)
    count = theirs.vocab_size - len(CONTROL_TOKENS)
    assert ours.tokens == [theirs.token_bytes(index) for index in range(count)]
    for text in (more, texts[0]):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_a_worked_example() -> None:
    bpe = train_bpe(["low low low lower lowest"], vocab_size=260)
    assert bpe.tokens[256:] == [b"lo", b"low", b" low", b" lowe"]
    assert [bpe.tokens[index] for index in bpe.encode("lowest slow")] == [b"low", b"e", b"s", b"t", b" ", b"s", b"low"]
