"""Cutaway's training beside loops over a `transformers` Llama of the same shape, in one run.

    python benchmarks/against_transformers.py speed   --pretrain P.jsonl.xz --sft S.jsonl.xz --tokenizer DIR
    python benchmarks/against_transformers.py quality --pretrain P.jsonl.xz --tokenizer DIR --minutes 15 --seeds 2
        [--peers padded tuned] [--peer-lrs 2e-3 4e-3 8e-3] [--together]

`speed` alternates short stretches of ours and `padded`, so that a noisy machine hurts both alike, and prints useful
(non-padding) tokens a second and the share of the bf16 matrix-product rate measured between them. `quality` trains each
side for the same wall-clock, start and compilation from an empty cache included, and prints bits per byte of the same
held-out documents. The peers, both with AdamW, 3 % warm-up and cosine decay:

    padded    what MiniMind's scripts do: a document a row, padded and truncated, fp32, no compilation
    tuned     the loop at its best: packed rows without a mask between documents, compiled, bf16 where there are units

With several `--peer-lrs` the first seed tries them all, and the others take the best. Results are kept in `--json`, by
what decides them, and not measured again, so a stopped run goes on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.data.cache import TokenCache, build_cache, split_holdout
from cutaway.data.loader import Batch, RowSource, evaluation_batches
from cutaway.evals.bpb import bits_per_byte
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, load_model
from cutaway.recipe.files import load_recipe
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks
from cutaway.training.metrics import matmul_rate, read_metrics
from cutaway.training.network import Network
from cutaway.training.optim import make_optimizers
from cutaway.training.precision import keep_freed_memory
from padded import PaddedRows
from training_speed import Kept, causal_logits, loss_of, machine, named

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
HOLDOUT = 131072
OURS, PEERS = "cutaway", ("padded", "tuned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "quality", "peer"])
    parser.add_argument("--pretrain", required=True)
    parser.add_argument("--sft")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="for quality")
    parser.add_argument("--peer-rows", type=int, default=16, help="rows in a step of a peer")
    parser.add_argument("--peer-lrs", type=float, nargs="+", default=[5e-4], help="peak learning rates of the peers")
    parser.add_argument("--together", action="store_true", help="quality: two at once, a core each")
    parser.add_argument("--json", default="benchmarks/results/quality.json", help="where results of quality are kept")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args()
    keep_freed_memory()  # both sides gain from it
    tokenizer = Tokenizer.load(arguments.tokenizer)
    recipe = load_recipe(arguments.recipe)
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, _ = derive_model(recipe.model, tokenizer.vocab_size, arguments.row_length, ids)
    if arguments.what == "peer":
        train_peer(arguments, config, tokenizer)
        return
    print(f"{machine()}, torch {torch.__version__}")
    if arguments.what == "quality":
        quality(arguments, config, tokenizer)
        return
    result = speed(arguments, config, tokenizer)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    name = "against_transformers_speed.json"
    (out / name).write_text(json.dumps({"arguments": vars(arguments), "result": result}, indent=1) + "\n")


def peer_model(config: ModelConfig, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: getattr(config, name) for name in (*names, "num_key_value_heads", "head_dim")}
    return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=True))


def own_model(config: ModelConfig, seed: int) -> CausalLM:
    model = CausalLM(config)
    initialise(model, seed)
    return model


def peer_step(model: LlamaForCausalLM) -> Callable[[Batch], Tensor]:
    def step(batch: Batch) -> Tensor:
        mask = (batch.documents >= 0).long()
        logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    return step


def own_step(model: CausalLM) -> Callable[[Batch], Tensor]:
    network = Network(model, ALONE, torch.bfloat16)
    network.compile()
    return lambda batch: network.token_losses(batch).sum() / batch.trained_tokens()


def speed(arguments: argparse.Namespace, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Useful tokens a second with the optimizer, and the share of the matrix rate without it."""
    result: dict[str, object] = {}
    for kind, path in (("pretrain", arguments.pretrain), ("sft", arguments.sft)):
        if path is None:
            continue
        cache = build_cache([path], tokenizer, kind, max_tokens=arguments.row_length + 1)
        everything = np.arange(len(cache))
        rows = 8192 // arguments.row_length
        peer, own = peer_model(config, 0), own_model(config, 0)
        sides = {
            "transformers, padded, fp32": (
                peer_step(peer),
                PaddedRows(cache, everything, 8, arguments.row_length, 0),
                [torch.optim.AdamW(peer.parameters(), lr=1e-4)],
                1,
            ),
            "cutaway": (
                own_step(own),
                RowSource(cache, rows=rows, seq=arguments.row_length, prefetch=2),
                make_optimizers(own, optimizer="adamw", muon_lr=0.0, adam_lr=1e-4, weight_decay=0.1),
                4,
            ),
        }
        for step, batches, _, _ in sides.values():
            for _ in range(2):
                step(next(batches)).backward()
        totals = {name: [0.0, 0.0, 0.0] for name in sides}  # useful tokens, seconds, seconds without the optimizer
        rates = []
        for _ in range(3):
            for name, (step, batches, optimizers, accumulate) in sides.items():
                rates.append(matmul_rate(CPU, torch.bfloat16, seconds=1.0))
                _stretch(totals[name], step, batches, optimizers, accumulate, seconds=15.0)
        rate = float(np.median(rates))
        table = {}
        for name, (tokens, seconds, bare) in totals.items():
            table[name] = {"tokens_per_second": tokens / seconds, "tokens_per_second_bare": tokens / bare}
        flops = own.flops_per_token(arguments.row_length)
        padding = _fill(RowSource(cache, rows=rows, seq=arguments.row_length))
        table["cutaway"]["mfu_without_optimizer"] = table["cutaway"]["tokens_per_second_bare"] / padding * flops / rate
        causal = own.causal_flops_per_token(arguments.row_length)
        table["cutaway"]["mfu_causal"] = table["cutaway"]["tokens_per_second_bare"] / padding * causal / rate
        ratio = table["cutaway"]["tokens_per_second"] / table["transformers, padded, fp32"]["tokens_per_second"]
        print(f"\n{kind}, row length {arguments.row_length}, {own.num_parameters() / 1e6:.1f}M parameters")
        for name, values in table.items():
            print(f"  {name:28s}", "  ".join(f"{key} {value:,.3g}" for key, value in values.items()))
        print(
            f"  ratio {ratio:.2f}; bf16 matrix products {rate / 1e9:.0f} GFLOP/s (median of {len(rates)})", flush=True
        )
        result[kind] = table | {"ratio": ratio, "bf16_gflops": rate / 1e9}
    return result


