"""The decoder: embedding, layers, head."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cutaway.model.attention import Attention, Cache, Mask, at_places, packed_mask
from cutaway.model.config import ModelConfig
from cutaway.model.mlp import SwiGLU
from cutaway.model.moe import MixtureOfExperts, Routing
from cutaway.model.norm import RMSNorm
from cutaway.model.rope import RotaryEmbedding
from cutaway.objectives.next_token import token_nll


class DecoderLayer(nn.Module):
    r"""$h \leftarrow h + \mathrm{Attention}(\mathrm{norm}(h)),\ h \leftarrow h + \mathrm{mlp}(\mathrm{norm}(h))$.

    The second is a SwiGLU, or a mixture of them where the model has experts.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: SwiGLU | MixtureOfExperts = MixtureOfExperts(config) if config.num_experts else SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        h: Float[Tensor, "batch seq hidden"],
        cos: Float[Tensor, "batch 1 seq half"],
        sin: Float[Tensor, "batch 1 seq half"],
        mask: Mask,
        cache: Cache | None,
        routing: Routing | None = None,
        places: Int[Tensor, "batch asked"] | None = None,
    ) -> Float[Tensor, "batch asked hidden"]:
        x = self.input_layernorm(h)
        h = (h if places is None else at_places(h, places)) + self.self_attn(x, cos, sin, mask, cache, places)
        x = self.post_attention_layernorm(h)
        h = h + (self.mlp(x, routing) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(x))
        return h


