"""The network against naive reimplementations, and the properties that packing and caching must keep."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cutaway.model.attention import QUERY_BLOCK, Attention, attend, packed_mask
from cutaway.model.config import ModelConfig
from cutaway.model.mlp import SwiGLU
from cutaway.model.norm import RMSNorm
from cutaway.model.rope import RotaryEmbedding
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.training.derive import derive_model
from model_helpers import pack, random_ids, random_model, tiny_config

lengths_of_documents = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Loops over rows, heads and queries; softmax written out in float64. `allowed` is [batch, query, key]."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = allowed[b, t].nonzero().flatten()
                scores = k[b, h // group, seen].double() @ q[b, h, t].double() / math.sqrt(q.shape[3])
                weights = torch.exp(scores - scores.max())
                out[b, h, t] = weights / weights.sum() @ v[b, h // group, seen].double()
    return out


def same_document(documents: Tensor) -> Tensor:
    length = documents.shape[1]
    return torch.tensor(
        [[[s <= t and bool(row[s] == row[t]) for s in range(length)] for t in range(length)] for row in documents]
    )


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"num_key_value_heads": 4}])
@pytest.mark.parametrize("asked", [[[7], [0]], [[3, 10, 3], [0, 1, 9]]])
@pytest.mark.parametrize("packed", [False, True])
def test_places_are_those_of_the_whole_row(changes: dict[str, Any], asked: list[list[int]], packed: bool) -> None:
    config = tiny_config(**changes)
    model, ids, places = random_model(config), random_ids(config, 2, 11), torch.tensor(asked)
    mask = packed_mask(torch.tensor([[0] * 4 + [1] * 7, [0] * 11], dtype=torch.int32), "sdpa") if packed else None
    positions = torch.arange(11).expand(2, -1)
    with torch.no_grad():
        whole = model.model(ids, positions, mask, None)
        part = model.model(ids, positions, mask, None, places=places)
    torch.testing.assert_close(part, torch.stack([row[at] for row, at in zip(whole, places, strict=True)]))


@pytest.mark.parametrize("kernel", ["sdpa", "blocks", "flex"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_kernel_is_softmax_attention_within_documents(kernel: str, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 11, 8, generator=generator)
    k, v = (torch.randn(2, kv_heads, 11, 8, generator=generator) for _ in range(2))
    # The second row's first document comes again: equal ids further on are the same document.
    documents = torch.tensor([[0] * 4 + [1] * 7, [5] * 3 + [2] * 3 + [5] * 5], dtype=torch.int32)
    out = attend(q, k, v, packed_mask(documents, kernel=kernel))  # type: ignore[arg-type]
    torch.testing.assert_close(out.double(), naive_attention(q, k, v, same_document(documents)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["blocks", "flex"])
@pytest.mark.parametrize("length", [1, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 44])
def test_kernels_agree_across_the_edges_of_their_blocks(kernel: str, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(1, 4, length, 8, generator=generator)
    k, v = (torch.randn(1, 2, length, 8, generator=generator) for _ in range(2))
    documents = torch.randint(0, 4, (1, length), generator=generator).sort()[0]
    expected = attend(q, k, v, packed_mask(documents, kernel="sdpa"))
    out = attend(q, k, v, packed_mask(documents, kernel=kernel))  # type: ignore[arg-type]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kernel", ["blocks", "flex"])
def test_gradients_of_the_kernels_agree(kernel: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and kernel == "flex":
        pytest.skip("flex_attention has no backward on a CPU")
    length = QUERY_BLOCK + 30
    documents = torch.arange(length, device=device).div(50, rounding_mode="floor").unsqueeze(0)

    def gradients(kernel: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(1, heads, length, 16, generator=generator).to(device) for heads in (4, 2, 2)]
        leaves = [tensor.requires_grad_() for tensor in tensors]
        out = attend(leaves[0], leaves[1], leaves[2], packed_mask(documents, kernel=kernel))  # type: ignore[arg-type]
        return list(torch.autograd.grad(out.square().sum(), leaves))

    for found, expected in zip(gradients(kernel), gradients("sdpa"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(lengths=lengths_of_documents, qk_norm=st.booleans(), seed=st.integers(0, 1000))
def test_a_packed_document_is_computed_as_if_alone(lengths: list[int], qk_norm: bool, seed: int) -> None:
    config = tiny_config(qk_norm=qk_norm)
    model = random_model(config, seed)
    positions, documents = pack(lengths)
    ids = random_ids(config, 1, sum(lengths), seed)
    with torch.no_grad():
        packed = model(ids, positions=positions, documents=documents)
        start = 0
        for n in lengths:
            alone = model(ids[:, start : start + n])
            torch.testing.assert_close(packed[:, start : start + n], alone, atol=1e-5, rtol=1e-5)
            start += n


@settings(max_examples=15, deadline=None)
@given(lengths=lengths_of_documents.filter(lambda n: len(n) > 1), seed=st.integers(0, 1000), data=st.data())
def test_no_document_sees_another_nor_the_future(lengths: list[int], seed: int, data: st.DataObject) -> None:
    config = tiny_config()
    model = random_model(config, seed)
    positions, documents = pack(lengths)
    ids = random_ids(config, 1, sum(lengths), seed)
    place = data.draw(st.integers(0, sum(lengths) - 1))
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + 1) % config.vocab_size
    with torch.no_grad():
        before = model(ids, positions=positions, documents=documents)
        after = model(changed, positions=positions, documents=documents)
    index = torch.arange(sum(lengths))
    touched = (documents[0] == documents[0, place]) & (index >= place)
    assert torch.equal(before[0, ~touched], after[0, ~touched])
    assert not torch.equal(before[0, place], after[0, place])


def test_no_gradient_crosses_documents() -> None:
    model = random_model(tiny_config())
    positions, documents = pack([5, 6])
    hidden = model.model.embed_tokens(random_ids(model.config, 1, 11)).detach().requires_grad_()
    cos, sin = model.model.rotary(positions)
    out = model.model.layers[0](hidden, cos, sin, packed_mask(documents), None)
    (gradient,) = torch.autograd.grad(out[0, 5:].square().sum(), hidden)
    assert (gradient[0, :5] == 0).all()
    assert (gradient[0, 5:] != 0).any(-1).all()


@pytest.mark.parametrize("scaling", ["default", "yarn"])
def test_only_distances_between_positions_matter(scaling: str) -> None:
    rope = {} if scaling == "default" else {"rope_type": "yarn", "factor": 2.0}
    model = random_model(tiny_config(rope_scaling=rope))
    ids = random_ids(model.config, 1, 9)
    with torch.no_grad():
        shifted = model(ids, positions=torch.arange(9).unsqueeze(0) + 37)
        torch.testing.assert_close(shifted, model(ids), atol=1e-4, rtol=1e-4)
        spread = model(ids, positions=2 * torch.arange(9).unsqueeze(0))
        assert not torch.allclose(spread, model(ids), atol=1e-2)


def test_grouped_queries_are_repeated_key_heads() -> None:
    grouped = random_model(tiny_config(num_key_value_heads=2))
    full = CausalLM(tiny_config(num_key_value_heads=4))
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = random_ids(grouped.config, 2, 10)
    with torch.no_grad():
        torch.testing.assert_close(full(ids), grouped(ids), atol=1e-5, rtol=1e-5)


def test_whole_layer_against_a_naive_one() -> None:
    """Projections, q and k norm, rotation by complex numbers, attention by loops, all in float64."""
    config = tiny_config(qk_norm=True, head_dim=6)
    layer = random_model(config).model.layers[1].self_attn
    assert isinstance(layer, Attention)
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(3))
    weights = {name: tensor.double() for name, tensor in layer.state_dict().items()}

    def heads(name: str, count: int) -> Tensor:
        return (x.double() @ weights[f"{name}_proj.weight"].T).view(1, 7, count, 6).transpose(1, 2)

    def normed(t: Tensor, gain: Tensor) -> Tensor:
        return t / (t.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * gain

    def turned(t: Tensor) -> Tensor:
        angles = torch.arange(7.0).double()[:, None] * 10000.0 ** -(torch.arange(0, 6, 2).double() / 6)
        spun = torch.complex(t[..., :3], t[..., 3:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((spun.real, spun.imag), -1)

    q = turned(normed(heads("q", 4), weights["q_norm.weight"]))
    k = turned(normed(heads("k", 2), weights["k_norm.weight"]))
    seen = torch.ones(1, 7, 7, dtype=torch.bool).tril()
    naive = naive_attention(q, k, heads("v", 2), seen).transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T
    with torch.no_grad():
        cos, sin = RotaryEmbedding(config)(torch.arange(7).unsqueeze(0))
        torch.testing.assert_close(layer(x, cos, sin, None, None).double(), naive, atol=1e-5, rtol=0)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_rms_norm(scale: float, seed: int) -> None:
    norm = RMSNorm(16, eps=1e-6)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(norm.weight, generator=generator)
    x = scale * torch.randn(3, 16, generator=generator)
    mean = x.double().square().mean(-1, keepdim=True)
    torch.testing.assert_close(
        norm(x).double(), x.double() / (mean + 1e-6).sqrt() * norm.weight.double(), atol=1e-6, rtol=1e-5
    )
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_rms_norm_at_zero_and_of_large_bf16_values() -> None:
    norm = RMSNorm(512, eps=1e-6)
    assert (norm(torch.zeros(2, 512)) == 0).all()
    torch.testing.assert_close(norm(torch.full((1, 512), 1e15, dtype=torch.bfloat16)).float(), torch.ones(1, 512))


def test_swiglu() -> None:
    mlp = SwiGLU(tiny_config())
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    gate, up, down = (p.weight.double() for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    a = x.double() @ gate.T
    naive = (a / (1 + torch.exp(-a)) * (x.double() @ up.T)) @ down.T
    torch.testing.assert_close(mlp(x).double(), naive, atol=1e-6, rtol=1e-5)


class NaiveCache:
    """Concatenates; its mask is rebuilt by hand before every call."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.mask = torch.empty(0)

    def begin(self, new: int) -> None:
        length = new + (self.layers[0][0].shape[2] if self.layers else 0)
        self.mask = torch.ones(length, length, dtype=torch.bool).tril()[length - new :][None, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            k = torch.cat((self.layers[layer][0], k), dim=2)
            v = torch.cat((self.layers[layer][1], v), dim=2)
        self.layers[layer] = k, v
        return k, v


@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=5), qk_norm=st.booleans())
def test_a_cache_gives_what_the_whole_text_gives(pieces: list[int], qk_norm: bool) -> None:
    model = random_model(tiny_config(qk_norm=qk_norm)).double()  # in fp32 the rounding of some drawn cases is 2e-5
    ids = random_ids(model.config, 2, sum(pieces))
    naive, found, start = NaiveCache(), [], 0
    with torch.no_grad():
        for n in pieces:
            naive.begin(n)
            positions = torch.arange(start, start + n).expand(2, n)
            found.append(model(ids[:, start : start + n], positions=positions, cache=naive))
            start += n
        torch.testing.assert_close(torch.cat(found, dim=1), model(ids), atol=1e-5, rtol=1e-5)


