"""A copy of a model laid out for generation: the same mathematics as `model/transformer.py` in fewer, faster steps.

What differs from the modules, each measured (docs/engine.md): the projections that read the same vector are one
matrix; on a CPU, matrices lie in the blocked order that its kernels want, instead of being reordered at every use;
keys and values of a token are written in one step; the two channels that turn together are neighbours, so a rotation
is one complex product; the gain of a norm is multiplied into the matrix behind it; the residual stream is fp32 whatever
the dtype of the matrices, and so on a CPU are keys and values.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from cutaway.generation.kv_cache import KVCache
from cutaway.model.attention import attend
from cutaway.model.lora import LoRALinear
from cutaway.model.mlp import SwiGLU
from cutaway.model.moe import MixtureOfExperts
from cutaway.model.transformer import CausalLM, DecoderLayer

Linear = Callable[[Tensor], Tensor]

BLOCKED_FOR = {torch.float32: 16, torch.bfloat16: 16}
"""Rows of input that a matrix's blocked order is chosen for, by dtype; any number may come. The order for 16 serves one
row as well as its own (`benchmarks/generation.py --orders`)."""
MOST_BLOCKED, STEP = 64, 8
"""Rows up to which fp32 takes the blocked order, filled up to a multiple of `STEP`: oneDNN keeps memory for every
matrix and number of rows that ever came, and a server's grew with it. Beyond, the plain order is about as fast."""


class PackedDecoder:
    """A model's weights as they were when it was made, or at the last `load`; `forward` and `logits` read them."""

    def __init__(self, model: CausalLM, dtype: torch.dtype) -> None:
        self.config, self.dtype = model.config, dtype
        self._pack(model)

    @property
    def recordable(self) -> bool:
        """Whether its steps can be recorded on a GPU. Experts ask the device how many tokens each of them has, which no
        recording can."""
        return self.embedding.is_cuda and not self.config.num_experts

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in: fp32 on a CPU, whose attention kernel is slower in bf16 for the few queries
        of a decoding step, although it then reads half as many bytes (`benchmarks/RESULTS.md`)."""
        return torch.float32 if self.embedding.device.type == "cpu" else self.dtype

    @torch.no_grad()
    def load(self, model: CausalLM) -> None:
        """Take over the present weights; on a GPU where the earlier ones lie, since recorded steps look there."""
        if not self.recordable:
            self._pack(model)
            return
        for old, new in zip(self.tensors(), PackedDecoder(model, self.dtype).tensors(), strict=True):
            old.copy_(new)

    @torch.no_grad()
    def _pack(self, model: CausalLM) -> None:
        self.rotary = model.model.rotary
        self.embedding = model.model.embed_tokens.weight.detach().to(self.dtype, copy=True)
        self.layers = [_Layer(layer, self.dtype) for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        self.head = pack_linear(model.head_weight, dtype=self.dtype, gain=model.model.norm.weight)
        self.floor = torch.tensor(math.sqrt(self.config.hidden_size * self.config.rms_norm_eps)).to(
            self.embedding.device
        )

    def tensors(self) -> list[Tensor]:
        """Every weight, where all matrices lie in their plain order."""
        return [self.embedding, *_matrices(self.head), *(one for layer in self.layers for one in layer.tensors())]

    def forward(
        self, ids: Int[Tensor, "batch seq"], positions: Int[Tensor, "batch seq"], cache: KVCache
    ) -> Float[Tensor, "batch seq hidden"]:
        """Normalised hidden states after new tokens whose pass was announced with `cache.begin`."""
        h = F.embedding(ids, self.embedding).float()
        turn = torch.complex(*self.rotary(positions)).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            h += layer.attention(unit_norm(h, self.floor).to(self.dtype), turn, cache, index)
            h += layer.mlp(unit_norm(h, self.floor).to(self.dtype))
        return unit_norm(h, self.floor).to(self.dtype)

    def logits(self, hidden: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch vocab"]:
        """Of the next token."""
        return self.head(hidden)


def side_by_side(weight: Float[Tensor, "rows *inputs"], head_dim: int) -> Float[Tensor, "rows *inputs"]:
    r"""The rows of every head in the order $0, \tfrac d2, 1, \tfrac d2 + 1, \ldots$ with $d$ = `head_dim`.

    The two channels that turn together (`model/rope.py` `rotate`) are then neighbours, and one complex number. Queries
    and keys both in that order have the products that they had before.
    """
    return weight.view(-1, 2, head_dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def unit_norm(x: Float[Tensor, "... size"], floor: Float[Tensor, ""]) -> Float[Tensor, "... size"]:
    r"""RMSNorm without its gain, divided by $\sqrt d$, in three operations:
    $x / \sqrt{\lVert x \rVert^2 + d\,\epsilon}$ with `floor` $= \sqrt{d\,\epsilon}$."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


