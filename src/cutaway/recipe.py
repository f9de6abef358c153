"""Typed settings: a field with its docstring is the flag, the default and the documentation.

A recipe file (TOML, one table a stage) names few things. What is `None` here is derived from the sizes when the stage
starts, by the rules in `training/derive.py`, which are printed with value, reason and source, and written to the run's
own `recipe.toml`, so that a run is described completely by one file.
"""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from cutaway.errors import UserError

Settings = TypeVar("Settings")
PromptSampling = Literal["uniform", "uncertainty", "dynamic"]
AdvantageName = Literal[
    "gae", "group_relative", "group_centred", "leave_one_out", "batch_baseline", "tracked", "tracked_global"
]
PolicyLossName = Literal["reinforce", "ppo_clip", "cispo", "gspo"]
KLPlace = Literal["none", "reward", "loss"]


@dataclass(frozen=True)
class TokenizerSettings:
    """Byte-level BPE."""

    vocab_size: int = 6400
    """Number of tokens, control tokens and the 256 bytes included."""
    pattern: Literal["qwen2", "llama3"] = "qwen2"
    """Pre-tokenizer: `qwen2` keeps every digit apart, `llama3` groups up to three."""
    scripts: str = "keep"
    """Chinese scripts of the training text: `keep`, `hans`, `hant`, or a mix such as `hans:0.8,hant:0.2`."""
    seed: int = 0
    """Seed of the document sample taken from inputs over 32 MB, and of the script mix."""


@dataclass(frozen=True)
class ModelSettings:
    """The decoder: a Llama, with `qk_norm` a Qwen3, with experts too a Qwen3-MoE."""

    hidden_size: int = 256
    """Width of the residual stream."""
    num_hidden_layers: int = 4
    """Number of decoder layers."""
    num_attention_heads: int = 4
    """Number of query heads."""
    num_key_value_heads: int | None = None
    """Number of key and value heads; derived: a quarter, a third or a half of the query heads."""
    head_dim: int | None = None
    """Width of one head; derived: hidden_size / num_attention_heads."""
    intermediate_size: int | None = None
    """Width of the SwiGLU layer; derived: 8/3 of hidden_size, rounded up to a multiple of 128."""
    max_position_embeddings: int | None = None
    """Longest context; derived: four times the training row."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: str = ""
    """Stretch of the context: yarn:FACTOR, llama3:FACTOR or linear:FACTOR, with :LENGTH if the trained length cannot be
    read from the run; none takes one away. A model of --init keeps its own unless this is given."""
    qk_norm: bool = True
    """RMSNorm on queries and keys: true gives exactly Qwen3, false exactly Llama."""
    tie_word_embeddings: bool = True
    """One matrix for input embedding and output head."""
    num_experts: int = 0
    """Experts in every layer, each a SwiGLU of moe_intermediate_size; 0 for dense layers."""
    num_experts_per_tok: int = 2
    """Experts that a token passes through."""
    moe_intermediate_size: int | None = None
    """Width of one expert; derived: intermediate_size / num_experts_per_tok, a dense layer's width active."""
    norm_topk_prob: bool = True
    """Weights of a token's experts sum to 1; false takes them as the softmax over all experts gives them."""
    router_aux_loss_coef: float = 0.01
    """Weight of the load-balancing loss, which keeps experts from being left out."""
    router_z_loss_coef: float = 0.001
    """Weight of the router's z-loss, which keeps its logits small."""


@dataclass(frozen=True)
class TrainSettings:
    """What every training stage shares. Exactly one of minutes, tokens, steps, epochs sets the horizon."""

    minutes: float | None = None
    """Horizon as wall-clock, everything included; turned into steps by a speed measurement at the start."""
    tokens: int | None = None
    """Horizon in useful tokens."""
    steps: int | None = None
    """Horizon in optimizer steps."""
    epochs: float | None = None
    """Horizon in passes over the data."""
    seed: int = 0
    """Seed of initialisation, data order and held-out slice."""
    row_length: int = 512
    """Tokens in a row of packed documents."""
    batch_tokens: int | None = None
    """Tokens in one optimizer step, over all ranks and accumulation; derived from the horizon."""
    micro_batch_tokens: int | None = None
    """Tokens in one forward pass on one device; derived from the device."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """Optimizer of the matrices; `auto` takes Muon where it costs at most 8 % of a step. The rest is always AdamW."""
    muon_lr: float | None = None
    """Peak learning rate of the matrices under Muon; derived."""
    adam_lr: float | None = None
    """Peak learning rate under AdamW; derived."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices (never of norms); derived."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Learning-rate schedule: warm-up, stable, decay; or warm-up and cosine."""
    warmup_fraction: float = 0.03
    """Share of the steps spent warming up."""
    decay_fraction: float = 0.5
    """Share of the steps spent decaying (wsd)."""
    final_lr_fraction: float = 0.05
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser, which keeps logits from drifting."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the matrix products; weights, optimizer and loss stay in fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` compiles where the horizon repays it."""
    scripts: str = "keep"
    """Chinese scripts trained on: `keep`, `hans`, `hant`, or a mix such as `hans:0.8,hant:0.2` (by document)."""
    holdout_tokens: int = 65536
    """Tokens of the training files kept out for evaluation, chosen by a hash of each document; 0 for none."""
    eval_every: int | None = None
    """Steps between evaluations on held-out text; derived: about twenty a run."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; derived: at most about a thousand lines a run."""
    save_every: int | None = None
    """Steps between checkpoints; derived: about ten a run."""
    keep_checkpoints: int = 2
    """Checkpoints kept for resuming; older ones are removed."""
    sample_every: int | None = None
    """Steps between sample texts; derived: about four a run; 0 for none."""
    skip_bad: int = 0
    """Bad records tolerated (each is reported) before the run stops."""
    price_per_hour: float = 0.0
    """Price of this machine per hour in any currency, for the running cost."""
    overfit_one_batch: bool = False
    """Train on the first batch only: the loss must fall to near zero, or something is broken."""
    dump_tokens: int = 0
    """Before training, write the first N rows with their trained tokens in colour (terminal and tokens.html)."""
    workers: int | None = None
    """Processes that tokenise; derived: one a core."""
    track: Literal["off", "wandb", "swanlab", "trackio"] = "off"
    """Send the metrics to a tracker too (extra `track`)."""


