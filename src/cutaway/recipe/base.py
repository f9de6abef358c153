"""Settings of the tokenizer and the model, and those that training stages share."""

from dataclasses import dataclass
from typing import Literal


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
    """Optimizer of the matrices; `auto` takes Muon where it costs at most 8 % of a step's FLOPs, in a new model's run
    of under 1,000 steps 40 %, but not for adapters, rewards or preferences. The rest is always AdamW."""
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
    compile: Literal["auto", "on", "layers", "off"] = "auto"
    """torch.compile: `on` makes one graph of the whole model; `layers` compiles one layer, which all others then use:
    sooner done, a little slower. `auto` takes what the horizon repays."""
    activation_checkpointing: Literal["off", "on"] = "off"
    """`on` keeps only the input of every layer and computes the rest again in the backward pass: a fraction of the
    activations' memory for a quarter to a third more work, where a row or a model would not fit the device."""
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
