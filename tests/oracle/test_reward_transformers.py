"""A reward model's scores are those that transformers computes from the same directory."""

from pathlib import Path

import pytest
import torch

from cutaway.generation.scoring import Scorer
from cutaway.model.reward import RewardModel
from cutaway.model.weights import describe_model, save_model
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.train import train_tokenizer
from model_helpers import random_model, tiny_config

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SHAPES = {"llama": {"qk_norm": False}, "qwen3": {"qk_norm": True}, "qwen3_moe": {"qk_norm": True, "num_experts": 4}}


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_agree_with_transformers(shape: str, tmp_path: Path) -> None:
    more = {"moe_intermediate_size": 32} if shape == "qwen3_moe" else {}
    model = RewardModel.on(random_model(tiny_config(**SHAPES[shape], **more, eos_token_id=1, pad_token_id=0)))
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    save_model(model, tmp_path, model.config)
    describe_model(model, tmp_path, None)
    _some_tokenizer(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == model.architecture
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(2, 61, (length,), generator=generator).tolist() for length in (1, 7, 30, 12)]
    with torch.no_grad():
        expected = [theirs(torch.tensor([row])).logits.item() for row in rows]
    assert theirs.config.num_labels == 1
    assert Scorer(tmp_path).score_ids(rows) == pytest.approx(expected, abs=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    _some_tokenizer(tmp_path / "again")
    assert Scorer(tmp_path / "again").score_ids(rows) == pytest.approx(expected, abs=1e-4)


def _some_tokenizer(folder: Path) -> None:
    train_tokenizer(["the cat sat on the mat"] * 20, TokenizerSettings(vocab_size=300)).save(folder)
