"""The table of a life: which stage comes after which, on what data, for how long, with which settings.

A step begins with the model that the step before it left. `minutes` are those of a life of `LIFE_MINUTES`; a longer or
shorter one scales all of them. Everything that a step does not name is the recipe's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["pretrain", "sft", "lora", "dpo", "grpo", "agent"]

LIFE_MINUTES = 20.0
"""What the minutes below add up to, data and scores included."""
DATA_MINUTES, TOKENIZER_MINUTES, SCORE_MINUTES, REPORT_MINUTES = 0.3, 0.1, 0.5, 0.1
"""Writing the data, training the vocabulary, scoring the model of one stage, and the report at the end."""
READ_MINUTES = 0.4
"""Scoring a model that has only read text, and what the first compilation takes beyond the stage's minutes."""
OWN_MINUTES: dict[str, float] = {"lora": 0.7, "dpo": 0.8}
"""Asking the model for answers of its own before such a stage."""
LEAST_SHARE = 0.5
"""Of its minutes that a stage has, however late it begins."""
SHORT_MINUTES = 1.0
"""Of a stage that gives nothing up: it has little more than what loading and measuring its speed take."""
TRUSTED_S = 60.0
"""Seconds that what is done is weighed against, when what is left is estimated from it."""
README_TOKENS = 6.1e6
"""Of pretraining, in `LIFE_MINUTES`, on the machine whose figures stand in README."""
MEGABYTES = 24.0
"""Pretraining text and conversations: more than two processor cores read in the minutes below."""
VOCAB_SIZE = 2000
PASSES = 5
"""Passes over the adapter's own records."""
TOOL_TALKS = 200
"""Conversations of fine-tuning in which tools are called, beside them: the model's own answers have none. Each is as
long as ten of these, and what they keep is less easily lost."""
STYLE_PAIRS, NAME_PAIRS = 100, 400
"""Pairs of style (concise, polite, in the format asked for) and of its name beside those of its own answers: few, so
that most of so short a stage is about these."""
HELD = 400
"""Prompts about who it is, and to refuse, among those of reinforcement learning, so that it holds what it learnt."""


@dataclass(frozen=True)
class Step:
    """A row of the table."""

    stage: Stage
    """Its command, its table in the recipe, and the name of its run."""
    data: tuple[str, ...]
    """Files, below the folder of the data."""
    minutes: float
    """Training time; where the settings have a horizon of their own, about what that takes."""
    says: str
    """What it does, for someone who sees it for the first time."""
    raises: tuple[str, ...] = ()
    """Scores that it is there for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the stage's settings."""
    share: float = 1.0
    """Of the way from the model it begins with to the one it trains, where the next step begins: what it is there for
    comes early on that way, what it costs other skills late (`cutaway merge --share`)."""

    @property
    def merged(self) -> bool:
        """Whether it leaves another model than the one it trains."""
        return self.stage == "lora" or self.share < 1

    @property
    def has_own_horizon(self) -> bool:
        """Whether the minutes are an estimate only."""
        return any(self.settings.get(name) is not None for name in ("steps", "epochs", "tokens"))


RATES: dict[str, dict[str, Any]] = {
    "pretrain": {"batch_tokens": 2048, "optimizer": "muon", "muon_lr": 0.04, "adam_lr": 0.008},
    "sft": {"batch_tokens": 2048, "optimizer": "muon", "muon_lr": 0.02, "adam_lr": 0.004},
}
"""Many small steps, and large ones: in so short a run their number counts for more than how smooth each is."""
TRAINING = {"pretrain": 0.58, "sft": 0.42}
"""Shares of the time for the two long stages."""
LONG_MINUTES = 8.2
"""Pretraining and fine-tuning together."""
WIDTHS: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.0, {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 320}),
    (1.2e14, {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 448}),
    (1e15, {}),
)
"""Shapes of the model, and from how many FLOPs on: what the machine multiplies in the minutes of both long stages.
The last is the recipe's own.

The best size of a model grows with about the root of the FLOPs that it is trained with (arXiv 2203.15556, section 3): a
larger one sees too little text, a smaller one has no room for it. With 7e13 FLOPs the narrowest learns by far the most,
with 4e14 the middle one all but everything; from where on the widest pays was not measured.
"""
ONLY_AT_THE_ENDS = 1_000_000
"""Steps between evaluations, where they would take too much of so short a stage."""
_KEEP: dict[str, Any] = {"scripts": "keep"}  # the playground has both scripts already

PLAYGROUND: tuple[Step, ...] = (
    Step(
        "pretrain",
        ("pretrain.jsonl",),
        TRAINING["pretrain"] * LONG_MINUTES,
        "next-token prediction on the town's text",
        (),
        {**_KEEP, **RATES["pretrain"], "holdout_tokens": 4096},
    ),
    Step(
        "sft",
        ("sft.jsonl",),
        TRAINING["sft"] * LONG_MINUTES,
        "fine-tuning on conversations: it learns to answer",
        ("fact", "arithmetic", "tool"),
        {**_KEEP, **RATES["sft"], "holdout_tokens": 4096, "keep_checkpoints": 4},
    ),
    Step(
        "lora",
        ("lora_mixed.jsonl", "lora_own.jsonl"),
        1.7,
        "a small adapter learns who it is, and is merged into the model",
        ("identity",),
        {
            **_KEEP,
            "rank": 16,
            "alpha": 64.0,
            "batch_tokens": 4096,
            "adam_lr": 1e-3,
            "holdout_tokens": 2048,
            "eval_every": ONLY_AT_THE_ENDS,
        },
    ),
    Step(
        "dpo",
        ("preference_own.jsonl", "preference_held.jsonl"),
        0.5,
        "preference: of two answers, the better one becomes likelier",
        ("sampled",),
        {
            **_KEEP,
            "adam_lr": 1e-4,
            "batch_tokens": 2048,
            "row_length": 512,
            "nll_weight": 1.0,
            "holdout_tokens": 16384,
            "eval_every": ONLY_AT_THE_ENDS,
        },
        share=0.6,
    ),
    Step(
        "grpo",
        ("rl.jsonl", "rl_held.jsonl"),
        2.3,
        "reinforcement learning: groups of answers, judged by a verifier",
        ("practice",),
        {
            **_KEEP,
            "prompt_sampling": "dynamic",
            "kl": "none",
            "beta": 0.0,
            "adam_lr": 5e-4,
            "warmup_fraction": 0.1,
            "max_new_tokens": 64,
            "row_length": 192,
            "minibatches": 2,
            "holdout_prompts": 0,
        },
        share=0.35,
    ),
    Step(
        "agent",
        ("agent_mixed.jsonl", "rl_held.jsonl"),
        1.9,
        "reinforcement learning over several turns with tools",
        ("tool_practice",),
        {
            **_KEEP,
            "algorithm": "dapo",
            "kl": "loss",
            "beta": 0.04,
            "adam_lr": 1.5e-4,
            "warmup_fraction": 0.15,
            "max_new_tokens": 96,
            "row_length": 768,
            "minibatches": 2,
            "prompts_per_rollout": 8,
            "holdout_prompts": 0,
        },
        share=0.6,
    ),
)
