"""Settings of the stages that learn from written answers: next token, pairs, a teacher."""

from dataclasses import dataclass
from typing import Literal

from cutaway.recipe.base import AdapterSettings, ShardSettings, TrainSettings


@dataclass(frozen=True)
class PretrainSettings(ShardSettings, TrainSettings):
    """Next-token prediction on plain text."""


@dataclass(frozen=True)
class SFTSettings(ShardSettings, TrainSettings):
    """Next-token prediction on the assistant's tokens of conversations."""


@dataclass(frozen=True)
class LoRASettings(AdapterSettings, TrainSettings):
    """Fine-tuning of low-rank adapters on the assistant's tokens; the model itself stays as it is."""

    rank: int = 16
    """Rank of the adapters: rows of A, columns of B."""


@dataclass(frozen=True)
class DPOSettings(AdapterSettings, TrainSettings):
    """Learning from pairs of answers, one preferred to the other: DPO and its relatives."""

    row_length: int = 1024
    """Tokens in a row of packed pairs; both conversations of a pair must fit one together."""
    loss: Literal["dpo", "robust", "hinge", "ipo", "dpo_norm", "kto", "simpo", "cpo", "orpo"] = "dpo"
    """Equation; simpo, cpo and orpo do without a reference."""
    beta: float | None = None
    """Strength of the pull to the reference (ipo: tau, orpo: lambda); derived: dpo_norm 5, simpo 2.5, others 0.1."""
    gamma: float | None = None
    """How much likelier a token simpo wants the chosen answer's to be, times beta; derived: 0.55 beta."""
    label_smoothing: float | None = None
    """Share of pairs taken to be the wrong way round (not for hinge, ipo, kto, orpo); derived: robust 0.1, else 0."""
    nll_weight: float | None = None
    """Weight of the chosen answer's own loss a token; derived: 1 for cpo and orpo, else 0."""
    desirable_weight: float = 1.0
    """Weight of chosen answers (kto)."""
    undesirable_weight: float = 1.0
    """Weight of rejected answers (kto)."""
    reference: Literal["cached", "live"] = "cached"
    """Where the reference's log-probabilities come from: computed once and kept on disk, or in every step from the
    model with its adapter switched off (needs rank)."""


@dataclass(frozen=True)
class RewardSettings(TrainSettings):
    """A score for answers, learnt from pairs of which one is preferred."""

    row_length: int = 1024
    """Tokens in a row of packed pairs; both conversations of a pair must fit one together."""
    centre: float = 0.01
    """Weight of the squared sum of a pair's scores, which keeps scores near 0."""


@dataclass(frozen=True)
class DistillSettings(AdapterSettings, TrainSettings):
    """A student learns the distributions of a teacher with the same tokenizer, on the assistant's tokens."""

    teacher: str = ""
    """Model directory of the teacher, dense or with experts."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """Distance from the teacher's distribution: the student covers it, keeps inside it, or something between."""
    beta: float = 0.5
    """Of jensen_shannon: near 0 it is like the forward KL, near 1 like the reverse."""
    temperature: float = 1.5
    """Logits of both are divided by this; higher ones say more of what the teacher would not quite say."""
    ce_weight: float = 0.5
    """Weight of the next-token loss on the data; the divergence has the rest."""
    top_k: int = 0
    """Keep the teacher's k likeliest tokens of every place on disk, computed once (forward_kl); 0 runs it always."""
    on_policy: float = 0.0
    """Share of micro-batches whose last answers the student writes itself, where only the divergence counts (GKD)."""
    max_new_tokens: int = 128
    """Longest answer that the student writes."""
    sampling_temperature: float = 1.0
    """Temperature at which it writes."""
