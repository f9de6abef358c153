"""Small checkpoints like published ones: Transformers and llama.cpp read them as we do."""

import random
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from llama_cpp import Ask, ask, needs_llama_cpp  # noqa: E402

from cutaway.errors import UserError  # noqa: E402
from cutaway.exporting.gguf_file import write_gguf  # noqa: E402
from cutaway.model.weights import load_model  # noqa: E402
from cutaway.tokenization.foreign import render_foreign  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402
from foreign_models import NAMES, make_foreign  # noqa: E402

pytestmark = pytest.mark.slow

CHAT = [
    {"role": "system", "content": "be a star"},
    {"role": "user", "content": "hello world 123 é"},
    {"role": "assistant", "content": "  the sun,\n\n你好!"},
]
GGUF_NAMES = [name for name in NAMES if name != "tinyllama"]


def strings() -> list[str]:
    draw = random.Random(0)
    alphabet = ["hello", " ", "  ", "\n", "12", "3", "é", "你好", "！", "👍🏽", "don't", "<", "x_y", "\U00020000", "\t"]
    return ["".join(draw.choice(alphabet) for _ in range(draw.randint(0, 12))) for _ in range(1000)]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_agrees(name: str, tmp_path: Path) -> None:
    folder = make_foreign(name, tmp_path / name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    ids = torch.randint(ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(load_model(folder)(ids), expected, atol=1e-4, rtol=0)
    for chat in (CHAT, CHAT[1:], CHAT[:2]):
        prompt = chat[-1]["role"] == "user"
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        expected_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert render_foreign(chat, ours, add_generation_prompt=prompt).ids == expected_ids
    for text in strings():
        assert ours.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@needs_llama_cpp
@torch.no_grad()
def test_llama_cpp_agrees(tmp_path: Path) -> None:
    texts = strings()
    folders = [make_foreign(name, tmp_path / name) for name in GGUF_NAMES]
    files = [str(write_gguf(folder, folder / "model.gguf", "f32")) for folder in folders]
    prompts = [Tokenizer.load(folder).encode(" hello the sun 12 你好" * 4) for folder in folders]
    asked = [Ask(file, texts=texts, prompts=[ids], logits=True) for file, ids in zip(files, prompts, strict=True)]
    for folder, ids, answer in zip(folders, prompts, ask(*asked), strict=True):
        ours = Tokenizer.load(folder)
        assert [ours.encode(text) for text in texts] == answer["tokens"], folder.name
        expected = load_model(folder)(torch.tensor([ids]))[0]
        torch.testing.assert_close(torch.tensor(answer["logits"][0]), expected, atol=1e-3, rtol=0)


def test_a_sentencepiece_vocabulary_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = make_foreign("tinyllama", tmp_path / "tinyllama")
    with pytest.raises(UserError, match="needed is a byte-level BPE"):
        write_gguf(folder, tmp_path / "model.gguf", "f32")
