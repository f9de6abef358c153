"""What a run costs before it runs: FLOPs, memory, time and money, as arithmetic on its shape and settings.

Pure functions: `cutaway plan` calls them with a GPU from the table below or with speeds measured on this machine, the
preparation of a run with the speeds it has just measured, the progress line with the time that has passed.
"""

import math
from dataclasses import dataclass, fields

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.objectives.next_token import MAX_LOGIT_BYTES
from cutaway.training.optim import is_matrix, muon_cost

EVALUATIONS = 21
"""Looks at held-out text where `eval_every` is derived: one before training, then every twentieth of the run."""
MOST_TOKENS = 65536
"""Of a derived micro-batch on a GPU: more no longer make it faster."""
FILLED = 0.8
"""Share of a device's memory that a derived micro-batch may fill by the count below: the rest is for the driver, the
screen, the allocator's fragments and what the count does not see."""


@dataclass(frozen=True)
class Gpu:
    """Public figures of one card; `cutaway plan` names the sources."""

    name: str
    flops: float
    """Dense bf16 matrix products with fp32 sums, FLOP/s; fp16 on cards without bf16."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second."""
    rent: float
    """US dollars an hour, a low but ordinary offer."""
    source: str
    rent_source: str


_AMPERE = "NVIDIA GA102 whitepaper, RTX 3090, BF16 tensor: 71"
_ADA = "NVIDIA Ada whitepaper, RTX 4090, BF16 tensor: 165.2"
_BLACKWELL = "NVIDIA RTX Blackwell whitepaper, RTX 5090, BF16 tensor: 209.5"
_A100 = "NVIDIA A100 data sheet, BF16 tensor core: 312"
_HOPPER = "data sheet, BF16 tensor core: 1979 with sparsity, half without"
_GA10X = "512 FLOPs a multiprocessor and clock, as of the RTX 3090 in NVIDIA's GA102 whitepaper; "
_RUNPOD = "runpod.io/pricing, community cloud, 2026-08-19"
_INDEX = "gpu-price-index (Hugging Face data set), lowest offer of autumn 2026, 7.1 CNY a dollar"
GPUS = {
    "t4": Gpu("Tesla T4", 65e12, 16e9, 320e9, 0.19, "NVIDIA T4 data sheet, mixed precision FP16/FP32: 65", _INDEX),
    "l4": Gpu(
        "L4",
        121e12,
        24e9,
        300e9,
        0.45,
        "NVIDIA L4 data sheet, BF16 tensor core: 242 with sparsity, half without",
        _INDEX,
    ),
    "rtx3060": Gpu(
        "RTX 3060 12 GB",
        25.5e12,
        12e9,
        360e9,
        0.14,
        f"{_GA10X}28 of them at 1.78 GHz by NVIDIA's specification",
        "akash.network/pricing/gpus, 2026-09-20",
    ),
    "rtx3070": Gpu(
        "RTX 3070",
        40.6e12,
        8e9,
        448e9,
        0.12,
        "NVIDIA GA102 whitepaper, appendix on GA104, BF16 tensor: 40.6",
        "default price of the marketplace nodexo (github.com/nodexo-ai/nodexo), autumn 2026",
    ),
    "rtx3090": Gpu("RTX 3090", 71e12, 24e9, 936e9, 0.18, _AMPERE, "openrelay.inc/pricing, 2026-09-20"),
    "rtx4090": Gpu("RTX 4090", 165.2e12, 24e9, 1008e9, 0.29, _ADA, "openrelay.inc/pricing, 2026-09-20"),
    "rtx5090": Gpu("RTX 5090", 209.5e12, 32e9, 1792e9, 0.38, _BLACKWELL, _INDEX),
    "a100-40": Gpu("A100 SXM 40 GB", 312e12, 40e9, 1555e9, 1.00, _A100, _RUNPOD),
    "a100-80": Gpu("A100 SXM 80 GB", 312e12, 80e9, 2039e9, 1.39, _A100, _RUNPOD),
    "h100": Gpu("H100 SXM", 989e12, 80e9, 3350e9, 2.69, f"NVIDIA H100 {_HOPPER}", _RUNPOD),
    "h200": Gpu(
        "H200 SXM",
        989e12,
        141e9,
        4800e9,
        4.59,
        f"NVIDIA H200 {_HOPPER}",
        "runpod.io/pricing, secure cloud, 2026-10-07",
    ),
}


