"""llama.cpp computes from our GGUF files what we compute: logits, greedy text, adapters, and what rounding costs."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

gguf = pytest.importorskip("gguf")

from llama_cpp import Ask, ask, needs_llama_cpp  # noqa: E402

from cutaway.errors import UserError  # noqa: E402
from cutaway.exporting.gguf_file import write_gguf, write_gguf_lora  # noqa: E402
from cutaway.generation.generate import generate  # noqa: E402
from cutaway.generation.sampling import Sampling  # noqa: E402
from cutaway.model.lora import LoRAConfig, adapt, adapter_state  # noqa: E402
from cutaway.model.transformer import CausalLM  # noqa: E402
from cutaway.model.weights import load_model, save_adapter, save_model  # noqa: E402
from cutaway.recipe.base import TokenizerSettings  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402
from cutaway.tokenization.train import train_tokenizer  # noqa: E402
from model_helpers import ROPE_SCALINGS, random_model, tiny_config  # noqa: E402

pytestmark = [pytest.mark.slow, needs_llama_cpp]

MOE = {"qk_norm": True, "num_experts": 4, "moe_intermediate_size": 32}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tie_word_embeddings": False, "head_dim": 24, "rope_theta": 500000.0},
    "llama-llama3": {"rope_scaling": ROPE_SCALINGS["llama3"]},
    "llama-linear": {"rope_scaling": ROPE_SCALINGS["linear"]},
    "llama-yarn": {"rope_scaling": ROPE_SCALINGS["yarn"] | {"attention_factor": 1.3, "beta_fast": 16}},
    "qwen3": {"qk_norm": True, "head_dim": 24, "rope_theta": 1e6, "rms_norm_eps": 1e-3},
    "qwen3-untied": {"qk_norm": True, "tie_word_embeddings": False},
    "qwen3-yarn": {"qk_norm": True, "rope_scaling": ROPE_SCALINGS["yarn"]},
    "moe": MOE,
    "moe-top1": MOE | {"num_experts_per_tok": 1, "tie_word_embeddings": False},
}
LENGTH, WRITTEN = 100, 24


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(["hello world, 你好世界。"] * 3, TokenizerSettings(vocab_size=300))


def make_run(path: Path, **changes: Any) -> CausalLM:
    ours = tokenizer()
    # A vocabulary larger than the tokenizer's, as published models have it.
    config = tiny_config(**{"vocab_size": ours.vocab_size + 3, "hidden_size": 64, "intermediate_size": 96} | changes)
    model = random_model(config)
    save_model(model, path, config)
    ours.save(path)
    return model


def prompt(seed: int, length: int = LENGTH) -> list[int]:
    drawn = torch.randint(tokenizer().vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    ids: list[int] = drawn.tolist()
    return ids


def greedy(model: CausalLM, ids: list[int]) -> list[int]:
    done = generate(model, [ids], tokenizer(), sampling=Sampling(temperature=0.0), max_new_tokens=WRITTEN)
    written: list[int] = list(done[0].ids)
    return written


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CausalLM, dict[str, Any]]]:
    """Every case in one process of llama.cpp."""
    models, asked = [], []
    for case, changes in CASES.items():
        run = tmp_path_factory.mktemp(case)
        models.append(make_run(run, **changes))
        model = str(write_gguf(run, run / "model.gguf", "f32"))
        asked.append(Ask(model, prompts=[prompt(0), prompt(1, 7)], logits=True, nats=True, greedy=WRITTEN))
    return dict(zip(CASES, zip(models, ask(*asked), strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_and_greedy_text(case: str, answers: dict[str, tuple[CausalLM, dict[str, Any]]]) -> None:
    model, answer = answers[case]
    for number, ids in enumerate([prompt(0), prompt(1, 7)]):
        expected = model(torch.tensor([ids]))[0]
        assert expected.std() > 0.5, "logits too flat to prove anything"
        torch.testing.assert_close(torch.tensor(answer["logits"][number]), expected, atol=1e-3, rtol=0)
        nats = -torch.log_softmax(expected[:-1], -1).gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(answer["nats"][number]), nats, atol=1e-3, rtol=0)
        theirs, ours = answer["greedy"][number], greedy(model, ids)
        # Ours ends with the token that ends, llama.cpp's iterator before it.
        assert theirs == ours[: len(theirs)] and len(theirs) >= len(ours) - 1 and len(ours) > 1


@torch.no_grad()
def test_every_format_is_as_near_as_it_should_be(tmp_path: Path) -> None:
    """With every expert chosen: where rounding changes the choice, no bound on the logits holds."""
    formats = {"f32": 1e-4, "f16": 0.1, "bf16": 0.8, "q8_0": 3.0, "q4_0": 30.0}
    for case, changes in {"llama": {}, "moe": MOE | {"num_experts_per_tok": 4}}.items():
        model = make_run(tmp_path / case, **changes)
        files = [str(write_gguf(tmp_path / case, tmp_path / case / f"{name}.gguf", name)) for name in formats]
        expected = model(torch.tensor([prompt(0)]))[0]
        answers = ask(*[Ask(file, prompts=[prompt(0)], logits=True) for file in files])
        errors = [float((torch.tensor(answer["logits"][0]) - expected).abs().max()) for answer in answers]
        assert all(error < limit for error, limit in zip(errors, formats.values(), strict=True)), errors
        assert errors == sorted(errors), errors


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("llama", LoRAConfig(rank=4, alpha=16.0)),
        ("llama", LoRAConfig(rank=4, alpha=8.0, rslora=True, targets=("q_proj", "k_proj"))),
        ("qwen3", LoRAConfig(rank=2, alpha=8.0)),
        ("moe", LoRAConfig(rank=2, alpha=8.0, targets=("q_proj", "v_proj", "o_proj"))),
    ],
)
@torch.no_grad()
def test_an_adapter_over_its_base(case: str, config: LoRAConfig, tmp_path: Path) -> None:
    model = make_run(tmp_path / "base", **CASES[case])
    base = str(write_gguf(tmp_path / "base", tmp_path / "base.gguf", "f32"))
    plain = model(torch.tensor([prompt(0)]))[0]
    adapt(model, config)
    generator = torch.Generator().manual_seed(0)
    for tensor in adapter_state(model).values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    lora = write_gguf_lora(tmp_path / "adapter", tmp_path / "adapter.gguf", "f32")
    (answer,) = ask(Ask(base, prompts=[prompt(0)], logits=True, lora=str(lora)))
    expected = load_model(tmp_path / "adapter")(torch.tensor([prompt(0)]))[0]
    assert (expected - plain).abs().max() > 0.5, "an adapter that changes nothing proves nothing"
    torch.testing.assert_close(torch.tensor(answer["logits"][0]), expected, atol=1e-3, rtol=0)


def test_the_metadata_is_complete(tmp_path: Path) -> None:
    make_run(tmp_path / "run", **CASES["moe"])
    reader = gguf.GGUFReader(write_gguf(tmp_path / "run", tmp_path / "run.gguf", "q8_0"))
    keys = {key for key in reader.fields if not key.startswith("GGUF.")}
    network = {
        *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base"),
        *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    }
    vocabulary = {
        *("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "eot_token_id"),
        *("padding_token_id", "add_bos_token"),
    }
    general = {"architecture", "type", "name", "file_type", "quantization_version"}
    expected = {f"qwen3moe.{key}" for key in network} | {f"tokenizer.ggml.{key}" for key in vocabulary}
    assert keys == expected | {f"general.{key}" for key in general} | {"tokenizer.chat_template"}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert "output.weight" not in types, "tied: the embedding is the head"


REFUSED = [
    (MOE | {"norm_topk_prob": False}, "always normalises"),
    ({"qk_norm": True, "rope_scaling": ROPE_SCALINGS["llama3"]}, "for a Llama only"),
    ({"rope_scaling": ROPE_SCALINGS["yarn"] | {"truncate": False}}, "truncate = true only"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message):
        write_gguf(tmp_path / "run", tmp_path / "run.gguf", "f32")
    assert not (tmp_path / "run.gguf").exists()
