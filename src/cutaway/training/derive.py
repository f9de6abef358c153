"""Rules that turn the few things a recipe names into the many a run needs, each printed with value, reason, source."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.rope import stretch
from cutaway.model.transformer import CausalLM
from cutaway.recipe.base import ModelSettings, TrainSettings
from cutaway.training.optim import muon_cost
from cutaway.training.plan import FILLED, MOST_TOKENS

Train = TypeVar("Train", bound=TrainSettings)

EXPERTS = ("num_experts", "num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef", "router_z_loss_coef")
NEW_MODEL, FINE_TUNING, REWARD, PREFERENCE = 1.0, 0.5, 0.2, 0.02
"""Learning rates as a share of a new model's. A fine-tuned model must not forget; one that learns from preferences is
only nudged: published runs take about a fortieth of their fine-tuning's rate (Zephyr, Tulu 3)."""
MUON_SHARE = 0.08
"""Muon is taken while its iterations cost at most this share of a step's FLOPs."""
SHORT_STEPS, MUON_SHARE_SHORT = 1000, 0.4
"""A new model's run of fewer steps may spend this share: where steps are few, what each of them learns counts for more
than its price. A choice on thin evidence (one seed of `mini`, AdamW's rate not tuned): it wants a benchmark."""


@dataclass(frozen=True)
class Rule:
    """One derived value."""

    name: str
    value: object
    reason: str
    source: str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name} = {value}: {self.reason} [{self.source}]"


