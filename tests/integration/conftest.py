"""The made-up town as files, and a tokenizer for it: made once."""

import json
from pathlib import Path

import pytest
from run_helpers import Town

from cutaway.playground.write import PlaygroundSettings, write_training_sets
from cutaway.recipe import TokenizerSettings
from cutaway.tokenization.train import train_tokenizer


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    root: Path = tmp_path_factory.mktemp("town")
    write_training_sets(root / "data", PlaygroundSettings(size_mb=0.06))
    pretrain, sft = root / "data" / "pretrain.jsonl", root / "data" / "sft.jsonl"
    texts = [json.loads(line)["text"] for line in pretrain.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=400))
    tokenizer.save(root / "tokenizer")
    return Town(root, pretrain, sft, root / "tokenizer")
