"""The engine against `transformers.generate`: greedy tokens, and the distribution behind sampled ones."""

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from cutaway.generation.engine import Engine  # noqa: E402
from cutaway.generation.generate import generate  # noqa: E402
from cutaway.generation.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, penalise, scale  # noqa: E402
from cutaway.model.weights import load_model  # noqa: E402
from cutaway.recipe.base import TokenizerSettings  # noqa: E402
from cutaway.tokenization.train import train_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # Wide weights make random models choose clearly.
    "initializer_range": 0.4,
}


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_equals_transformers(kind: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat 今天天氣很好 "] * 50, TokenizerSettings(vocab_size=280))
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=tokenizer.vocab_size, tie_word_embeddings=tied, pad_token_id=0, eos_token_id=None, **SHAPE
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    assert "rope_theta" in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in (1, 17, 5, 40, 5)]
    expected = []
    for prompt in prompts:
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        expected.append((out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float()))
    # Three slots for five requests: rows join and leave while others are under way.
    engine = Engine(load_model(tmp_path), tokenizer, slots=3)
    done = generate(engine, prompts, sampling=Sampling(temperature=0), max_new_tokens=30, stop_ids=())
    for one, (ids, logits) in zip(done, expected, strict=True):
        assert one.ids == ids
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(torch.tensor(one.logprobs), logprobs, atol=2e-5, rtol=0)


def test_the_filters_equal_those_of_transformers() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 400)
    process = transformers.generation.logits_process
    rows = torch.ones(50)
    theirs = process.TemperatureLogitsWarper(0.7)(None, logits)
    ours = scale(logits, 0.7 * rows)
    torch.testing.assert_close(ours, theirs)
    for filter_ours, value, filter_theirs in (
        (keep_top_k, 30, process.TopKLogitsWarper(30)),
        (keep_top_p, 0.8, process.TopPLogitsWarper(0.8)),
        (keep_min_p, 0.05, process.MinPLogitsWarper(0.05)),
    ):
        ours, theirs = filter_ours(ours, torch.full((50,), value)), filter_theirs(None, theirs)
        assert torch.equal(ours.isinf(), theirs.isinf())


def test_the_repetition_penalty_equals_that_of_transformers() -> None:
    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(8, 50), torch.randint(50, (8, 20))
    theirs = transformers.generation.logits_process.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    seen = torch.zeros(8, 50, dtype=torch.bool).scatter(1, ids, True)
    ours = penalise(logits, seen, torch.zeros(8, 50), [Sampling(repetition_penalty=1.7)] * 8)
    torch.testing.assert_close(ours, theirs)