def recomputed(
    layer: nn.Module,
    h: Float[Tensor, "batch seq hidden"],
    cos: Float[Tensor, "batch 1 seq half"],
    sin: Float[Tensor, "batch 1 seq half"],
    mask: Mask,
    routing: Routing | None,
) -> Float[Tensor, "batch seq hidden"]:
    """The output of a layer of which only the input is kept: the backward pass computes what lies between again.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. What the router says is a result of
    the layer here, because the second pass must not be heard as another layer's.
    """

    def run(h: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> tuple[Tensor, ...]:
        said = Routing()
        return layer(h, cos, sin, mask, None, said), *said.logits

    out, *logits = checkpoint(run, h, cos, sin, mask, use_reentrant=False)
    if routing is not None:
        routing.logits += logits
    result: Tensor = out
    return result


class Decoder(nn.Module):
    """Token ids to hidden states."""

    checkpointing: bool = False
    """Whether the backward pass computes every layer again instead of finding all of it kept (`recomputed`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "batch seq"],
        mask: Mask,
        cache: Cache | None,
        routing: Routing | None = None,
        places: Int[Tensor, "batch asked"] | None = None,
    ) -> Float[Tensor, "batch asked hidden"]:
        """Hidden states of all places, or of `places` in each row: the last layer then computes those only."""
        h = self.embed_tokens(input_ids)
        if torch.is_autocast_enabled(h.device.type):
            h = h.to(torch.get_autocast_dtype(h.device.type))
        cos, sin = self.rotary(positions)
        again = self.checkpointing and torch.is_grad_enabled() and cache is None and places is None
        for number, layer in enumerate(self.layers, start=1):
            if again:
                h = recomputed(layer, h, cos, sin, mask, routing)
            else:
                h = layer(h, cos, sin, mask, cache, routing, places if number == len(self.layers) else None)
        out: Tensor = self.norm(h)
        return out


class CausalLM(nn.Module):
    """A decoder with a language-model head. Its `state_dict` has the names of Llama and Qwen3 checkpoints."""

    packed_mask, token_nll = staticmethod(packed_mask), staticmethod(token_nll)
    """What lies before and after the layers; where these are compiled one by one, compiled ones take their place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def architecture(self) -> str:
        """Class name that `transformers` knows this network by."""
        return self.config.architecture

    def config_dict(self) -> dict[str, Any]:
        """The `config.json` that describes this network."""
        return self.config.to_dict()

    @property
    def head_weight(self) -> Float[Tensor, "vocab hidden"]:
        """Rows are the output vectors of the tokens: the embedding itself where the two are tied."""
        module = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        weight: Tensor = module.weight
        return weight

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        documents: Int[Tensor, "batch seq"] | None = None,
        cache: Cache | None = None,
        targets: Int[Tensor, "batch seq"] | None = None,
        z_loss: float = 0.0,
        routing: Routing | None = None,
        head: bool = True,
    ) -> Float[Tensor, "batch seq vocab"] | Float[Tensor, "batch seq"] | Float[Tensor, "batch seq hidden"]:
        """Logits; or with `targets` each target's negative log-likelihood in nats, fp32, without keeping the logits; or
        without `head` the final hidden states, which `head_weight` turns into logits.

        `positions` default to 0, 1, 2, ...; `documents` holds an id per token, and a token sees its own document only
        (default: a row is one document); `cache` holds keys and values of earlier tokens (its mask rules then);
        `routing` is filled with what the routers of experts said.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        mask = None if documents is None else self.packed_mask(documents)
        hidden: Tensor = self.model(input_ids, positions, mask, cache, routing)
        if not head:
            return hidden
        if targets is None:
            return F.linear(hidden, self.head_weight)
        return self.token_nll(hidden, self.head_weight, targets, z_loss)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, a tied matrix counted once; without `embeddings`, the input embedding left out."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if embeddings else total - self.model.embed_tokens.weight.numel()

    def num_active_parameters(self, embeddings: bool = True) -> int:
        """As `num_parameters`, with the experts that one token passes through instead of all."""
        return self.num_parameters(embeddings) - self._expert_parameters() + self._active_expert_parameters()

    def _expert_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 3)

    def _active_expert_parameters(self) -> int:
        config = self.config
        return self._expert_parameters() * config.num_experts_per_tok // max(1, config.num_experts)

    def flops_per_token(self, row_length: int) -> int:
        """Training FLOPs a token, forward and backward: 6 a matrix weight that a token meets, 4 where it is frozen
        (the head counts, the look-up does not; of the experts those that a token passes through), and
        12 x layers x heads x head_dim x row_length for attention, as in PaLM (arXiv 2204.02311, appendix B).

        PaLM's count takes the full square although a causal mask leaves half of it; so do others' MFU figures, and
        ours can be compared with theirs. `causal_flops_per_token` counts the half.
        """
        return self._matrix_flops() + 12 * self._attention_width() * row_length

    def causal_flops_per_token(self, row_length: int) -> int:
        """As `flops_per_token`, with only the causal half of attention: what must be computed."""
        return self._matrix_flops() + 6 * self._attention_width() * row_length

    def recomputed_flops_per_token(self, row_length: int) -> int:
        """What `checkpointing` adds to `flops_per_token`: the layers' forward pass once more, 2 a matrix weight that a
        token meets and a third of attention. By custom no part of an MFU. The last product of a dense layer is not
        among them: what it gives is the next layer's input, which was kept."""
        if not self.model.checkpointing:
            return 0
        named = self.model.layers.named_parameters()
        matrices = sum(weight.numel() for name, weight in named if weight.ndim == 2 and "down_proj" not in name)
        return 2 * (matrices + self._active_expert_parameters()) + 4 * self._attention_width() * row_length

    def _attention_width(self) -> int:
        return self.config.num_hidden_layers * self.config.num_attention_heads * self.config.head_dim

    def _matrix_flops(self) -> int:
        embedding, total = self.model.embed_tokens.weight, 0
        for parameter in self.parameters():
            if parameter.ndim == 2 and (parameter is not embedding or parameter is self.head_weight):
                total += (6 if parameter.requires_grad else 4) * parameter.numel()
        experts = (parameter for parameter in self.parameters() if parameter.ndim == 3)
        passes = 6 if all(parameter.requires_grad for parameter in experts) else 4
        return total + passes * self._active_expert_parameters()
