"""Settings of the stages that learn from the rewards of their own answers."""

from dataclasses import dataclass
from typing import Literal

from cutaway.recipe.base import AdapterSettings, TrainSettings

PromptSampling = Literal["uniform", "uncertainty", "dynamic"]
AdvantageName = Literal[
    "gae", "group_relative", "group_centred", "leave_one_out", "batch_baseline", "tracked", "tracked_global"
]
PolicyLossName = Literal["reinforce", "ppo_clip", "cispo", "gspo"]
KLPlace = Literal["none", "reward", "loss"]


@dataclass(frozen=True)
class RLSettings(AdapterSettings, TrainSettings):
    """Reinforcement learning: the policy answers prompts, answers earn rewards, and what earned more becomes likelier.

    A column of the table of algorithms that is left open is taken from the algorithm's row.
    """

    row_length: int = 512
    """Longest prompt, answers and results of tools together, in tokens."""
    optimizer: Literal["auto", "muon", "adamw"] = "adamw"
    """Optimizer of the matrices."""
    adam_lr: float | None = 1e-4
    """Peak learning rate under AdamW; papers have 1e-6 for models a thousand times larger."""
    weight_decay: float | None = 0.0
    """Decoupled weight decay of matrices."""
    prompts_per_rollout: int = 32
    """Prompts answered between two updates of the answering policy, over all ranks."""
    group_size: int | None = None
    """Answers to each prompt; derived: of the algorithm, 1 or 8."""
    minibatches: int = 2
    """Updates in one pass over a rollout's answers."""
    rollout_epochs: int = 1
    """Passes over a rollout's answers."""
    temperature: float = 1.0
    """Of the distribution that answers are drawn from, and log-probabilities taken under. Nothing else shapes it:
    top-k or top-p would change which answers are possible at all."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    rewards: tuple[str, ...] = ("verifier",)
    """What answers earn, as NAME=WEIGHT: verifier, partial, format, length, overlong, repetition, tools, code,
    reward_model, judge, or file.py:function. An algorithm's row may add some (DAPO: overlong=1)."""
    reward_model: str = ""
    """Directory of the reward model (cutaway reward) of the reward `reward_model`."""
    judge_url: str = ""
    """Root of the OpenAI-compatible server of the reward `judge`, such as http://127.0.0.1:8000/v1; it is sent the key
    in OPENAI_API_KEY, where there is one."""
    judge_model: str = ""
    """Name of the judge's model on that server."""
    overlong_buffer: int | None = None
    """Last tokens of the longest answer, over which the reward `overlong` falls to -1; derived: a fifth of it."""
    prompt_sampling: PromptSampling | None = None
    """How prompts are drawn: uniform, uncertainty, dynamic; derived: of the algorithm."""
    resample_rounds: int = 4
    """Most draws of prompts_per_rollout prompts that dynamic sampling makes for one rollout."""
    advantage: str | None = None
    """group_relative, group_centred, leave_one_out, batch_baseline, tracked, tracked_global, gae, or file.py:function
    from rewards to advantages, both (prompts, group); derived: of the algorithm."""
    policy_loss: str | None = None
    """reinforce, ppo_clip, cispo, gspo, or file.py:function from `Tokens` to a loss a token; derived: as above."""
    kl: KLPlace | None = None
    """Where the distance to the model that training began with counts; derived: of the algorithm."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Its estimate; derived: of the algorithm."""
    beta: float | None = None
    """Its weight; derived: of the algorithm."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] | None = None
    """How tokens' losses become one number; derived: of the algorithm."""
    clip_low: float | None = None
    """How far below 1 a ratio may fall; derived: of the algorithm."""
    clip_high: float | None = None
    """How far above 1 a ratio may rise; derived: of the algorithm."""
    dual_clip: float | None = None
    """Largest ratio that counts where the advantage is negative; derived: of the algorithm."""
    mask_truncated: bool | None = None
    """Leave answers that were cut off out of training; derived: of the algorithm."""
    sampler_url: str = ""
    """Root of a server that answers in place of the engine here, such as http://127.0.0.1:30000; it must see
    OUT/served, where it finds new weights before every rollout."""
    sampler_dialect: Literal["sglang", "vllm"] = "sglang"
    """What that server is."""
    importance_cap: float = 0.0
    """Weigh tokens by how much likelier the trainer finds them than the sampler did, up to this; 0 does not."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Least and largest reward, as a tracker reads them."""
    drift_half: float = 0.06
    """Nats a token by which the policy moves until a tracker's memory counts half."""
    offline_samples: int = 0
    """Answers to each prompt before training, from which a tracker starts (up to 8 in the paper)."""
    target_kl: float = 0.0
    """Drop the rest of a rollout once the policy is so many nats a token from the one that answered; 0 never does."""
    eval_every: int | None = None
    """Updates between greedy answers to held-out prompts; derived: about five times a run."""
    log_every: int | None = None
    """Updates between lines of metrics.jsonl; derived: a line a rollout."""
    sample_every: int | None = None
    """No sample texts are written here: 0, or left alone. `dump_tokens` shows answers."""
    dump_tokens: int = 0
    """Of the first update off the policy that answered, write N answers with what every token earned, in colour too
    (rl_tokens.jsonl, rl_tokens.html)."""
    holdout_prompts: int = 128
    """Prompts of the training files kept out for evaluation, unless --eval-data has others."""
    slots: int = 64
    """Answers written side by side."""


@dataclass(frozen=True)
class GRPOSettings(RLSettings):
    """RL from groups of answers to the same prompt: GRPO and its relatives."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo"] = "grpo"
    """Row of the table of algorithms."""


@dataclass(frozen=True)
class SPOSettings(RLSettings):
    """RL from single answers, against what their prompt earned before: SPO."""

    algorithm: Literal["spo", "spo_global"] = "spo"
    """Row of the table: a tracker for each prompt, or MiniMind's single one."""
    prompts_per_rollout: int = 256
    """Prompts answered between two updates of the answering policy, over all ranks."""


@dataclass(frozen=True)
class PPOSettings(RLSettings):
    """RL with a value model: PPO."""

    algorithm: Literal["ppo"] = "ppo"
    """Row of the table of algorithms."""
    prompts_per_rollout: int = 256
    """Prompts answered between two updates of the answering policy, over all ranks."""
    rollout_epochs: int = 2
    """Passes over a rollout's answers."""
    target_kl: float = 0.1
    """Drop the rest of a rollout once the policy is so many nats a token from the one that answered; 0 never does."""
    gamma: float = 1.0
    """Discount of rewards to come, a token."""
    lam: float = 0.95
    """GAE's weight of the longer view: 1 is the reward to come alone, 0 one token and the next value."""
    value_clip: float = 0.2
    """How far a value may move from what it was when the answers were written; 0 does not bound it."""
    value_weight: float = 0.5
    """Weight of the value model's loss."""
    value_lr: float = 3e-4
    """Peak learning rate of the value model."""


@dataclass(frozen=True)
class AgentSettings(RLSettings):
    """RL in which the policy may call tools over several turns."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "spo"] = "grpo"
    """Row of the table of algorithms."""
    row_length: int = 1024
    """Longest prompt, answers and results of tools together, in tokens."""
    turns: int = 5
    """Most answers of an episode, those that only call tools included."""
    tool_seconds: float = 5.0
    """Longest call of a tool; one that takes longer is answered with an error that the policy reads."""
    environment: str = ""
    """file.py:function from a record to the Toolbox of its environment; by default the playground's, else the standard
    tools that the record's system turn offers."""