def derive_model(
    settings: ModelSettings, vocab_size: int, row_length: int, ids: tuple[int, int]
) -> tuple[ModelConfig, list[Rule]]:
    """Fill in a model's shape. `ids` are the end-of-turn and the end-of-text token."""
    rules = []

    def take(name: str, given: int | None, value: int, reason: str, source: str) -> int:
        if given is not None:
            return given
        rules.append(Rule(name, value, reason, source))
        return value

    heads, width = settings.num_attention_heads, settings.hidden_size
    if heads < 1:
        raise UserError(f"num_attention_heads is {heads}, must be at least 1")
    if settings.head_dim is None and width % heads:
        raise UserError(f"hidden_size {width} is no multiple of num_attention_heads {heads}; name head_dim")
    if not settings.qk_norm and width % heads:
        raise UserError(
            f"a Llama's hidden_size must be a multiple of its {heads} heads, or transformers refuses to load it"
        )
    if settings.num_experts < 0:
        raise UserError(f"num_experts is {settings.num_experts}, must be 0 (dense) or more")
    if settings.num_experts and settings.num_experts_per_tok == 1 and settings.norm_topk_prob:
        raise UserError(
            "num_experts_per_tok = 1 with norm_topk_prob weighs every expert 1: the router would never learn"
        )
    inner = take(
        "intermediate_size",
        settings.intermediate_size,
        -(-8 * width // 3 // 128) * 128,
        "8/3 of hidden_size, up to a multiple of 128: as many parameters as a plain layer of 4 times",
        "arXiv 2002.05202",
    )
    experts: dict[str, Any] = {}
    if settings.num_experts:
        experts = {name: getattr(settings, name) for name in EXPERTS}
        experts["moe_intermediate_size"] = take(
            "moe_intermediate_size",
            settings.moe_intermediate_size,
            max(1, inner // max(1, settings.num_experts_per_tok)),
            "intermediate_size / num_experts_per_tok: as much work a token as a dense layer",
            "arXiv 2401.06066",
        )
    groups = next((n for n in (4, 3, 2) if heads % n == 0), 1)
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=take(
            "num_key_value_heads",
            settings.num_key_value_heads,
            heads // groups,
            f"{groups} query heads share one, the cache is {groups} times smaller",
            "arXiv 2305.13245",
        ),
        head_dim=take("head_dim", settings.head_dim, width // heads, "hidden_size / num_attention_heads", "Llama"),
        intermediate_size=inner,
        **experts,
        max_position_embeddings=take(
            "max_position_embeddings",
            settings.max_position_embeddings,
            4 * row_length,
            "room for chats of a few turns; beyond row_length quality is not trained",
            "choice",
        ),
        rope_theta=settings.rope_theta,
        qk_norm=settings.qk_norm,
        tie_word_embeddings=settings.tie_word_embeddings,
        eos_token_id=ids[0],
        pad_token_id=ids[1],
    )
    return stretch(config, settings.rope_scaling, row_length), rules


def derive_batch(
    settings: Train, horizon_tokens: float, micro_rows_on: str, fits: int = MOST_TOKENS
) -> tuple[Train, list[Rule]]:
    r"""Batch sizes from the horizon; `fits` is the largest micro-batch that a GPU has memory for (`tokens_that_fit`).

    $B = 2^{\mathrm{round}\log_2(c\,D^{0.383})}$ tokens for a horizon of $D$ tokens; the exponent is nanochat's
    (dev/LOG, January 2026), the constant set so that a run of 16M tokens takes steps of 16k.
    """
    rules = []
    changes: dict[str, int] = {}
    if settings.batch_tokens is None:
        ideal = 16384 * (max(horizon_tokens, 1.0) / 16e6) ** 0.383
        batch = max(2048, 2 ** round(math.log2(ideal)))
        reason = f"nearest power of two to 16384 (D / 16M)^0.383 with D = {horizon_tokens / 1e6:.3g}M tokens"
        changes["batch_tokens"] = max(batch, settings.row_length)
        rules.append(Rule("batch_tokens", changes["batch_tokens"], reason, "exponent: nanochat; constant: ours"))
    batch = changes.get("batch_tokens", settings.batch_tokens or 0)
    if settings.micro_batch_tokens is None:
        most, reason, source = fits, "fills a GPU, 64k tokens at the most", "measured"
        if micro_rows_on == "cpu":
            most, reason = 8192, "fills the caches of a CPU"
        elif fits < min(batch, MOST_TOKENS):
            reason, source = f"what {FILLED:.0%} of the device's memory has room for", "computed: training/plan.py"
        changes["micro_batch_tokens"] = max(min(batch, most), settings.row_length)
        rules.append(Rule("micro_batch_tokens", changes["micro_batch_tokens"], reason, source))
    return dataclasses.replace(settings, **changes), rules  # type: ignore[arg-type]


def derive_optimizer(settings: Train, model: nn.Module, peak: float, horizon_tokens: float) -> tuple[Train, list[Rule]]:
    """Optimizer and learning rates from the model, the batch and the length of the run; `peak` is the share of a new
    model's rates that the stage takes (`NEW_MODEL`, `FINE_TUNING`, or less where a trained model is only nudged)."""
    assert settings.batch_tokens is not None
    rules: list[Rule] = []
    changes: dict[str, object] = {}

    def take(name: str, value: float | str, reason: str, source: str) -> None:
        changes[name] = value
        rules.append(Rule(name, value, reason, source))

    assert isinstance(model, CausalLM)
    share = muon_cost(model) / (settings.batch_tokens * model.flops_per_token(settings.row_length))
    frozen = not all(parameter.requires_grad for parameter in model.parameters())
    if settings.optimizer == "auto" and frozen:
        take("optimizer", "adamw", "adapters are thin: Muon would move all their directions alike", "choice")
    elif settings.optimizer == "auto" and peak < FINE_TUNING:
        take("optimizer", "adamw", "small changes to a trained model: Muon would move all directions alike", "choice")
    elif settings.optimizer == "auto":
        short = peak == NEW_MODEL and horizon_tokens < SHORT_STEPS * settings.batch_tokens
        limit, why = (MUON_SHARE_SHORT, " in a short run") if short else (MUON_SHARE, "")
        kind = "muon" if share <= limit else "adamw"
        reason = f"Newton-Schulz costs 5(4m2n+2m3) FLOPs a matrix: {share:.1%} of a step (limit {limit:.0%}{why})"
        take("optimizer", kind, reason, "arXiv 2502.16982; rule: choice")
    batch_factor = (settings.batch_tokens / 16384) ** 0.5
    part = "" if peak == NEW_MODEL else f", {peak:g} of it for a trained model"
    if settings.muon_lr is None and changes.get("optimizer", settings.optimizer) == "muon":
        value = min(0.05, 0.02 * batch_factor) * peak
        take(
            "muon_lr",
            value,
            f"0.02 at 16k tokens, grows with the root of the batch{part}",
            "Jordan et al. 2024; choice",
        )
    if settings.adam_lr is None:
        width = model.config.hidden_size
        value = min(0.01, 0.004 * (256 / width) ** 0.5 * batch_factor) * peak
        if frozen:
            value, part = min(0.01, 2 * value), f", {2 * peak:g} of it for adapters"
        reason = f"0.004 at width 256 and 16k tokens, with 1/sqrt(width) and the root of the batch{part}"
        take("adam_lr", value, reason, "choice, not tuned yet")
    if settings.weight_decay is None:
        take("weight_decay", 0.1, "matrices only", "Llama")
    return dataclasses.replace(settings, **changes), rules  # type: ignore[arg-type]


def derive_intervals(settings: Train, steps: int) -> tuple[Train, list[Rule]]:
    """How often to log, evaluate, save and write samples."""
    values = {
        "log_every": max(1, steps // 500),
        "eval_every": -(-steps // 20),
        "save_every": -(-steps // 10),
        "sample_every": -(-steps // 4),
    }
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    rules = [Rule(name, value, f"of {steps} steps", "choice") for name, value in missing.items()]
    return dataclasses.replace(settings, **missing), rules  # type: ignore[arg-type]
