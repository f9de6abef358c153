"""The made-up town as files, and a tokenizer for it: made once."""

import json
from pathlib import Path

import pytest
from run_helpers import Town, blank_model

from cutaway.playground.write import PlaygroundSettings, write_training_sets
from cutaway.recipe.base import TokenizerSettings
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


@pytest.fixture(scope="session")
def blank(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, for stages to start from."""
    return blank_model(town, tmp_path_factory.mktemp("blank"))


@pytest.fixture(scope="session")
def wide(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider one with other weights and strong opinions, for a teacher."""
    return blank_model(town, tmp_path_factory.mktemp("wide"), hidden_size=48, seed=1, sharpness=15)


@pytest.fixture(scope="session")
def pairs(town: Town) -> Path:
    """Questions of the town, each with its answer and with that to another question."""
    lines = town.sft_data.read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line)["conversations"] for line in lines]
    short = [talk for talk in talks if len(talk) == 2 and "reasoning_content" not in talk[1]][:80]
    path = town.root / "pairs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for talk, other in zip(short, [*short[1:], short[0]], strict=True):
            record = {"chosen": talk, "rejected": [talk[0], other[1]]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