def _stretch(
    totals: list[float],
    step: Callable[[Batch], Tensor],
    batches: Iterator[Batch],
    optimizers: list[torch.optim.Optimizer],
    accumulate: int,
    seconds: float,
) -> None:
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        for _ in range(accumulate):
            batch = next(batches)
            (step(batch) / accumulate).backward()
            totals[0] += batch.useful_tokens()
        middle = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        totals[1] += time.perf_counter() - begin
        totals[2] += middle - begin


def _fill(source: RowSource) -> float:
    batch = next(source)
    return batch.useful_tokens() / batch.input_ids.numel()


def quality(arguments: argparse.Namespace, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """A table of bits per byte of the same held-out documents after the same wall-clock.

    Ours is the plain `cutaway pretrain` command with its derived settings. With `--together` two sides run at the same
    time, each with one thread on a core of its own, so that a noisy machine cannot favour one of them.
    """
    kept, best = Kept(Path(arguments.json)), {}
    cache = build_cache([arguments.pretrain], tokenizer, "pretrain")
    print("\n| seed | side | peak rate | steps | tokens | clock, s | held-out bits per byte |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(arguments.seeds):
        tries = [(peer, rate) for peer in arguments.peers for rate in best.get(peer, arguments.peer_lrs)]
        runs = {side: _named(arguments, *side, seed) for side in [*tries, (OURS, 0.0)]}
        missing = [side for side, name in runs.items() if name not in kept.found]
        at_once = 2 if arguments.together else 1
        for start in range(0, len(missing), at_once):
            some = missing[start : start + at_once]
            for side, found in zip(some, _trained(arguments, config, cache, some, seed), strict=True):
                kept.add(runs[side], found)
        for (side, rate), name in runs.items():
            row = kept.found[name]
            shown = "" if side == OURS else f"{rate:g}"
            numbers = f"{row['steps']:,} | {row['tokens']:,.0f} | {row['seconds']:.0f} | {row['bpb']:.4f}"
            print(f"| {seed} | {side} | {shown} | {numbers} |", flush=True)
        for peer in arguments.peers:
            ends = {rate: kept.found[name]["bpb"] for (side, rate), name in runs.items() if side == peer}
            best[peer] = [min(ends, key=ends.__getitem__)]


def _named(arguments: argparse.Namespace, side: str, rate: float, seed: int) -> str:
    """What decides a result."""
    deciding = ("pretrain", "tokenizer", "row_length", "minutes", "together")
    peer = f" at {rate:g}, {arguments.peer_rows} rows" if side != OURS else ""
    return named(f"{arguments.recipe} {side}{peer}, seed {seed}", arguments, *deciding)


def _trained(
    arguments: argparse.Namespace, config: ModelConfig, cache: TokenCache, sides: list[tuple[str, float]], seed: int
) -> list[dict[str, float]]:
    """Train these sides, at once where they are two, and measure what they end with; the seconds are of them all."""
    # All sides leave out the documents that the same hash of seed and content chooses.
    _, heldout = split_holdout(cache, HOLDOUT, seed)
    held, num_bytes = evaluation_batches(cache, heldout, 8, arguments.row_length)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(sides))]
        begun = time.perf_counter()
        running = []
        for core, ((side, rate), place) in enumerate(zip(sides, places, strict=True)):
            place.mkdir()
            command = (
                _own_command(arguments, seed, place)
                if side == OURS
                else _peer_command(arguments, side, rate, seed, place)
            )
            running.append(_begun(command, place, core if len(sides) > 1 else None))
        codes = [process.wait() for process in running]
        seconds = time.perf_counter() - begun
        if any(codes):
            raise SystemExit(f"a training process failed: exit codes {codes}")
        found = []
        for (side, _), place in zip(sides, places, strict=True):
            network, steps, tokens = _own_end(place) if side == OURS else _peer_end(place, config)
            bpb = bits_per_byte(network, held, num_bytes)["bpb"]
            found.append({"bpb": bpb, "steps": steps, "tokens": tokens, "seconds": seconds})
    return found