class _Layer:
    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        gain = layer.input_layernorm.weight
        q, k = (side_by_side(_weight(turned), self.head_dim) for turned in (attention.q_proj, attention.k_proj))
        self.qkv = pack_linear(q, k, _weight(attention.v_proj), dtype=dtype, gain=gain)
        self.out = pack_linear(_weight(attention.o_proj), dtype=dtype)
        self.qk_gain: Tensor | None = None
        if attention.qk_norm:
            q, k = (side_by_side(norm.weight.detach(), self.head_dim) for norm in (attention.q_norm, attention.k_norm))
            gains = torch.cat((q.expand(self.heads, -1), k.expand(self.kv_heads, -1)))
            self.qk_gain = gains.float() * math.sqrt(self.head_dim)
            self.floor = torch.tensor(math.sqrt(self.head_dim * attention.q_norm.eps)).to(self.qk_gain.device)
        gain = layer.post_attention_layernorm.weight
        mlp = layer.mlp
        self.mlp = _swiglu(mlp, gain, dtype) if isinstance(mlp, SwiGLU) else _experts(mlp, gain, dtype)

    def tensors(self) -> list[Tensor]:
        """Every weight, where all matrices lie in their plain order."""
        gains = [] if self.qk_gain is None else [self.qk_gain]
        return [*_matrices(self.qkv), *_matrices(self.out), *_matrices(self.mlp), *gains]

    def attention(
        self,
        x: Float[Tensor, "batch seq hidden"],
        turn: Complex[Tensor, "batch seq 1 half"],
        cache: KVCache,
        index: int,
    ) -> Float[Tensor, "batch seq hidden"]:
        qkv = self.qkv(x).view(*x.shape[:2], -1, self.head_dim).float()
        turning = qkv[:, :, : self.heads + self.kv_heads]
        if self.qk_gain is not None:
            turning.copy_(unit_norm(turning, self.floor) * self.qk_gain)
        # A pair of channels is a complex number, and a turn a product.
        torch.view_as_complex(turning.view(*turning.shape[:-1], -1, 2)).mul_(turn)
        # k and v lie side by side, as the cache has them.
        cache.write(index, qkv[:, :, self.heads :])
        k, v = cache.read(index)
        out = attend(qkv[:, :, : self.heads].transpose(1, 2).to(k.dtype), k, v, cache.mask)
        return self.out(out.transpose(1, 2).flatten(2).to(x.dtype))


@dataclass(frozen=True)
class Plain:
    """A matrix in its ordinary order: $x \\mapsto x\\,W^\\top$."""

    weight: Float[Tensor, "outputs inputs"]

    def __call__(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return F.linear(x, self.weight)


@dataclass(frozen=True)
class GatedMLP:
    """SwiGLU with gate and up side by side in one matrix."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def _matrices(linear: Linear) -> list[Tensor]:
    if isinstance(linear, GatedMLP):
        return [*_matrices(linear.gate_up), *_matrices(linear.down)]
    return [linear.weight] if isinstance(linear, Plain) else []


def pack_linear(
    *weights: Float[Tensor, "_ inputs"], dtype: torch.dtype, gain: Float[Tensor, " inputs"] | None = None
) -> Linear:
    """$x \\mapsto x\\,W^\\top$ with the weights stacked, copied, and laid out for the device.

    With `gain` the input is a `unit_norm`, whose missing factors, gain and $\\sqrt d$, are multiplied into the columns.
    """
    weight = torch.cat([part.detach() for part in weights])
    if gain is not None:
        weight = weight.float() * (gain.detach().float() * math.sqrt(len(gain)))
    weight = weight.to(dtype)
    packed = _blocked(weight)
    if packed is None:
        # `cat` of one tensor copies it, so the caller's weights stay untouched and unwatched.
        return Plain(weight)
    blocked, product = packed, cast(Callable[..., Tensor], torch.ops.mkldnn._linear_pointwise)

    if dtype != torch.float32:
        return lambda x: product(x, blocked, None, "none", [], "")

    def few_or_many(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > MOST_BLOCKED:
            return F.linear(x, weight)
        if rows == 1 or rows % STEP == 0:
            return product(x, blocked, None, "none", [], "")
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % STEP))
        return product(filled, blocked, None, "none", [], "")[:rows].view(*x.shape[:-1], -1)

    return few_or_many


def _blocked(weight: Float[Tensor, "outputs inputs"]) -> Tensor | None:
    """The weight in oneDNN's blocked order; None where that is not known to help: only on a CPU, in bf16 and fp32.

    These operators are what `torch.compile` itself emits for frozen weights, but no public interface. Where a torch
    lacks them, or they give another product, the ordinary one serves.
    """
    if weight.device.type != "cpu" or weight.dtype not in BLOCKED_FOR:
        return None
    try:
        blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCKED_FOR[weight.dtype])
        x = torch.ones(1, weight.shape[1], dtype=weight.dtype)
        product = torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return blocked if torch.allclose(product, F.linear(x, weight), atol=1e-2, rtol=1e-2) else None


def _swiglu(mlp: SwiGLU, gain: Tensor, dtype: torch.dtype) -> Linear:
    gate_up = pack_linear(_weight(mlp.gate_proj), _weight(mlp.up_proj), dtype=dtype, gain=gain)
    return GatedMLP(gate_up, pack_linear(_weight(mlp.down_proj), dtype=dtype))


def _experts(mlp: MixtureOfExperts, gain: Tensor, dtype: torch.dtype) -> Linear:
    copied = copy.deepcopy(mlp).requires_grad_(False).eval()
    # The router stays as it is: rounding its weights would flip choices.
    copied.experts.to(dtype)
    factor = gain.detach() * math.sqrt(len(gain))

    def forward(x: Tensor) -> Tensor:
        mixed: Tensor = copied((x * factor).to(dtype))
        return mixed

    return forward


def _weight(linear: nn.Module) -> Tensor:
    """The matrix that a linear layer multiplies by, a trained adapter counted in."""
    weight = linear.merged().weight if isinstance(linear, LoRALinear) else linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