def test_a_caches_mask_decides_what_is_seen() -> None:
    model = random_model(tiny_config())
    ids = random_ids(model.config, 1, 6)
    naive = NaiveCache()
    naive.begin(6)
    naive.mask = naive.mask & (torch.arange(6) >= 2)
    naive.mask[..., :2, :2] = torch.eye(2, dtype=torch.bool)
    with torch.no_grad():
        found = model(ids, positions=torch.arange(6).unsqueeze(0), cache=naive)
        torch.testing.assert_close(found[:, 2:], model(ids[:, 2:]), atol=1e-5, rtol=1e-5)


def test_loss_and_logits_go_together() -> None:
    model = random_model(tiny_config(tie_word_embeddings=False))
    ids, targets = random_ids(model.config, 2, 8), random_ids(model.config, 2, 8, seed=1)
    targets[0, :3] = -100
    with torch.no_grad():
        logits = model(ids)
        losses = model(ids, targets=targets)
        with_z = model(ids, targets=targets, z_loss=0.5)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    z = 0.5 * logits.logsumexp(-1).square() * (targets != -100)
    torch.testing.assert_close(with_z, expected + z)


def test_bf16_autocast_stays_close_and_gives_fp32_losses() -> None:
    model = random_model(tiny_config(qk_norm=True))
    ids, targets = random_ids(model.config, 2, 16), random_ids(model.config, 2, 16, seed=1)
    positions, documents = pack([9, 7])
    packed = {"positions": positions.expand(2, -1), "documents": documents.expand(2, -1), "targets": targets}
    with torch.no_grad():
        exact = model(ids, **packed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(ids, **packed)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.mean(), exact.mean(), atol=0.1, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_initialisation(tied: bool, qk_norm: bool) -> None:
    config = tiny_config(
        vocab_size=1000, hidden_size=128, intermediate_size=256, tie_word_embeddings=tied, qk_norm=qk_norm
    )
    first, second, other = CausalLM(config), CausalLM(config), CausalLM(config)
    initialise(first, seed=7)
    torch.randn(3)
    initialise(second, seed=7)
    initialise(other, seed=8)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        if parameter.ndim == 1:
            assert (parameter == 1).all()
            continue
        assert not torch.equal(parameter, other.get_parameter(name))
        std = 0.02 if name.startswith(("model.embed", "lm_head")) else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * config.num_hidden_layers)
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    ids, targets = random_ids(config, 4, 64), random_ids(config, 4, 64, seed=1)
    with torch.no_grad():
        loss = first(ids, targets=targets).mean().item()
    assert loss == pytest.approx(math.log(1000), abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_names_of_the_weights_are_those_of_checkpoints(tied: bool) -> None:
    names = set(CausalLM(tiny_config(num_hidden_layers=1, qk_norm=True, tie_word_embeddings=tied)).state_dict())
    parts = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    parts += [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    expected = {f"model.layers.0.{part}.weight" for part in parts}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"} | (set() if tied else {"lm_head.weight"})
    assert names == expected


def recipe_model(name: str, row_length: int = 512) -> CausalLM:
    config, _ = derive_model(load_recipe(name).model, 6400, row_length, (1, 0))
    with torch.device("meta"):
        return CausalLM(config)


# Worked by hand, a line a matrix, for a vocabulary of 6400 and qk_norm.
NANO = {
    "embedding": 6400 * 256,
    "layers": 4 * (256 * 256 + 2 * 256 * 128 + 256 * 256 + 3 * 256 * 512),
    "norms": 4 * (2 * 256 + 2 * 64) + 256,
}
MINI = {
    "embedding": 6400 * 512,
    "layers": 8 * (512 * 512 + 2 * 512 * 128 + 512 * 512 + 3 * 512 * 1408),
    "norms": 8 * (2 * 512 + 2 * 64) + 512,
}


@pytest.mark.parametrize(
    ("name", "table", "total"), [("nano", NANO, 4_000_512), ("mini", MINI, 25_830_912)], ids=["nano", "mini"]
)
def test_parameters_and_flops_against_the_hand_worked_table(name: str, table: dict[str, int], total: int) -> None:
    model = recipe_model(name)
    config = model.config
    assert model.num_parameters() == sum(table.values()) == total
    assert model.num_parameters(embeddings=False) == total - table["embedding"]
    matrices = 6 * (table["layers"] + table["embedding"])
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert width == {"nano": 4 * 4 * 64, "mini": 8 * 8 * 64}[name]
    assert model.flops_per_token(512) == matrices + 12 * width * 512
    assert model.causal_flops_per_token(512) == matrices + 6 * width * 512


def test_an_untied_embedding_is_a_look_up_and_costs_no_flops() -> None:
    tied, untied = CausalLM(tiny_config()), CausalLM(tiny_config(tie_word_embeddings=False))
    assert untied.num_parameters() == tied.num_parameters() + 61 * 32
    assert untied.num_parameters(embeddings=False) == tied.num_parameters()
    assert untied.flops_per_token(16) == tied.flops_per_token(16)


def test_flops_agree_with_torchs_own_count() -> None:
    """torch's counter sees the matrix products of a forward pass: a third of the count, full square of attention."""
    config = ModelConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=64,
    )
    model = CausalLM(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(random_ids(config, 1, 64), documents=torch.zeros(1, 64, dtype=torch.int32))
    assert counter.get_total_flops() * 3 == 64 * model.flops_per_token(64)
