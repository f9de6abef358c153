"""A copy of a model laid out for generation: the same mathematics as `model/transformer.py` in fewer, faster steps.

What differs from the modules, each measured (docs/engine.md): the projections that read the same vector are one
matrix; on a CPU, matrices lie in the blocked order that its kernels want, instead of being reordered at every use;
keys and values of a token are written in one step; the residual stream is fp32 whatever the dtype of the matrices.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.generation.kv_cache import KVCache
from cutaway.model.attention import attend
from cutaway.model.lora import LoRALinear
from cutaway.model.mlp import SwiGLU
from cutaway.model.moe import MixtureOfExperts
from cutaway.model.transformer import CausalLM, DecoderLayer

Linear = Callable[[Tensor], Tensor]


class PackedDecoder:
    """A model's weights as they were when it was made, or at the last `load`; `forward` and `logits` read them."""

    def __init__(self, model: CausalLM, dtype: torch.dtype) -> None:
        self.config, self.dtype = model.config, dtype
        self.load(model)

    @torch.no_grad()
    def load(self, model: CausalLM) -> None:
        """Take over the present weights."""
        self.rotary = model.model.rotary
        self.embedding = model.model.embed_tokens.weight.detach().to(self.dtype, copy=True)
        self.norm = model.model.norm.weight.detach().float().clone()
        self.layers = [_Layer(layer, self.dtype) for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        self.head = pack_linear(model.head_weight, dtype=self.dtype)

    def forward(
        self, ids: Int[Tensor, "batch seq"], positions: Int[Tensor, "batch seq"], cache: KVCache
    ) -> Float[Tensor, "batch seq hidden"]:
        """Normalised hidden states after new tokens whose pass was announced with `cache.begin`."""
        h = F.embedding(ids, self.embedding).float()
        cos, sin = self.rotary(positions)
        # One cosine and one signed sine a channel, so that turning is two products: x cos + swapped(x) sin.
        cos, sin = cos.transpose(1, 2).repeat(1, 1, 1, 2), sin.transpose(1, 2)
        sin = torch.cat((-sin, sin), dim=-1)
        for index, layer in enumerate(self.layers):
            h += layer.attention(self._normed(h, layer.input_norm), cos, sin, cache, index)
            h += layer.mlp(self._normed(h, layer.post_norm))
        return self._normed(h, self.norm)

    def logits(self, hidden: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch vocab"]:
        """Of the next token."""
        return self.head(hidden)

    def _normed(
        self, h: Float[Tensor, "batch seq hidden"], gain: Float[Tensor, " hidden"]
    ) -> Float[Tensor, "batch seq hidden"]:
        return F.rms_norm(h, gain.shape, gain, self.config.rms_norm_eps).to(self.dtype)


class _Layer:
    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.input_norm = layer.input_layernorm.weight.detach().float().clone()
        self.post_norm = layer.post_attention_layernorm.weight.detach().float().clone()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = pack_linear(*(_weight(projection) for projection in projections), dtype=dtype)
        self.out = pack_linear(_weight(attention.o_proj), dtype=dtype)
        self.qk_gain: Tensor | None = None
        if attention.qk_norm:
            gains = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)]
            self.qk_gain, self.eps = torch.cat(gains).detach().float(), attention.q_norm.eps
        self.mlp: Linear = _swiglu(layer.mlp, dtype) if isinstance(layer.mlp, SwiGLU) else _experts(layer.mlp, dtype)

    def attention(
        self,
        x: Float[Tensor, "batch seq hidden"],
        cos: Float[Tensor, "batch seq 1 head_dim"],
        sin: Float[Tensor, "batch seq 1 head_dim"],
        cache: KVCache,
        index: int,
    ) -> Float[Tensor, "batch seq hidden"]:
        qkv = self.qkv(x).view(*x.shape[:2], -1, self.head_dim)
        turning = qkv[:, :, : self.heads + self.kv_heads].float()
        if self.qk_gain is not None:
            turning = F.rms_norm(turning, (self.head_dim,), None, self.eps) * self.qk_gain
        turned = torch.addcmul(turning * cos, turning.roll(self.head_dim // 2, -1), sin)
        # Written back over q and k; k and v lie side by side, as the cache has them.
        qkv[:, :, : self.heads + self.kv_heads] = turned
        cache.write(index, qkv[:, :, self.heads :])
        k, v = cache.read(index)
        out = attend(qkv[:, :, : self.heads].transpose(1, 2), k, v, cache.mask)
        return self.out(out.transpose(1, 2).flatten(2))


def pack_linear(*weights: Float[Tensor, "_ inputs"], dtype: torch.dtype) -> Linear:
    """$x \\mapsto x\\,W^\\top$ with the weights stacked, copied, and laid out for the device."""
    weight = torch.cat([part.detach().to(dtype) for part in weights])
    packed = _blocked(weight)
    if packed is None:
        # `cat` of one tensor copies it, so the caller's weights stay untouched and unwatched.
        return lambda x: F.linear(x, weight)
    blocked, product = packed, torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, blocked, None, "none", [], "")


def _blocked(weight: Float[Tensor, "outputs inputs"]) -> Tensor | None:
    """The weight in oneDNN's blocked order; None where that is not known to help: only bf16 on a CPU.

    These operators are what `torch.compile` itself emits for frozen weights, but no public interface. Where a torch
    lacks them, or they give another product, the ordinary one serves.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return None
    try:
        blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        x = torch.ones(1, weight.shape[1], dtype=weight.dtype)
        product = torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return blocked if torch.allclose(product, F.linear(x, weight), atol=1e-2, rtol=1e-2) else None


def _swiglu(mlp: SwiGLU, dtype: torch.dtype) -> Linear:
    gate_up = pack_linear(_weight(mlp.gate_proj), _weight(mlp.up_proj), dtype=dtype)
    down = pack_linear(_weight(mlp.down_proj), dtype=dtype)

    def forward(x: Tensor) -> Tensor:
        gate, up = gate_up(x).chunk(2, -1)
        return down(F.silu(gate) * up)

    return forward


def _experts(mlp: MixtureOfExperts, dtype: torch.dtype) -> Linear:
    copied = copy.deepcopy(mlp).requires_grad_(False).eval()
    # The router stays as it is: rounding its weights would flip choices.
    copied.experts.to(dtype)
    return copied


def _weight(linear: nn.Module) -> Tensor:
    """The matrix that a linear layer multiplies by, a trained adapter counted in."""
    weight = linear.merged().weight if isinstance(linear, LoRALinear) else linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