@dataclass(frozen=True)
class ShardSettings:
    """How several ranks share the training of all weights."""

    sharding: Literal["off", "on"] = "off"
    """With several ranks, `on` leaves each a part of every weight, gradient and optimizer state (FSDP2), for a model
    that does not fit one device with all of them; `off` gives each a copy (DDP), which is faster."""


@dataclass(frozen=True)
class PretrainSettings(ShardSettings, TrainSettings):
    """Next-token prediction on plain text."""


@dataclass(frozen=True)
class SFTSettings(ShardSettings, TrainSettings):
    """Next-token prediction on the assistant's tokens of conversations."""


@dataclass(frozen=True)
class AdapterSettings:
    """Whether a stage trains the model's own weights, or low-rank adapters on it."""

    rank: int = 0
    """Rank of the adapters: rows of A, columns of B; 0 trains all weights."""
    alpha: float = 32.0
    """Strength: updates are scaled by alpha / rank (with rslora by alpha / sqrt(rank))."""
    dropout: float = 0.0
    """Share of an adapter's inputs set to 0 while it trains."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Layers to adapt, by the last part of a name or a whole one; `*` and `?` stand for anything."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks learning."""
    dora: bool = False
    """Train the length of every output row apart from its direction (DoRA)."""


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
    """Root of the OpenAI-compatible server of the reward `judge`, such as http://127.0.0.1:8000/v1."""
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


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("cutaway") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a built-in recipe by name, or any recipe by path; a run's own tables (`run`, `made`) are left alone."""
    table = read_toml(name_or_path)
    for key in ("run", "made"):
        table.pop(key, None)
    return build(Recipe, table, where=name_or_path)


def read_toml(name_or_path: str) -> dict[str, Any]:
    """Parse a recipe file; a built-in name needs no path."""
    path = Path(name_or_path)
    if name_or_path in builtin_recipes():
        text = (resources.files("cutaway") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a text file that can be read: {error}") from None
    else:
        known = ", ".join(builtin_recipes())
        raise UserError(f"no recipe '{name_or_path}': neither a file nor one of {known}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name_or_path}: not valid TOML: {error}") from None


def build(cls: type[Settings], table: dict[str, Any], where: str) -> Settings:
    """Make a settings dataclass from a plain table; an unknown key or a wrong type is one line that says where."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key '{key}' (known: {', '.join(sorted(hints))})")
        values[key] = _convert(value, hints[key], f"{where}: {key}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table")
        return build(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(value, inner, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where} is {value!r}, must be one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list")
        return tuple(_convert(item, typing.get_args(hint)[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is {value!r}, must be of type {hint.__name__}")
    return value


def load_run(path: str) -> RunSettings:
    """The `run` table of a run's recipe.toml: the files that it reads and writes."""
    return build(RunSettings, read_toml(path).get("run", {}), where=f"{path}: run")


def save_recipe(recipe: Recipe, path: Path, run: RunSettings, made: dict[str, Any]) -> None:
    """Write the fully resolved recipe with the run's files and how it was made, as TOML; `None` is left out."""
    lines: list[str] = []
    document = dataclasses.asdict(recipe) | {"run": dataclasses.asdict(run), "made": made}
    for key, value in document.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {_toml(value)}")
    for key, value in document.items():
        if isinstance(value, dict):
            lines.append(f"\n[{key}]")
            lines += [f"{name} = {_toml(item)}" for name, item in value.items() if item is not None]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(_ESCAPES.get(char, char) for char in value)
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


_ESCAPES = {"\\": "\\\\", '"': '\\"'} | {chr(code): f"\\u{code:04x}" for code in (*range(32), 127)}
