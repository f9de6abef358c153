"""Transformers computes from our checkpoints what we compute, and we from its: logits, gradients, packed and cached."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from network_cases import CASES, LENGTH, ROPES, SHAPE, our_model, some_ids, their_settings  # noqa: E402

from cutaway.generation.kv_cache import KVCache  # noqa: E402
from cutaway.model.config import ModelConfig  # noqa: E402
from cutaway.model.moe import Routing  # noqa: E402
from cutaway.model.rope import inverse_frequencies, stretch  # noqa: E402
from cutaway.model.weights import load_model, save_model  # noqa: E402
from cutaway.objectives.router import load_balancing_loss  # noqa: E402

pytestmark = pytest.mark.slow

AGREE = {"atol": 1e-4, "rtol": 0.0}
INDEX = "model.safetensors.index.json"


def their_model(case: str) -> Any:
    kind, settings = their_settings(case)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def read_by_transformers(directory: Path) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    return model.eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_transformers_reads_ours(case: str, tmp_path: Path) -> None:
    ours = our_model(case)
    save_model(ours, tmp_path, ours.config)
    ids = some_ids()
    expected = ours(ids)
    assert expected.std() > 0.5, "logits too flat to prove anything"
    torch.testing.assert_close(read_by_transformers(tmp_path)(ids).logits, expected, **AGREE)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_we_read_transformers(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert not [record for record in caplog.records if record.name == "cutaway"]
    ids = some_ids()
    expected = theirs(ids).logits
    assert expected.std() > 0.5, "logits too flat to prove anything"
    torch.testing.assert_close(ours(ids), expected, **AGREE)
    # And once more around: what we write of theirs they read back.
    save_model(ours, tmp_path / "again", ours.config)
    torch.testing.assert_close(read_by_transformers(tmp_path / "again")(ids).logits, expected, **AGREE)


@pytest.mark.parametrize("case", [f"llama-{name}" for name in ROPES])
@torch.no_grad()
def test_scaling_matters_in_these_cases(case: str) -> None:
    """A wrong reading of the scaling would show: without it the logits differ by far more than the tolerance."""
    scaled, plain = our_model(case), our_model(case, rope_scaling={})
    assert (scaled(some_ids()) - plain(some_ids())).abs().max() > 0.1
    if "linear" not in case:
        ratio = scaled.model.rotary.inv_freq / plain.model.rotary.inv_freq
        slowest = 1 / scaled.config.rope_scaling["factor"]
        kept, slowed = ratio > 0.9999, ratio < slowest * 1.0001
        assert kept.any() and slowed.any() and (~kept & ~slowed).any(), ratio


@pytest.mark.parametrize(
    "text", ["linear:4", "llama3:8:32", "llama3:3:64", "yarn:4", "yarn:16:32", "yarn:1", "yarn:1.5:64"]
)
@pytest.mark.parametrize("theta", [100.0, 10000.0, 1e6])
def test_rates_and_attention_factor_of_a_stretch(text: str, theta: float) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = stretch(ModelConfig(**SHAPE | {"rope_theta": theta, "head_dim": 64}), text, 32)
    theirs = transformers.LlamaConfig(**config.to_dict())
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](theirs, torch.device("cpu"))
    rates, attention = inverse_frequencies(config)
    torch.testing.assert_close(rates, expected, rtol=1e-6, atol=0)
    assert attention == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("case", ["llama-llama3", "qwen3-yarn", "qwen3-untied"])
@torch.no_grad()
def test_positions_far_beyond_the_context(case: str, tmp_path: Path) -> None:
    ours = our_model(case)
    save_model(ours, tmp_path, ours.config)
    positions = torch.arange(1000, 1000 + LENGTH).expand(2, -1)
    expected = read_by_transformers(tmp_path)(some_ids(), position_ids=positions).logits
    torch.testing.assert_close(ours(some_ids(), positions=positions), expected, **AGREE)


@pytest.mark.parametrize("case", ["llama-untied", "qwen3-plain", "moe-plain"])
@torch.no_grad()
def test_shards_written_by_transformers(case: str, tmp_path: Path) -> None:
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(set(json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())) > 1
    torch.testing.assert_close(load_model(tmp_path)(some_ids()), theirs(some_ids()).logits, **AGREE)


@pytest.mark.parametrize("case", ["llama-plain", "qwen3-untied", "moe-untied"])
@torch.no_grad()
def test_bf16_written_by_transformers(case: str, tmp_path: Path) -> None:
    their_model(case).to(torch.bfloat16).save_pretrained(tmp_path)
    # Read anew in fp32: `to` has rounded the rotary table too, which no checkpoint holds.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = load_model(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    torch.testing.assert_close(ours(some_ids()), theirs(some_ids()).logits, **AGREE)


@pytest.mark.parametrize("case", ["llama-plain", "llama-llama3", "qwen3-yarn", "qwen3-untied", "moe-plain"])
@torch.no_grad()
def test_a_packed_row_is_its_documents_one_by_one(case: str, tmp_path: Path) -> None:
    ours = our_model(case)
    save_model(ours, tmp_path, ours.config)
    theirs = read_by_transformers(tmp_path)
    lengths = [1, 50, 7, 40, 22]
    ids = some_ids(rows=1, length=sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    documents = torch.repeat_interleave(torch.arange(5, dtype=torch.int32), torch.tensor(lengths)).unsqueeze(0)
    packed = ours(ids, positions=positions, documents=documents)
    start = 0
    for n in lengths:
        alone = theirs(ids[:, start : start + n]).logits
        torch.testing.assert_close(packed[:, start : start + n], alone, **AGREE)
        start += n


@pytest.mark.parametrize("case", ["llama-plain", "llama-llama3", "qwen3-yarn", "qwen3-wide-heads", "moe-yarn"])
@torch.no_grad()
def test_with_a_key_value_cache_on_both_sides(case: str, tmp_path: Path) -> None:
    ours = our_model(case)
    save_model(ours, tmp_path, ours.config)
    theirs = read_by_transformers(tmp_path)
    ids = some_ids()
    cache, past = KVCache(ours.config, slots=2, max_length=LENGTH), None
    start = 0
    for n in (40, 1, 1, 30, 1, LENGTH - 73):
        positions = torch.arange(start, start + n).expand(2, n)
        cache.begin(0, positions, start + n)
        found = ours(ids[:, start : start + n], positions=positions, cache=cache)
        answer = theirs(ids[:, start : start + n], past_key_values=past, use_cache=True)
        past, start = answer.past_key_values, start + n
        torch.testing.assert_close(found, answer.logits, **AGREE)
    assert start == LENGTH


@pytest.mark.parametrize("case", ["llama-untied", "qwen3-yarn", "moe-plain", "moe-raw-weights"])
def test_loss_and_gradients(case: str, tmp_path: Path) -> None:
    ours = our_model(case)
    save_model(ours, tmp_path, ours.config)
    theirs = read_by_transformers(tmp_path)
    ids = some_ids(length=64)
    labels = ids.clone()
    labels[:, :10] = -100
    expected = theirs(ids, labels=labels).loss
    expected.backward()
    trained = (labels[:, 1:] != -100).sum()
    loss = ours(ids[:, :-1], targets=labels[:, 1:]).sum() / trained
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    gradients = their_gradients(theirs)
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        largest = gradients[name].abs().max()
        assert largest > 0, name
        torch.testing.assert_close(parameter.grad / largest, gradients[name] / largest, **AGREE, msg=name)


def their_gradients(theirs: Any) -> dict[str, torch.Tensor]:
    """By our names: in memory, version 5 keeps two projections of all experts in one tensor."""
    gradients = {}
    for name, parameter in theirs.named_parameters():
        if name.endswith("gate_up_proj"):
            halves = parameter.grad.chunk(2, dim=1)
            gradients |= {
                name.replace("gate_up", part): half for part, half in zip(("gate", "up"), halves, strict=True)
            }
        else:
            gradients[name] = parameter.grad
    return gradients


@pytest.mark.parametrize(("top_k", "masked"), [(1, False), (2, False), (2, True), (5, True)])
def test_load_balancing_loss(top_k: int, masked: bool) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits = torch.randn(3, 2 * 20, 8, generator=torch.Generator().manual_seed(0))
    found = [logits.clone().requires_grad_() for _ in range(2)]
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = not masked
    expected = load_balancing_loss_func(tuple(found[0]), 8, top_k, mask.long() if masked else None)
    loss = load_balancing_loss(found[1].flatten(0, 1), top_k, mask.flatten().repeat(3))
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(found[1].grad, found[0].grad, atol=1e-7, rtol=0)
    alone = load_balancing_loss_func((logits[1],), 8, top_k, mask.long() if masked else None)
    torch.testing.assert_close(load_balancing_loss(logits, top_k, mask.flatten())[1], alone, atol=1e-6, rtol=0)


def test_router_logits_and_loss_of_a_whole_model(tmp_path: Path) -> None:
    ours = our_model("moe-plain", num_hidden_layers=1, router_aux_loss_coef=0.3)
    save_model(ours, tmp_path, ours.config)
    theirs = read_by_transformers(tmp_path)
    ids, routing = some_ids(length=64), Routing()
    answer = theirs(ids, labels=ids, output_router_logits=True)
    plain = ours(ids[:, :-1], targets=ids[:, 1:]).mean()
    ours(ids, routing=routing)
    balance, _ = routing.losses(2)
    torch.testing.assert_close(torch.stack(routing.logits), torch.stack(answer.router_logits), **AGREE)
    torch.testing.assert_close(balance, answer.aux_loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain + 0.3 * balance, answer.loss, atol=1e-5, rtol=0)


def test_shapes_are_what_transformers_counts() -> None:
    for case in CASES:
        assert our_model(case).num_parameters() == their_model(case).num_parameters()
    assert SHAPE["head_dim"] * SHAPE["num_attention_heads"] == SHAPE["hidden_size"]
