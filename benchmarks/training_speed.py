"""Tokens a second, memory and MFU of a training step: beside peers, by size, row length and batch, and its parts alone.

    python benchmarks/training_speed.py peers --pretrain P.jsonl.xz --sft S.jsonl.xz --tokenizer DIR
        [--recipes nano mini] [--sides cutaway ...] [--minimind DIR] [--nanochat DIR] [--rounds 3] [--seconds 15]
    python benchmarks/training_speed.py sweep --pretrain P.jsonl.xz --tokenizer DIR [--row-lengths 256 512 1024 2048]
    python benchmarks/training_speed.py parts --pretrain P.jsonl.xz --tokenizer DIR

`peers`: every side is a process of its own, and so is its peak of resident memory; they are started and compiled one
after the other and then take turns in stretches of `--seconds`, each beginning with a measurement of the bf16 matrix
products that its MFU refers to. Useful tokens are those that are not padding; "bare" leaves the optimizer out. MFU
counts what is computed, padding included, by PaLM's count (6 a weight and the full square of attention), without the
optimizer. All sides have AdamW, the same micro-batch and the same batch:

    cutaway               packed, bf16, compiled: what `cutaway pretrain` and `cutaway sft` run
    hf fp32 padded        a `transformers` Llama of the same shape as MiniMind's scripts feed one
    hf bf16 padded        the same in bf16, compiled
    hf bf16 grouped       the same with documents of like length together, padded to the longest
    hf bf16 packed        the same on packed rows, without a mask between documents: the least work possible
    litgpt                LitGPT's model, bf16, compiled, packed (where it can be imported)
    minimind, nanochat    the model of a checkout, as its own scripts feed it: padded in fp32; packed, bf16, compiled

Results are kept in `--json`, under the machine and the arguments that decide them, and not measured again, so a stopped
run goes on; every table is printed from there.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.data.cache import TokenCache, build_cache
from cutaway.data.loader import Batch, RowSource
from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.stages.rehearsal import DataSize, RandomRows, peak_memory
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks
from cutaway.training.horizon import seconds_per_micro_batch, seconds_per_update
from cutaway.training.metrics import matmul_rate, synchronise
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from cutaway.training.precision import autocast, keep_freed_memory, pick_device, pick_dtype
from padded import WIDTH, PaddedRows
from record_curve import machine as processor

CHECKOUTS = ("minimind", "nanochat")
SIDES = ("cutaway", "hf fp32 padded", "hf bf16 padded", "hf bf16 grouped", "hf bf16 packed")
Loss = Callable[[Batch], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peers", "sweep", "parts", "worker"])
    parser.add_argument("--pretrain")
    parser.add_argument("--sft")
    parser.add_argument("--tokenizer")
    parser.add_argument("--recipes", nargs="+", default=["nano", "mini"])
    parser.add_argument("--sides", nargs="+", help="default: all that can be imported")
    parser.add_argument("--minimind", help="a checkout")
    parser.add_argument("--nanochat", help="a checkout")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--row-lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[2048, 8192, 16384], help="tokens, for sweep")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", default="benchmarks/results/training_speed.json")
    parser.add_argument("--request", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "worker":
        serve(arguments, json.loads(arguments.request))
        return
    print(f"{machine()}, torch {torch.__version__}")
    kept = Kept(Path(arguments.json))
    {"peers": peers, "sweep": sweep, "parts": parts}[arguments.what](arguments, kept)


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def named(what: str, arguments: argparse.Namespace, *deciding: str) -> str:
    """A name for a result: what it is of, the arguments that decide it, and the machine."""
    return "; ".join([what, *(f"{name} {getattr(arguments, name)}" for name in deciding), machine()])


def run_cold(command: list[str], **how: Any) -> "subprocess.CompletedProcess[Any]":
    """A process whose compiler has an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder}
        return subprocess.run(command, check=True, env=env, **how)


