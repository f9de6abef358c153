"""Grouped-query attention over packed documents or over a key-value cache."""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cutaway.model.config import ModelConfig
from cutaway.model.norm import RMSNorm
from cutaway.model.rope import rotate

Kernel = Literal["auto", "flex", "blocks", "sdpa"]
Mask = BlockMask | Tensor | None
"""What may look at what: flex blocks; a boolean matrix, true = may look; document ids (2-D); or plain causal."""

QUERY_BLOCK = 128
"""Queries that the blocked kernel takes at a time: small enough to skip most of the future, large enough to be fast."""


class Cache(Protocol):
    """What attention needs of a key-value cache (`generation/kv_cache.py` has the real one)."""

    mask: Float[Tensor, "batch 1 seq length"]
    """0 where a new token may look at a cached position, itself included; minus infinity elsewhere."""

    def update(
        self, layer: int, k: Float[Tensor, "batch kv seq head_dim"], v: Float[Tensor, "batch kv seq head_dim"]
    ) -> tuple[Float[Tensor, "batch kv length head_dim"], Float[Tensor, "batch kv length head_dim"]]:
        """Store the new keys and values; give back all that the mask speaks of."""


class Attention(nn.Module):
    r"""Softmax attention in which groups of query heads share one key and value head.

    $$o_t = W_o \,\mathrm{concat}_h \sum_{s \le t,\ \mathrm{doc}_s = \mathrm{doc}_t}
      \mathrm{softmax}_s\!\left(\frac{q_{t,h} \cdot k_{s,g(h)}}{\sqrt{d}}\right) v_{s,g(h)}$$

    $q, k$ are rotated to their positions, and normalised first where the model has `qk_norm` (Qwen3). Grouped queries:
    Ainslie et al., arXiv 2305.13245; the cache shrinks by `num_attention_heads / num_key_value_heads`.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "batch seq hidden"],
        cos: Float[Tensor, "batch 1 seq half"],
        sin: Float[Tensor, "batch 1 seq half"],
        mask: Mask,
        cache: Cache | None,
        places: Int[Tensor, "batch asked"] | None = None,
    ) -> Float[Tensor, "batch asked hidden"]:
        """The output at every place, or at `places` of each row: every place then gives a key and a value, only these
        have a query. Not for masks of blocks."""
        asked = x if places is None else at_places(x, places)
        q = self.q_proj(asked).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        k = rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
            mask = cache.mask
        if places is not None:
            cos, sin = at_places(cos[:, 0], places)[:, None], at_places(sin[:, 0], places)[:, None]
            mask = mask_of_places(mask, places, k.shape[2])
        q = rotate(q, cos, sin)
        out: Tensor = self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


def at_places(
    x: Float[Tensor, "batch seq width"], places: Int[Tensor, "batch asked"]
) -> Float[Tensor, "batch asked width"]:
    """Of each row the vectors at its `places`."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def mask_of_places(mask: Mask, places: Int[Tensor, "batch asked"], length: int) -> Tensor:
    """The rows of a mask that belong to `places`; plain causal becomes a matrix."""
    if mask is None:
        return (torch.arange(length, device=places.device) <= places.unsqueeze(-1)).unsqueeze(1)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ValueError("places need a plain causal mask or a matrix")
    return mask.expand(len(places), -1, -1, -1).gather(2, places[:, None, :, None].expand(-1, -1, -1, length))


def attend(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv length head_dim"],
    v: Float[Tensor, "batch kv length head_dim"],
    mask: Mask,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Softmax attention by the kernel that the mask was made for."""
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.shape[2] == 1 and isinstance(mask, Tensor) and mask.ndim == 4:
        return attend_one(q, k, v, mask)
    if isinstance(mask, BlockMask):
        out = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out
    if mask is not None and mask.ndim == 2:
        return attend_blocks(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def attend_one(
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch kv length head_dim"],
    v: Float[Tensor, "batch kv length head_dim"],
    mask: Tensor,
) -> Float[Tensor, "batch heads 1 head_dim"]:
    """One new token a row: the query heads that share a key head are handed over as queries of that head.

    The kernel then reads each key and value once for its group. Asked with `enable_gqa`, it repeats them first: on two
    cores, a batch of 32 with 256 keys took 40 times as long.
    """
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    queries = q.reshape(q.shape[0], kv_heads, group, -1)
    shared = mask.expand(-1, -1, group, -1)
    return F.scaled_dot_product_attention(queries, k, v, attn_mask=shared).reshape(q.shape)


def attend_blocks(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv seq head_dim"],
    v: Float[Tensor, "batch kv seq head_dim"],
    documents: Int[Tensor, "batch seq"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attention within documents as plain matrix products, a block of queries against the keys up to its end.

    Query heads that share a key head are stacked into one tall matrix, so nothing is repeated. Compiled on a CPU,
    forward and backward take half the time of its fused kernel, whose backward is slow; on a GPU, flex is faster.
    """
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    q = (q * head_dim**-0.5).view(batch, kv_heads, group, length, head_dim)
    index = torch.arange(length, device=q.device)
    outputs = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        size = end - start
        queries = q[:, :, :, start:end].reshape(batch * kv_heads, group * size, head_dim)
        keys = k[:, :, :end].reshape(batch * kv_heads, end, head_dim)
        values = v[:, :, :end].reshape(batch * kv_heads, end, head_dim)
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(batch, kv_heads, group, size, end)
        same = documents[:, start:end, None] == documents[:, None, :end]
        allowed = same & (index[start:end, None] >= index[:end])
        scores = scores.float().masked_fill(~allowed[:, None, None], float("-inf"))
        weights = torch.softmax(scores, -1).to(values.dtype).view(batch * kv_heads, group * size, end)
        outputs.append(torch.bmm(weights, values).view(batch, kv_heads, group, size, head_dim))
    return torch.cat(outputs, dim=3).reshape(batch, heads, length, head_dim)


def packed_mask(documents: Int[Tensor, "batch seq"], kernel: Kernel = "auto") -> Mask:
    """A token looks at earlier tokens of its own document; every kernel gives the same result to rounding.

    `auto` is, in a compiled model, `flex` on CUDA and `blocks` elsewhere; not compiled, `sdpa` with a dense mask.
    """
    batch, length = documents.shape
    if kernel == "auto":
        kernel = ("flex" if documents.is_cuda else "blocks") if torch.compiler.is_compiling() else "sdpa"
    if kernel == "blocks":
        return documents
    if kernel == "flex":
        # A lambda, because torch counts its parameters and the run-time type checker of the tests wraps every `def`.
        return create_block_mask(
            lambda b, h, query, key: (query >= key) & (documents[b, query] == documents[b, key]),
            *(batch, None, length, length),
            device=str(documents.device),
        )
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (same & causal).unsqueeze(1)
