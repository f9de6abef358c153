"""The made-up town as files, and a tokenizer for it: made once."""

from pathlib import Path

import pytest
from run_helpers import Town

from cutaway.playground.small_set import make_small_set
from cutaway.recipe import TokenizerSettings
from cutaway.tokenization.train import train_tokenizer


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    root: Path = tmp_path_factory.mktemp("town")
    small = make_small_set(documents=120, conversations=120)
    pretrain, sft = small.save(root / "data")
    tokenizer = train_tokenizer([record["text"] for record in small.documents], TokenizerSettings(vocab_size=400))
    tokenizer.save(root / "tokenizer")
    return Town(root, pretrain, sft, root / "tokenizer")
