"""llama.cpp cuts text into our ids: 10,000 strings for each pre-tokenizer, control tokens as text and as tokens."""

import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from llama_cpp import Ask, ask, needs_llama_cpp

from cutaway.data.scripts import convert_document, parse_scripts
from cutaway.exporting.gguf_file import write_gguf
from cutaway.model.weights import save_model
from cutaway.playground.language import LANGUAGES
from cutaway.playground.pretraining import documents as town_documents
from cutaway.playground.world import make_world
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import SPECIAL_TOKENS, TAG_TOKENS, Tokenizer
from cutaway.tokenization.train import train_tokenizer
from model_helpers import random_model, tiny_config

pytestmark = [pytest.mark.slow, needs_llama_cpp]

PER_KIND = 1260
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇹🇼", "1️⃣", "😀", "🧑‍🚀", "❤️", "🫠", "#️⃣"]
HARD = [
    *(
        "",
        " ",
        "  ",
        "\n",
        "\r\n",
        " \n ",
        "\t\t x",
        "\x00",
        "\x1c\x1d",
        "\u00a0",
        "\u3000　",
        "\u200b",
        "\ufeff a",
        "\u2028",
    ),
    *("it's IT'S they'LL 'Re 'S", "e\u0301 ﬁ Å ㎏", "１２３ ٣٤ Ⅷ ½", "a1b22c333d4444", "x=10**12", "[PAD1]", "<0x0A>"),
    *(
        "אבג عربي ไทย हिन्दी",
        "\U00020000\U0002a6d6",
        "\U0010ffff",
        "\ue000",
        "ǅ ʰ ー々〆",
        "0" * 40,
        "a" * 300,
        " " * 70,
    ),
]


@cache
def tokenizer(pattern: str) -> Tokenizer:
    """Digits are frequent in its text, so that the Llama-3 pattern gives tokens of several digits."""
    numbers = " ".join(str(number) for number in range(1990, 2030)) + " 100 200 300 1000 3.14 "
    code = Path(__file__).read_text(encoding="utf-8")
    texts = [*prose(), code, *[numbers] * 50, "".join(EMOJI) * 5]
    return train_tokenizer(texts, TokenizerSettings(vocab_size=2000, pattern=pattern))


@cache
def prose() -> tuple[str, ...]:
    documents = list(town_documents(make_world(0), 0, LANGUAGES, size=80_000))
    hant = [convert_document(text, parse_scripts("hant:1"), 0) for text in documents]
    return (*documents, *hant)


def pieces(draw: random.Random, sources: list[str] | tuple[str, ...], longest: int = 80) -> list[str]:
    """Cut anywhere, not between words."""
    found = []
    for _ in range(PER_KIND):
        text = draw.choice(sources)
        start = draw.randrange(len(text))
        found.append(text[start : start + draw.randint(1, longest)])
    return found


def rare(draw: random.Random) -> str:
    """Characters of all planes, assigned in this Python's Unicode; between them spaces and letters."""
    out = ""
    while len(out) < draw.randint(1, 30):
        character = chr(draw.choice([draw.randrange(0x3000), draw.randrange(0x10000), draw.randrange(0x32000)]))
        if unicodedata.category(character) not in ("Cn", "Cs"):
            out += character + draw.choice(["", "", " ", "a", "1", "\n"])
    return out


def random_bytes(draw: random.Random) -> str:
    """Random bytes, with what does not decode left out."""
    return bytes(draw.randrange(256) for _ in range(draw.randint(1, 120))).decode("utf-8", "ignore")


def without_tags(text: str) -> str:
    """These llama.cpp always finds; the next test is about them."""
    for tag in TAG_TOKENS:
        text = text.replace(tag, "")
    return text


def digits(draw: random.Random) -> str:
    marks = [" ", ".", ",", "-", ":", "年", "%", "", "x", "\n"]
    return "".join(str(draw.randrange(10 ** draw.randint(1, 12))) + draw.choice(marks) for _ in range(8))


def typed_markers(draw: random.Random) -> str:
    """Special tokens as a user may type them, whole and broken."""
    parts = [*SPECIAL_TOKENS, "<|", "im_end", "|>", "<|im_end", " ", "\n", "hi", "你好", "<tool>", "</"]
    return "".join(draw.choice(parts) for _ in range(draw.randint(1, 8)))


def tags(draw: random.Random) -> str:
    parts = [*TAG_TOKENS, " ", "\n", "\n\n", "hi", "你好", "<think", "{}", "1234"]
    return "".join(draw.choice(parts) for _ in range(draw.randint(1, 8)))


def ten_thousand() -> list[str]:
    draw = random.Random(0)
    documents = prose()
    half = len(documents) // 2
    code = [without_tags(path.read_text(encoding="utf-8")) for path in sorted(Path(__file__).parent.glob("*.py"))]
    english = [(Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8"), *code]
    strings = pieces(draw, documents[:half]) + pieces(draw, documents[half:]) + pieces(draw, english)
    strings += pieces(draw, code, longest=300)
    for kind in (rare, random_bytes, digits, typed_markers):
        strings += [kind(draw) for _ in range(PER_KIND - 20)]
    strings += ["".join(draw.choice(EMOJI) + draw.choice(["", " ", "a"]) for _ in range(3)) for _ in range(50)] + HARD
    return strings


@pytest.fixture(scope="module", params=["qwen2", "llama3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, str]:
    ours = tokenizer(request.param)
    run = tmp_path_factory.mktemp(request.param)
    config = tiny_config(vocab_size=ours.vocab_size)
    save_model(random_model(config), run, config)
    ours.save(run)
    return ours, str(write_gguf(run, run / "model.gguf", "f16"))


def differences(
    texts: list[str], found: list[list[int]], expected: list[list[int]]
) -> list[tuple[str, list[int], list[int]]]:
    return [case for case in zip(texts, found, expected, strict=True) if case[1] != case[2]][:5]


def test_text_is_text(exported: tuple[Tokenizer, str]) -> None:
    ours, model = exported
    strings = ten_thousand()
    assert len(strings) >= 10_000
    (answer,) = ask(Ask(model, texts=strings))
    assert differences(strings, answer["tokens"], [ours.encode(text) for text in strings]) == []
    assert answer["bos"] is False
    if '"llama3"' in repr(ours.definition["pre_tokenizer"]) or ours.definition["model"]["ignore_merges"]:
        assert len(ours.encode("2024")) < 4, "without tokens of several digits the pre-tokenizers agree on digits"


def test_markers_are_tokens_where_they_should_be(exported: tuple[Tokenizer, str]) -> None:
    """The tags are no special tokens and llama.cpp always finds them, as tokenizer.json does; the special ones it
    finds when told to."""
    ours, model = exported
    draw = random.Random(1)
    tagged = [tags(draw) for _ in range(1000)]
    marked = [typed_markers(draw) + tags(draw) for _ in range(1000)]
    found, told = ask(Ask(model, texts=tagged), Ask(model, texts=marked, special=True))
    assert differences(tagged, found["tokens"], [ours.encode_markup(text) for text in tagged]) == []
    assert differences(marked, told["tokens"], [ours.encode_markup(text) for text in marked]) == []
    assert any(ours.encode(text) != ours.encode_markup(text) for text in tagged)


def test_only_the_ends_end(exported: tuple[Tokenizer, str]) -> None:
    ours, model = exported
    ids = list(range(ours.vocab_size))
    (answer,) = ask(Ask(model, ends=ids))
    assert {index for index, ends in zip(ids, answer["ends"], strict=True) if ends} == {ours.im_end_id, ours.eos_id}