def find_gpu(name: str) -> Gpu:
    """A card of the table by its short name, capitals, spaces and hyphens aside. UserError for any other."""
    wanted = name.lower().replace(" ", "").replace("-", "")
    found = next((gpu for key, gpu in GPUS.items() if key.replace("-", "") == wanted), None)
    if found is None:
        raise UserError(f"gpu is {name!r}, must be one of {', '.join(GPUS)}")
    return found


@dataclass(frozen=True)
class Work:
    """FLOPs of a whole run."""

    model: int
    recomputed: int
    optimizer: int

    @property
    def total(self) -> int:
        """All that the device computes."""
        return self.model + self.recomputed + self.optimizer

    def shares(self, optimizer: str) -> list[str]:
        """What comes on top of the model's own work, in words."""
        parts = ((self.recomputed, "activations computed again"), (self.optimizer, optimizer))
        return [f"{part / self.model:.1%} more for {name}" for part, name in parts if part]


def run_flops(model: CausalLM, steps: int, batch_tokens: int, row_length: int, optimizer: str) -> Work:
    r"""FLOPs of a whole run: those of the model, $F D$ for $D$ tokens, and those of the optimizer's iterations.

    $F$ is `CausalLM.flops_per_token` (6 a weight and the attention), $D$ steps x batch_tokens, padding included; with
    activation checkpointing the forward pass of the layers once more for every token. Muon's Newton-Schulz iterations
    come once a step, whatever the batch (`optim.muon_cost`); AdamW's few are left out.
    """
    tokens = steps * batch_tokens
    again = tokens * model.recomputed_flops_per_token(row_length)
    return Work(tokens * model.flops_per_token(row_length), again, steps * muon_cost(model) * (optimizer == "muon"))


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a step, on one device."""

    weights: int
    """fp32, and in bf16 or fp16 the cast copies that autocast keeps until the backward pass."""
    gradients: int
    optimizer: int
    activations: int
    recomputed: int
    """Activations of one layer, where the backward pass computes them again."""
    head: int
    """Logits, their softmax and their gradient."""

    @property
    def total(self) -> int:
        """The end of the forward pass, when nothing is free yet; or the first layer that the backward pass computes
        again, if that needs more than the head, whose memory is free by then."""
        every: int = sum(getattr(self, field.name) for field in fields(self))
        return every - min(self.recomputed, self.head)


def step_memory(model: CausalLM, rows: int, row_length: int, value_bytes: int, optimizer: str) -> Memory:
    r"""Memory of a training step on `rows` rows a micro-batch, matrix products in numbers of `value_bytes` bytes.

    Weights $4P$, gradients $4P$ of what is trained; optimizer $8P$ of it under AdamW (two moments), $4P$ for the
    matrices under Muon (one momentum); activations `activation_bytes` a token, or `kept_bytes` with activation
    checkpointing, and then those of a layer that is computed again; the head
    $V(3 \cdot 4 + \text{value\_bytes})$ a token, for no more tokens than one chunk holds
    (`objectives/next_token.py`). An estimate for eager execution: a compiler fuses some of it away, and the allocator's
    fragments are not in it.
    """
    config, tokens = model.config, rows * row_length
    parameters = model.num_parameters()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    count = sum(weight.numel() for weight in trained.values())
    matrices = sum(weight.numel() for name, weight in trained.items() if is_matrix(name, weight))
    cast = 0 if value_bytes == 4 else value_bytes * sum(w.numel() for w in model.parameters() if w.ndim > 1)
    outputs = len(model.head_weight)  # the vocabulary, or one score
    chunk = min(tokens, max(1, MAX_LOGIT_BYTES // (4 * outputs)))
    checkpointing, shape = model.model.checkpointing, (config, row_length, value_bytes)
    return Memory(
        weights=4 * parameters + cast,
        gradients=4 * count,
        optimizer=8 * count - (4 * matrices if optimizer == "muon" else 0),
        activations=tokens * (kept_bytes if checkpointing else activation_bytes)(*shape),
        recomputed=tokens * layer_bytes(*shape) if checkpointing else 0,
        head=chunk * outputs * (12 + value_bytes),
    )


def tokens_that_fit(model: CausalLM, row_length: int, value_bytes: int, memory: float) -> int:
    """Tokens of the largest micro-batch, a power of two or else one row, with which a step under AdamW, the greedier
    optimizer, fills at most `FILLED` of `memory` bytes. It knows of no second model beside the one that is trained."""
    tokens = MOST_TOKENS

    def needed() -> int:
        return step_memory(model, max(1, tokens // row_length), row_length, value_bytes, "adamw").total

    while tokens > row_length and needed() > FILLED * memory:
        tokens //= 2
    return max(tokens, row_length)


def activation_bytes(config: ModelConfig, row_length: int, value_bytes: int) -> int:
    """Bytes a token that the forward pass keeps for the backward one, without the head's logits."""
    layers = config.num_hidden_layers * layer_bytes(config, row_length, value_bytes)
    return layers + _outside_bytes(config, value_bytes)


