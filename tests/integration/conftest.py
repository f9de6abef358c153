"""The made-up town as files, and a tokenizer for it: made once."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Town

from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, save_model
from cutaway.playground.write import PlaygroundSettings, write_training_sets
from cutaway.recipe import ModelSettings, TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.derive import derive_model


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
    """A wider one with other weights, for a teacher."""
    return blank_model(town, tmp_path_factory.mktemp("wide"), hidden_size=48, seed=1)


def blank_model(town: Town, folder: Path, hidden_size: int = 32, seed: int = 0, **more: Any) -> Path:
    """Write a tiny model with random weights and the town's tokenizer."""
    tokenizer = Tokenizer.load(town.tokenizer)
    settings = ModelSettings(hidden_size=hidden_size, num_hidden_layers=2, num_attention_heads=2, **more)
    config, _ = derive_model(settings, tokenizer.vocab_size, 128, (tokenizer.im_end_id, tokenizer.eos_id))
    network = CausalLM(config)
    initialise(network, seed)
    tokenizer.save(folder)
    save_model(network, folder, config)
    return folder


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
