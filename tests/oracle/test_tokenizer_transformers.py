"""Transformers reads the saved directory and gives the same ids, the same text of a chat, the same decoding."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from cutaway.recipe.base import TokenizerSettings  # noqa: E402
from cutaway.tokenization.chat import normalise, parse, render, render_text  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402
from cutaway.tokenization.train import train_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

TEXTS = [
    "",
    " ",
    "\n\n\n",
    "\r\n\t x",
    "Hello, world! It's 12345 o'clock; they'LL  go.",
    "天地玄黃，宇宙洪荒。",
    "e\u0301 ﬁ Å ㎏",
    "👨‍👩‍👧‍👦🏳️‍🌈",
    "\U00020000\U0002a6d6",
    "\x00\x1c",
    "def f(x):\n    return x  # ok\n",
    "１２３ ٣٤ Ⅷ",
    "אבג عربي ไทย हिन्दी",
]
TOOL = {"type": "function", "function": {"name": "查 <b>'x'</b>", "parameters": {"type": "object", "properties": {}}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好!"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "one\n\ntwo",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [1.5, None, "é"]}}},
                {"name": "add", "arguments": {}},
            ],
        },
        {"role": "tool", "content": "5"},
        {"role": "tool", "content": "0"},
        {"role": "assistant", "content": "5", "reasoning_content": ""},
        {"role": "user", "content": "thanks"},
    ],
]


@cache
def tokenizer(pattern: str) -> Tokenizer:
    chats = [render_text(chat, tools=[TOOL]) for chat in CHATS]
    return train_tokenizer([*TEXTS, *chats] * 3, TokenizerSettings(vocab_size=500, pattern=pattern))


@pytest.mark.parametrize("pattern", ["qwen2", "llama3"])
def test_transformers_gives_the_same_ids(pattern: str, tmp_path: Path) -> None:
    ours = tokenizer(pattern)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == ours.im_end_id and theirs.pad_token_id == ours.eos_id
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
    marked = [ours.im_start_id, ours.control_ids["<think>"], *ours.encode("a "), ours.im_end_id]
    assert theirs.decode(marked, skip_special_tokens=True) == ours.decode(marked, skip_control=True) == "<think>a "


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("prompt", [False, True])
def test_chat_template_is_our_rendering(
    chat: list[dict[str, Any]], tools: list[Any] | None, thinking: bool | None, prompt: bool, tmp_path: Path
) -> None:
    ours = tokenizer("qwen2")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    options = {} if thinking is None else {"enable_thinking": thinking}
    text = theirs.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=prompt, **options)
    assert text == render_text(chat, add_generation_prompt=prompt, thinking=thinking, tools=tools)
    ids = render(chat, ours, add_generation_prompt=prompt, thinking=thinking, tools=tools).ids
    assert theirs(text)["input_ids"] == ids
    if not prompt:
        assert parse(ids, ours) == normalise(chat, thinking=thinking, tools=tools)


def test_the_other_major_version_agrees(tmp_path: Path, python457: str) -> None:
    ours = tokenizer("llama3")
    ours.save(tmp_path)
    script = (
        "import json, sys, transformers\n"
        "t = transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "texts, chats = json.load(sys.stdin)\n"
        "print(json.dumps([len(t), t.eos_token_id, [t(x)['input_ids'] for x in texts],"
        " [t.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]]))"
    )
    done = subprocess.run(
        [python457, "-c", script, str(tmp_path)],
        input=json.dumps([TEXTS, CHATS]),
        capture_output=True,
        text=True,
        check=True,
    )
    length, eos, ids, chats = json.loads(done.stdout.splitlines()[-1])
    assert (length, eos) == (ours.vocab_size, ours.im_end_id)
    assert ids == [ours.encode(text) for text in TEXTS]
    assert chats == [render_text(chat, add_generation_prompt=True) for chat in CHATS]