def kept_bytes(config: ModelConfig, row_length: int, value_bytes: int) -> int:
    """The same with activation checkpointing: of every layer its input, and the mask that all of them share."""
    inputs = config.num_hidden_layers * value_bytes * config.hidden_size
    return inputs + row_length + _outside_bytes(config, value_bytes)


def _outside_bytes(config: ModelConfig, value_bytes: int) -> int:
    """Outside of the layers: the last norm, the head's input, rotary angles, and the ids."""
    return 8 * config.hidden_size + 4 + value_bytes * config.hidden_size + 4 * config.head_dim + 21


def layer_bytes(config: ModelConfig, row_length: int, value_bytes: int) -> int:
    r"""Bytes a token that one layer keeps.

    With $a$ bytes a value, $H$ the hidden size, $Q$ and $K$ all query and all key channels, $h$ and $h_k$ their heads,
    $I$ the inner width, $n$ the row length, they are

    $$2(8H + 4) + [8(Q + K) + 4(h + h_k)] + aH + a(3Q + 2K) + 4h + an + aH + 4aI$$

    two norms (input and scaled input in fp32), the norms of queries and keys where the model has them, the input of the
    projections, queries, keys, values, output and its copy with one fp32 number a head, the mask as the uncompiled
    kernel wants it, and the feed-forward layer: its input, gate, up, silu and product. With experts the last becomes
    $k$ times as much for rows of their own, and the router's fp32 input, weights and indices.
    """
    hidden, head_dim, a = config.hidden_size, config.head_dim, value_bytes
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    heads = config.num_attention_heads
    norm = 8 * hidden + 4
    qk_norm = 8 * (queries + keys) + 4 * (heads + config.num_key_value_heads) if config.qk_norm else 0
    attention = a * hidden + a * (3 * queries + 2 * keys) + 4 * heads + a * row_length
    if config.num_experts:
        assert config.moe_intermediate_size is not None
        top_k = config.num_experts_per_tok
        router = 4 * hidden + 4 * config.num_experts + top_k * (3 * 8 + 4 + a) + 4
        feed_forward = router + top_k * a * (2 * hidden + 4 * config.moe_intermediate_size)
    else:
        feed_forward = a * hidden + 4 * a * config.intermediate_size
    return 2 * norm + qk_norm + attention + feed_forward


def run_seconds(steps: int, step_s: float, evaluation_s: float, eval_every: int | None) -> float:
    """Time of the steps and of the looks at held-out text between them, the first before any step."""
    looks = EVALUATIONS if eval_every is None else 1 + -(-steps // eval_every)
    return steps * step_s + (looks * evaluation_s if evaluation_s else 0.0)


def steps_within(seconds: float, step_s: float, evaluation_s: float, eval_every: int | None) -> int:
    """The most steps for which `run_seconds` stays within `seconds`, at least 1."""
    if eval_every is None:
        return max(1, int((seconds - EVALUATIONS * evaluation_s) / step_s))
    return max(1, int((seconds - evaluation_s) / (step_s + evaluation_s / eval_every)))


def evaluation_seconds(heldout_tokens: int, seconds_per_token: float) -> float:
    """Time of one look at held-out text: a forward pass, a third of the work of training a token."""
    return heldout_tokens * seconds_per_token / 3


def cost(seconds: float, price_per_hour: float) -> float:
    """Money, in whatever currency the price is."""
    return seconds / 3600 * price_per_hour


def clock(seconds: float) -> str:
    """Seconds as a person reads them: 4:05, 1:02:03, or days and hours."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