def _own_end(place: Path) -> tuple[Network, int, float]:
    last = read_metrics(place / "own")[-1]
    return Network(load_model(place / "own"), ALONE, torch.float32), int(last["step"]), last["tokens"]


def _peer_end(place: Path, config: ModelConfig) -> tuple[Network, int, float]:
    told = json.loads((place / "peer.json").read_text())
    peer = peer_model(config, 0)
    peer.load_state_dict(load_file(place / "peer.safetensors"), strict=False)
    return as_network(peer), told["steps"], told["tokens"]


def _peer_command(arguments: argparse.Namespace, side: str, rate: float, seed: int, place: Path) -> list[str]:
    flags = {"pretrain": arguments.pretrain, "tokenizer": arguments.tokenizer, "recipe": arguments.recipe}
    flags |= {"row-length": arguments.row_length, "minutes": arguments.minutes, "peer-lrs": rate, "peers": side}
    flags |= {"peer-rows": arguments.peer_rows, "seed": seed, "out": str(place)}
    return [
        sys.executable,
        __file__,
        "peer",
        *(str(part) for key, value in flags.items() for part in (f"--{key}", value)),
    ]


def _own_command(arguments: argparse.Namespace, seed: int, place: Path) -> list[str]:
    flags = {"recipe": arguments.recipe, "data": arguments.pretrain, "init": arguments.tokenizer, "scripts": "keep"}
    flags |= {"row-length": arguments.row_length, "minutes": arguments.minutes, "holdout-tokens": HOLDOUT}
    flags |= {"eval-every": 1000000, "sample-every": 0, "out": f"{place}/own", "seed": seed}
    return [sys.executable, "-m", "cutaway", "pretrain", *(str(p) for key, v in flags.items() for p in (f"--{key}", v))]


def _begun(command: list[str], place: Path, core: int | None) -> "subprocess.Popen[bytes]":
    """The process, its compiler's cache empty; with a core's number, on that core alone."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(place / "compiled")}
    if core is None:
        return subprocess.Popen(command, env=environment)
    alone = environment | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=alone, preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def train_peer(arguments: argparse.Namespace, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """The training process of a peer."""
    start, budget = time.perf_counter(), arguments.minutes * 60
    (side,), (rate,), rows = arguments.peers, arguments.peer_lrs, arguments.peer_rows
    cache = build_cache([arguments.pretrain], tokenizer, "pretrain")
    train, _ = split_holdout(cache, HOLDOUT, arguments.seed)
    model = peer_model(config, arguments.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.95), fused=side == "tuned"
    )
    batches: Iterator[Batch]
    if side == "tuned":
        batches = RowSource(cache, train, rows=rows, seq=arguments.row_length, seed=arguments.seed, prefetch=2)
        step = loss_of(causal_logits(model), precise=False, device=CPU)
    else:
        batches = PaddedRows(cache, train, rows, arguments.row_length, arguments.seed)
        step = peer_step(model)
    step(next(batches)).backward()  # compiled
    optimizer.zero_grad(set_to_none=True)
    steps, tokens, ready = 0, 0.0, time.perf_counter()
    left = budget - (ready - start)
    if left <= 0:
        raise SystemExit(f"{side}: reading and compiling took all of {arguments.minutes:g} minutes")
    while (done := (time.perf_counter() - ready) / left) < 1:
        # The schedule follows the clock, so that it ends when the time does: 3 % warm-up, cosine to 10 %.
        factor = done / 0.03 if done < 0.03 else 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * max(factor, 0.01)
        batch = next(batches)
        loss = step(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps, tokens = steps + 1, tokens + batch.useful_tokens()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, Path(arguments.out, "peer.safetensors"))
    Path(arguments.out, "peer.json").write_text(json.dumps({"steps": steps, "tokens": tokens}))


def as_network(peer: LlamaForCausalLM) -> Network:
    """The peer under our evaluation."""
    return Network(cast(CausalLM, _AsOurs(peer)), ALONE, torch.float32)


class _AsOurs(torch.nn.Module):
    """The peer with our signature: packed rows and a 4-D mask, since a document at a time would be slow."""

    def __init__(self, peer: LlamaForCausalLM) -> None:
        super().__init__()
        self.peer = peer

    def forward(
        self, input_ids: Tensor, *, positions: Tensor, documents: Tensor, targets: Tensor, **_: object
    ) -> Tensor:
        same = documents.unsqueeze(2) == documents.unsqueeze(1)
        allowed = (same & torch.ones_like(same).tril()).unsqueeze(1)
        logits = self.peer(input_ids=input_ids, position_ids=positions, attention_mask=allowed).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return nll.view(targets.shape)


if __name__ == "__main__":
    sys.exit(main())