class Kept:
    """Results by name, in a file that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def missing(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in self.found]

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.found[name] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def peers(arguments: argparse.Namespace, kept: Kept) -> None:
    """Every side on pretraining and on fine-tuning data."""
    sides = arguments.sides or [*SIDES, *available(arguments)]
    for recipe, kind in itertools.product(arguments.recipes, ("pretrain", "sft")):
        if getattr(arguments, kind) is None:
            continue
        deciding = (kind, "tokenizer", "row_length", "micro_batch_tokens", "batch_tokens")
        names = {
            side: named(f"{recipe} {side}", arguments, *deciding, *(name for name in CHECKOUTS if name == side))
            for side in sides
        }
        # Those that are missing are measured together with the first side, so that every ratio is of one run.
        if kept.missing(list(names.values())):
            for side, result in side_by_side(arguments, recipe, kind, sides).items():
                kept.add(names[side], result)
        own = kept.found[names[sides[0]]]
        print(f"\n{recipe}, {kind}, row length {arguments.row_length}")
        print("| side | useful tokens/s | bare | x | MFU, bare | optimizer | padding | peak memory | bf16 products |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for side in sides:
            row = kept.found[names[side]]
            print(
                f"| {side} | {row['speed']:,.0f} | {row['bare']:,.0f} | {own['speed'] / row['speed']:.2f} "
                f"| {row['mfu']:.1%} | {1 - row['speed'] / row['bare']:.1%} | {1 - row['useful_share']:.0%} "
                f"| {row['peak_bytes'] / 1e9:.2f} GB | {row['rate'] / 1e9:.0f} GFLOP/s |"
            )


def available(arguments: argparse.Namespace) -> list[str]:
    """Peers that are here."""
    try:
        import litgpt  # noqa: F401

        found = ["litgpt"]
    except ImportError:
        found = []
    return found + [name for name in CHECKOUTS if getattr(arguments, name)]


def side_by_side(arguments: argparse.Namespace, recipe: str, kind: str, sides: list[str]) -> dict[str, dict[str, Any]]:
    """Start a process for each side, let them take turns, and sum what they say."""
    running = {}
    for side in sides:
        running[side] = start(arguments, {"recipe": recipe, "kind": kind, "side": side})
        print(f"{recipe} {kind}: {side} is ready", file=sys.stderr, flush=True)
    totals: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _, side in itertools.product(range(arguments.rounds), sides):
        totals[side].append(ask(running[side], "go"))
    results = {}
    for side, process in running.items():
        ends = ask(process, "end")
        process.wait()
        results[side] = summed(totals[side]) | ends
    return results


def start(arguments: argparse.Namespace, request: dict[str, Any]) -> "subprocess.Popen[str]":
    """A worker that has compiled and waits for its turn."""
    flags = ("pretrain", "sft", "tokenizer", "minimind", "nanochat", "row_length", "micro_batch_tokens", "batch_tokens")
    command = [
        sys.executable,
        __file__,
        "worker",
        "--request",
        json.dumps(request),
        "--seconds",
        str(arguments.seconds),
    ]
    for name in flags:
        if getattr(arguments, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answer(process)
    return process


def ask(process: "subprocess.Popen[str]", word: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return answer(process)


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise SystemExit(f"a side failed: exit code {process.wait()}")


def summed(stretches: list[dict[str, float]]) -> dict[str, float]:
    """Speeds over all stretches; the matrix rate is the median of them."""
    useful, tokens, seconds, bare = (
        sum(one[key] for one in stretches) for key in ("useful", "tokens", "seconds", "bare_s")
    )
    rate = statistics.median(one["rate"] for one in stretches)
    flops = stretches[0]["flops"]
    return {
        "speed": useful / seconds,
        "bare": useful / bare,
        "useful_share": useful / tokens,
        "mfu": tokens / bare * flops / rate,
        "rate": rate,
    }


@dataclass
class Side:
    """What a process trains."""

    loss: Loss
    batches: Iterator[Batch]
    model: nn.Module
    flops: float
    """Of a token, forward and backward."""
    first: Sequence[Batch] = ()
    """Where batches differ in width, one of each width, to be compiled before the first stretch."""


def serve(arguments: argparse.Namespace, request: dict[str, Any]) -> None:
    """A worker: prepare, compile, then a stretch for every line that asks for one."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    device = pick_device()
    side = build(arguments, request, device)
    optimizers = optimizers_of(side.model, request["side"])
    accumulate = max(1, arguments.batch_tokens // arguments.micro_batch_tokens)
    for batch in itertools.chain(side.first, itertools.islice(side.batches, 2)):
        side.loss(batch.to(device)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print("{}", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        rate = matmul_rate(device, pick_dtype("auto", device), seconds=1.0)
        found = stretch(side, optimizers, accumulate, device, arguments.seconds)
        print(json.dumps(found | {"rate": rate, "flops": side.flops}), flush=True)
    parameters = sum(parameter.numel() for parameter in side.model.parameters())
    print(json.dumps({"peak_bytes": peak_memory(device), "parameters": parameters}), flush=True)


def stretch(
    side: Side, optimizers: list[torch.optim.Optimizer], accumulate: int, device: torch.device, seconds: float
) -> dict[str, float]:
    """Optimizer steps for so many seconds: tokens, and the time with and without the optimizer."""
    useful = tokens = 0
    spent = bare = 0.0
    while spent < seconds:
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(accumulate):
            batch = next(side.batches)
            useful, tokens = useful + batch.useful_tokens(), tokens + batch.input_ids.numel()
            (side.loss(batch.to(device)) / accumulate).backward()
        synchronise(device)
        middle = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronise(device)
        bare += middle - begin
        spent += time.perf_counter() - begin
    return {"useful": useful, "tokens": tokens, "seconds": spent, "bare_s": bare}


def optimizers_of(model: nn.Module, side: str) -> list[torch.optim.Optimizer]:
    if side == "cutaway":
        return make_optimizers(model, optimizer="adamw", muon_lr=0.0, adam_lr=1e-4, weight_decay=0.1)
    # Fused where a peer is shown at its best, not where a script is shown as it is.
    fused = "fp32" not in side and side != "minimind"
    return [torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=fused)]


def build(arguments: argparse.Namespace, request: dict[str, Any], device: torch.device) -> Side:
    """The model, the loss and the batches of a side."""
    tokenizer = Tokenizer.load(arguments.tokenizer)
    length, side = request.get("row_length", arguments.row_length), request["side"]
    rows = max(1, request.get("micro_batch_tokens", arguments.micro_batch_tokens) // length)
    config = shape_of(request["recipe"], tokenizer, length)
    path = arguments.pretrain if request["kind"] == "pretrain" else arguments.sft
    cache = build_cache([path], tokenizer, request["kind"], max_tokens=length + 1)
    flops = float(CausalLM(config).flops_per_token(length))
    packed = RowSource(cache, rows=rows, seq=length, prefetch=2)
    padded = PaddedRows(cache, np.arange(len(cache)), rows, length, seed=0, group="grouped" in side)
    if side == "cutaway":
        model = CausalLM(config)
        initialise(model, 0)
        network = Network(model, Ranks(0, 1, device), pick_dtype("auto", device))
        network.compile()
        return Side(lambda batch: network.token_losses(batch).sum() / batch.trained_tokens(), packed, model, flops)
    precise = "fp32" in side or side == "minimind"
    if side.startswith("hf"):
        from against_transformers import peer_model

        peer = peer_model(config, 0).to(device)
        widths = range(WIDTH, length + WIDTH, WIDTH) if "grouped" in side else ()
        # Past the limit, by itself eight shapes, the rest would not be compiled.
        torch._dynamo.config.recompile_limit = max(16, len(widths))
        zeros = [torch.zeros(rows, min(length, width), dtype=torch.int64) for width in widths]
        first = [Batch(zero, zero, zero, zero) for zero in zeros]
        loss = loss_of(causal_logits(peer), precise, device)
        return Side(loss, packed if "packed" in side else padded, peer, flops, first)
    if side == "litgpt":
        theirs = litgpt_model(config, length).to(device)
        return Side(loss_of(theirs, precise, device), packed, theirs, flops)
    if side == "minimind":
        theirs = minimind_model(arguments.minimind, config).to(device)
        return Side(loss_of(lambda ids: theirs(ids).logits, precise, device), padded, theirs, flops)
    if side == "nanochat":
        theirs = nanochat_model(arguments.nanochat, config, length).to(device)
        compiled = torch.compile(theirs, dynamic=False)

        def loss(batch: Batch) -> Tensor:
            with autocast(device, pick_dtype("auto", device)):
                found: Tensor = compiled(batch.input_ids, batch.targets.where(batch.targets >= 0, -1))
            return found

        return Side(loss, packed, theirs, float(theirs.estimate_flops()))
    raise UserError(f"no side '{side}': one of {', '.join(SIDES)}, litgpt, minimind, nanochat")


def shape_of(recipe: str, tokenizer: Tokenizer, length: int) -> ModelConfig:
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    return derive_model(load_recipe(recipe).model, tokenizer.vocab_size, length, ids)[0]


def causal_logits(peer: Any) -> Callable[[Tensor], Tensor]:
    """Of a `transformers` model without a mask: padding is on the right, where no trained token looks.

    Compiled, it would make a dense one of its own, in which packed documents could be told apart, and repeat keys and
    values for it. For an attention that it does not know it makes none, so its own is given another name.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("causal", sdpa_attention_forward)
    peer.set_attn_implementation("causal")
    return lambda ids: peer(input_ids=ids, use_cache=False).logits


def loss_of(logits: Callable[[Tensor], Tensor], precise: bool, device: torch.device) -> Loss:
    """Cross-entropy of a peer's logits; compiled, each shape for itself, and in bf16 unless `precise`."""

    def mean(ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(ids).flatten(0, 1).float(), targets.flatten(), ignore_index=-100)

    called = mean if precise else torch.compile(mean, dynamic=False)

    def loss(batch: Batch) -> Tensor:
        with autocast(device, torch.float32 if precise else pick_dtype("auto", device)):
            found: Tensor = called(batch.input_ids, batch.targets)
        return found

    return loss


def litgpt_model(config: ModelConfig, length: int) -> nn.Module:
    from litgpt import GPT, Config

    return GPT(
        Config(
            block_size=length,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.num_hidden_layers,
            n_embd=config.hidden_size,
            n_head=config.num_attention_heads,
            n_query_groups=config.num_key_value_heads,
            head_size=config.head_dim,
            intermediate_size=config.intermediate_size,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )


def minimind_model(checkout: str, config: ModelConfig) -> nn.Module:
    sys.path.insert(0, checkout)
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: getattr(config, name) for name in (*names, "num_key_value_heads", "head_dim")}
    return MiniMindForCausalLM(MiniMindConfig(**shape))


def nanochat_model(checkout: str, config: ModelConfig, length: int) -> Any:
    sys.path.insert(0, checkout)
    from nanochat.gpt import GPT, GPTConfig

    model = GPT(
        GPTConfig(
            sequence_len=length,
            vocab_size=config.vocab_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_kv_head=config.num_key_value_heads,
            n_embd=config.hidden_size,
        )
    )
    model.init_weights()
    return model


def sweep(arguments: argparse.Namespace, kept: Kept) -> None:
    """Our own step by size, row length and micro-batch."""
    print("\n| recipe | row length | micro-batch, tokens | tokens/s, bare | MFU | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for recipe in arguments.recipes:
        cells = [(length, arguments.micro_batch_tokens) for length in arguments.row_lengths]
        cells += [(arguments.row_length, size) for size in arguments.micro_batches]
        for length, size in dict.fromkeys(cells):
            name = named(f"sweep {recipe} {length} {size}", arguments, "pretrain", "tokenizer", "batch_tokens")
            if kept.missing([name]):
                request = {"recipe": recipe, "kind": "pretrain", "side": "cutaway"}
                request |= {"row_length": length, "micro_batch_tokens": size}
                process = start(arguments, request)
                stretches = [ask(process, "go") for _ in range(arguments.rounds)]
                kept.add(name, summed(stretches) | ask(process, "end"))
                process.wait()
            row = kept.found[name]
            print(
                f"| {recipe} | {length} | {size:,} | {row['bare']:,.0f} | {row['mfu']:.1%} "
                f"| {row['peak_bytes'] / 1e9:.2f} GB |",
                flush=True,
            )


def parts(arguments: argparse.Namespace, kept: Kept) -> None:
    """Tokenising, packing, the optimizers and a checkpoint, each alone; generation has `generation.py`."""
    tokenizer, device = Tokenizer.load(arguments.tokenizer), pick_device()
    keep_freed_memory()
    deciding = ("tokenizer", "row_length", "micro_batch_tokens")
    name = named("data", arguments, "pretrain", *deciding)
    if kept.missing([name]):
        kept.add(name, data_speed(arguments, tokenizer))
    row = kept.found[name]
    print(
        f"\ndata: tokenised {row['tokenise']:,.0f} tokens/s with {row['workers']} processes; packed and assembled ",
        end="",
    )
    print(f"{row['rows']:,.0f} tokens/s in one thread; padding {1 - row['useful_share']:.2%}")
    print("\n| recipe | AdamW | Muon | share of a step: AdamW | Muon | checkpoint, MB | saved in | restored in |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe in arguments.recipes:
        name = named(f"parts {recipe}", arguments, *deciding, "batch_tokens")
        if kept.missing([name]):
            kept.add(name, part_times(arguments, shape_of(recipe, tokenizer, arguments.row_length), device))
        row = kept.found[name]
        shares = {kind: row[kind] / (row[kind] + row["passes_s"]) for kind in ("adamw", "muon")}
        print(
            f"| {recipe} | {row['adamw'] * 1e3:.1f} ms | {row['muon'] * 1e3:.1f} ms | {shares['adamw']:.1%} "
            f"| {shares['muon']:.1%} | {row['bytes'] / 1e6:.0f} | {row['save_s']:.2f} s | {row['restore_s']:.2f} s |",
            flush=True,
        )


def data_speed(arguments: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """The pipeline without a model behind it; the cache is built anew, in a folder that goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cache: TokenCache = build_cache([arguments.pretrain], tokenizer, "pretrain", root=folder)
        tokenise_s = time.perf_counter() - begin
        tokens = int(cache.offsets[-1])
        source = RowSource(cache, rows=arguments.micro_batch_tokens // arguments.row_length, seq=arguments.row_length)
        next(source)
        useful = given = 0
        begin = time.perf_counter()
        while time.perf_counter() - begin < arguments.seconds:
            batch = next(source)
            useful, given = useful + batch.useful_tokens(), given + batch.input_ids.numel()
        rows_s = time.perf_counter() - begin
    found = {"tokenise": tokens / tokenise_s, "workers": os.cpu_count(), "rows": given / rows_s}
    return found | {"useful_share": useful / given}


def part_times(arguments: argparse.Namespace, config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Updates by both optimizers, the compiled passes of a step beside them, a checkpoint there and back."""
    dtype = pick_dtype("auto", device)
    model = CausalLM(config)
    initialise(model, 0)
    network = Network(model, Ranks(0, 1, device), dtype)
    muon_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16

    def optimizers(kind: Any) -> Callable[[nn.Module], list[torch.optim.Optimizer]]:
        rates = {"muon_lr": 0.02, "adam_lr": 1e-4, "weight_decay": 0.1, "muon_dtype": muon_dtype}
        return lambda twin: make_optimizers(twin, optimizer=kind, **rates)

    found = {kind: seconds_per_update(model, optimizers(kind), device) for kind in ("adamw", "muon")}
    rows = RandomRows(
        config, DataSize(1, 1), arguments.micro_batch_tokens // arguments.row_length, arguments.row_length
    )
    network.compile()

    def passes(batch: Batch) -> None:
        torch.autograd.backward(network.token_losses(batch).mean())

    micro_s = seconds_per_micro_batch(passes, rows.batch.to(device), device, least=5)
    found["passes_s"] = micro_s * max(1, arguments.batch_tokens // arguments.micro_batch_tokens)
    chosen = optimizers("muon")(model)
    for optimizer in chosen:
        optimizer.step()
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name), 2)
        begin = time.perf_counter()
        checkpoints.save(1, model, chosen, {})
        found["save_s"] = time.perf_counter() - begin
        files = list(Path(name, "state").rglob("*.safetensors"))
        found["bytes"] = float(sum(file.stat().st_size for file in files))
        begin = time.perf_counter()
        checkpoints.restore(model, chosen, publish=False)
        found["restore_s"] = time.perf_counter() - begin
        shutil.rmtree(Path(name, "state"))
    return found


if __name__ == "__main__":
    main()
