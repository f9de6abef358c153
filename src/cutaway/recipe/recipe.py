"""The whole recipe, and the settings beside it: the files of a run, the machine of a plan."""

from dataclasses import dataclass, field

from cutaway.recipe.base import ModelSettings, TokenizerSettings
from cutaway.recipe.rl import AgentSettings, GRPOSettings, PPOSettings, SPOSettings
from cutaway.recipe.stages import (
    DistillSettings,
    DPOSettings,
    LoRASettings,
    PretrainSettings,
    RewardSettings,
    SFTSettings,
)


@dataclass(frozen=True)
class Recipe:
    """Everything about a model's life except the files it reads and writes."""

    name: str = "nano"
    """Name of the recipe."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    lora: LoRASettings = field(default_factory=LoRASettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    spo: SPOSettings = field(default_factory=SPOSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)


@dataclass(frozen=True)
class RunSettings:
    """The files of one run."""

    data: tuple[str, ...] = ()
    """Training files (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet)."""
    out: str = ""
    """Run directory to write."""
    init: str | None = None
    """Model directory to start from; pretraining also takes a tokenizer directory here and starts a new model."""
    eval_data: tuple[str, ...] = ()
    """Files to evaluate on, instead of a held-out slice of the training files."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""


@dataclass(frozen=True)
class PlanSettings:
    """Where the run would be, and what is known of its data."""

    gpu: str | None = None
    """A card of the table (rtx3090, a100-80, h100, ...; --gpu list prints it); default: this machine, measured."""
    mfu: float = 0.4
    """Share of the card's peak that the run reaches, for --gpu."""
    data: tuple[str, ...] = ()
    """Training files, to count their tokens exactly (with --init); what is tokenised here the run need not tokenise."""
    init: str | None = None
    """Tokenizer or model directory, for the size of the vocabulary or of the model."""
    data_tokens: int | None = None
    """Tokens in one pass over the data, where --data is not given."""
