"""One self-contained run on a borrowed GPU: from text to a chat model in minutes, MFU, fused paths against plain ones.

    python benchmarks/gpu_run.py --pretrain D/pretrain_mix.jsonl.xz --sft D/sft_mix.jsonl.xz --out OUT
        [--recipe mini] [--tokens 260000000] [--epochs 3] [--minutes 8] [--parts train mfu equal memory]
    python benchmarks/gpu_run.py --parts memory --out OUT        [--cards mini=8 small=12]

Needs what the package needs but tyro, and no network: it works from the source tree. `train` makes a vocabulary unless
`--tokenizer` names one, pretrains on so many tokens, fine-tunes for so many epochs, by the stages that the commands
run, and asks the result the prompts of `prompts.jsonl`. A speed measurement shortens the pretraining where it would not
end in time, and says so. `mfu` times steps of `mini` and `small` at several micro-batches against the matrix-product
rate measured beside them, and lists the kernels that took longest.
`equal` compares losses and gradients of the compiled bf16 network and of the plain one with those in fp32, and the
logits of decoding steps recorded as CUDA graphs with those of steps launched one by one. `memory` takes a step of each
recipe with no more memory than a card of so many GB has, at the micro-batch that a run on such a card derives, compiled
or not, with activation checkpointing or without, and puts the
peak beside what `cutaway plan` computes. OUT gets at most eight files of under 15 MB: `report.json` and `report.md`,
`rest.tar.gz` (both runs' metrics, samples, curves, recipes, tokenizer, logs, the index of the weights), and the weights
in bf16, sharded. It is written anew after every part, so that a run that is cut off leaves what it has. What needs a
GPU runs on a processor too, with small numbers.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from cutaway.data.loader import Batch  # noqa: E402
from cutaway.generation.conversation import answer_prompt  # noqa: E402
from cutaway.generation.decoder import PackedDecoder  # noqa: E402
from cutaway.generation.defaults import load_sampling  # noqa: E402
from cutaway.generation.generate import generate  # noqa: E402
from cutaway.generation.kv_cache import KVCache  # noqa: E402
from cutaway.generation.recorded import Graphs, RecordedSteps, Recorder, as_it_is  # noqa: E402
from cutaway.model.transformer import CausalLM  # noqa: E402
from cutaway.model.weights import initialise, load_model, write_safetensors, write_text  # noqa: E402
from cutaway.recipe.files import load_recipe, save_recipe  # noqa: E402
from cutaway.recipe.recipe import RunSettings  # noqa: E402
from cutaway.recipe.stages import PretrainSettings  # noqa: E402
from cutaway.stages.rehearsal import DataSize, RandomRows, measure, peak_memory, staged_model  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402
from cutaway.training.derive import derive_model  # noqa: E402
from cutaway.training.distributed import Ranks  # noqa: E402
from cutaway.training.horizon import seconds_per_micro_batch  # noqa: E402
from cutaway.training.metrics import matmul_rate, read_metrics  # noqa: E402
from cutaway.training.network import Network  # noqa: E402
from cutaway.training.plan import GPUS, cost, step_memory  # noqa: E402
from cutaway.training.precision import pick_device, pick_dtype  # noqa: E402

SHARD_BYTES = 14_000_000
RESERVED_S = 100.0
"""Of `--minutes`, for fine-tuning and for compiling twice."""
ESTIMATED_MFU = 0.35
"""Of an RTX 3090, for the estimate: what MiniMind's published hours come to."""
YUAN_A_DOLLAR = 7.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", help="for train")
    parser.add_argument("--sft", help="for train")
    parser.add_argument("--tokenizer", help="a tokenizer directory; without it one is trained")
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", help="folder of the runs, which may be large; default: OUT beside, with -work")
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--scripts", help="as of the commands; default: the recipe's, or keep without OpenCC")
    parser.add_argument("--tokens", type=int, default=260_000_000)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--vocab-size", type=int, default=6400)
    parser.add_argument("--compile", default="on", choices=["auto", "on", "off"])
    parser.add_argument("--holdout-tokens", type=int, default=262144)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[32768, 65536, 131072], help="tokens, for mfu")
    parser.add_argument("--mfu-recipes", nargs="+", default=["mini", "small"])
    parser.add_argument("--cards", nargs="+", default=["mini=8", "small=12"], help="recipe=GB, for memory")
    parts = {"train": train, "mfu": mfu, "equal": equal, "memory": memory}
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    arguments = parser.parse_args()
    if "train" in arguments.parts and not (arguments.pretrain and arguments.sft):
        parser.error("train needs --pretrain and --sft")
    torch.set_float32_matmul_precision("high")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    work = Path(arguments.work or f"{out}-work")
    work.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    report: dict[str, Any] = {"device": name, "torch": str(torch.__version__), "arguments": vars(arguments)}
    for part in arguments.parts:
        began = time.monotonic()
        report[part] = parts[part](arguments, work, device)
        report[part]["seconds"] = round(time.monotonic() - began, 1)
        print(f"{part}: {json.dumps(report[part], ensure_ascii=False)[:4000]}", flush=True)
        write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", out / "report.json")
        write_text(described(report), out / "report.md")
        bring(work, out)


def train(arguments: argparse.Namespace, work: Path, device: torch.device) -> dict[str, Any]:
    """Vocabulary, pretraining, fine-tuning, questions; within the minutes."""
    began = time.monotonic()
    tokenizer_dir = work / "tokenizer"
    recipe = load_recipe(arguments.recipe)
    scripts = arguments.scripts or (recipe.pretrain.scripts if has_opencc() else "keep")
    if arguments.tokenizer:  # by itself: from a directory with a model in it, pretraining would go on with that model
        Tokenizer.load(arguments.tokenizer).save(tokenizer_dir)
    else:
        make_tokenizer(arguments, scripts, tokenizer_dir)
    tokenizer = Tokenizer.load(tokenizer_dir)
    found: dict[str, Any] = {"tokenizer_s": time.monotonic() - began, "scripts": scripts}
    common = {"scripts": scripts, "compile": arguments.compile, "holdout_tokens": arguments.holdout_tokens}
    common |= dict.fromkeys(("minutes", "tokens", "steps", "epochs"))
    rate = steady_speed(arguments, tokenizer, device)
    left = arguments.minutes * 60 - (time.monotonic() - began) - RESERVED_S
    tokens = int(min(arguments.tokens, max(1.0, left) * 0.9 * rate))
    if tokens < arguments.tokens:
        print(f"{arguments.tokens:,} tokens would not fit {arguments.minutes:g} minutes: {tokens:,}", flush=True)
    stages = {
        "pretrain": (arguments.pretrain, str(tokenizer_dir), common | {"tokens": tokens}),
        "sft": (arguments.sft, str(work / "pretrain"), common | {"epochs": arguments.epochs}),
    }
    for stage, (data, init, settings) in stages.items():
        chosen = dataclasses.replace(getattr(recipe, stage), **settings)
        run = RunSettings(data=(str(Path(data).resolve()),), out=str(work / stage), init=init)
        path = work / f"{stage}.toml"
        save_recipe(dataclasses.replace(recipe, **{stage: chosen}), path, run, {})
        started = time.monotonic()
        stage_process(stage, path, work / f"{stage}.log")
        found[stage] = summary(work / stage) | {"wall_s": round(time.monotonic() - started, 1)}
    found["total_s"] = round(time.monotonic() - began, 1)
    found["answers"] = answers(work / "sft", device)
    return found


def has_opencc() -> bool:
    try:
        import opencc  # noqa: F401
    except ImportError:
        return False
    return True


def make_tokenizer(arguments: argparse.Namespace, scripts: str, out: Path) -> None:
    """What `cutaway tokenizer train` does, without the command."""
    from cutaway.data.texts import read_texts
    from cutaway.recipe.base import TokenizerSettings
    from cutaway.tokenization.train import train_tokenizer

    settings = TokenizerSettings(vocab_size=arguments.vocab_size, scripts=scripts)
    train_tokenizer(read_texts([arguments.pretrain], scripts), settings).save(out)


def stage_process(stage: str, recipe: Path, log: Path) -> None:
    """`python -m cutaway.stages.STAGE`, its words in a file and on the terminal."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", f"cutaway.stages.{stage}", str(recipe)]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)
    if process.wait():
        raise SystemExit(f"{stage} ended with exit code {process.returncode}; see {log}")


def summary(run: Path) -> dict[str, Any]:
    """What a run's metrics come to."""
    rows = read_metrics(run)
    trained = [row for row in rows if "loss" in row and "tokens_per_second" in row]
    heldout = [row["heldout_bpb"] for row in rows if "heldout_bpb" in row]
    speeds = sorted(row["tokens_per_second"] for row in trained)
    shares = sorted(row["mfu"] for row in trained)
    last = trained[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "tokens_per_second": speeds[len(speeds) // 2],
        "mfu": shares[len(shares) // 2],
        "elapsed_s": last["elapsed_s"],
        "heldout_bpb": [heldout[0], heldout[-1]] if heldout else [],
    }


def answers(run: Path, device: torch.device) -> list[dict[str, str]]:
    """What the model says to the first prompts of each language, with the chat's own sampling."""
    lines = (ROOT / "benchmarks" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    chosen: list[dict[str, str]] = []
    for language in dict.fromkeys(prompt["language"] for prompt in prompts):
        chosen += [prompt for prompt in prompts if prompt["language"] == language][:8]
    tokenizer = Tokenizer.load(run)
    ids = [answer_prompt([{"role": "user", "content": one["prompt"]}], tokenizer) for one in chosen]
    done = generate(load_model(run, device), ids, tokenizer, sampling=load_sampling(run), max_new_tokens=128)
    return [one | {"answer": completion.text} for one, completion in zip(chosen, done, strict=True)]


def network_of(recipe: str, vocab_size: int, length: int, device: torch.device, dtype: torch.dtype) -> Network:
    config, _ = derive_model(load_recipe(recipe).model, vocab_size, length, (0, 0))
    model = CausalLM(config)
    initialise(model, 0)
    return Network(model, Ranks(0, 1, device), dtype)


def steady_speed(arguments: argparse.Namespace, tokenizer: Tokenizer, device: torch.device) -> float:
    """Tokens a second of a step as the stage will run it; what was compiled for it is then found again on the disk."""
    network = network_of(arguments.recipe, tokenizer.vocab_size, 512, device, pick_dtype("auto", device))
    if arguments.compile == "on":
        network.compile()
    tokens = 65536 if device.type == "cuda" else 2048
    batch = RandomRows(network.model.config, DataSize(1, 1), tokens // 512, 512).batch.to(device)
    return tokens / seconds_per_micro_batch(lambda one: backward(network, one), batch, device, least=3)


def backward(network: Network, batch: Batch) -> None:
    torch.autograd.backward(network.token_losses(batch).mean())
    network.model.zero_grad(set_to_none=True)


def mfu(arguments: argparse.Namespace, work: Path, device: torch.device) -> dict[str, Any]:
    """Compiled forward and backward passes by size and micro-batch."""
    dtype, cells = pick_dtype("auto", device), []
    rate = matmul_rate(device, dtype, seconds=1.0)
    for recipe in arguments.mfu_recipes:
        for tokens in arguments.micro_batches:
            torch._dynamo.reset()
            network = network_of(recipe, arguments.vocab_size, 512, device, dtype)
            network.compile()
            batch = RandomRows(network.model.config, DataSize(1, 1), max(1, tokens // 512), 512).batch.to(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)

            def one_pass(one: Batch, network: Network = network) -> None:
                backward(network, one)

            seconds = seconds_per_micro_batch(one_pass, batch, device, least=5)
            speed = batch.input_ids.numel() / seconds
            flops = network.model.flops_per_token(512)
            cells.append(
                {
                    "recipe": recipe,
                    "micro_batch_tokens": batch.input_ids.numel(),
                    "tokens_per_second": speed,
                    "mfu": speed * flops / rate,
                    "peak_bytes": peak_memory(device),
                }
            )
            print(json.dumps(cells[-1]), flush=True)
            cells[-1]["kernels"] = kernels(functools.partial(one_pass, batch), device)
            del network, batch
    return {"matmul_rate": rate, "cells": cells}


def kernels(work: Callable[[], object], device: torch.device, most: int = 16) -> list[tuple[float, int, str]]:
    """What a GPU spends its time on: milliseconds, calls, name; the longest first."""
    if device.type != "cuda":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    found = sorted(profiler.key_averages(), key=lambda one: -one.self_device_time_total)[:most]
    return [(round(one.self_device_time_total / 1000, 3), one.count, one.key[:100]) for one in found]


def equal(arguments: argparse.Namespace, work: Path, device: torch.device) -> dict[str, Any]:
    """Loss and gradients in fp32, plain; in bf16, plain; in bf16, compiled: distances of the last two from the first.

    The compiled network is right to bf16 rounding where its distance is about that of the plain one.
    """
    batch = mixed_batch(arguments.vocab_size, 8, 512).to(device)
    torch.set_float32_matmul_precision("highest")
    losses, gradients = {}, {}
    dtypes: dict[str, tuple[torch.dtype, bool]] = {
        "fp32": (torch.float32, False),
        "plain": (torch.bfloat16, False),
        "fused": (torch.bfloat16, True),
    }
    for name, (dtype, compiled) in dtypes.items():
        torch._dynamo.reset()
        network = network_of(arguments.recipe, arguments.vocab_size, 512, device, dtype)
        if compiled:
            network.compile()
        loss = network.token_losses(batch).sum() / batch.trained_tokens()
        torch.autograd.backward(loss)
        losses[name] = float(loss)
        gradients[name] = {key: value.grad for key, value in network.model.named_parameters() if value.grad is not None}
    torch.set_float32_matmul_precision("high")
    found: dict[str, Any] = {"loss": losses}
    for name in ("plain", "fused"):
        off = {key: distance(gradients[name][key], value) for key, value in gradients["fp32"].items()}
        worst = max(off, key=lambda key: off[key])
        found[name] = {"mean": sum(off.values()) / len(off), "worst": off[worst], "worst_of": worst}
    found["equal"] = found["fused"]["worst"] <= 1.5 * found["plain"]["worst"] + 1e-3
    if device.type == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            model = network_of(arguments.recipe, arguments.vocab_size, 512, device, dtype).model
            found[f"recorded_{dtype}".replace("torch.", "")] = recorded_apart(model, dtype, Graphs)
    return found


@torch.inference_mode()
def recorded_apart(model: CausalLM, dtype: torch.dtype, recorder: Callable[[], Recorder]) -> float:
    """The largest difference of logits between recorded steps and the same launched one by one: three rows, 300
    positions, in which the cache grows, and again with other weights. Raises RuntimeError where nothing is recorded."""
    decoder, draw = PackedDecoder(model, dtype), torch.Generator().manual_seed(0)
    caches = [KVCache(model.config, 4, 512, dtype, model.head_weight.device) for _ in range(2)]
    steps = RecordedSteps(decoder, caches[0], recorder), RecordedSteps(decoder, caches[1], lambda: as_it_is)
    largest = 0.0
    for seed in range(2):
        initialise(model, seed)
        decoder.load(model)
        for position in range(300):
            ids = torch.randint(model.config.vocab_size, (3,), generator=draw).tolist()
            for cache in caches:
                cache.reserve(position + 2)
            one, other = (side.logits(ids, [position] * 3).float() for side in steps)
            largest = max(largest, float((one - other).abs().max()))
    if not steps[0].recording:
        raise RuntimeError("the decoding steps could not be recorded")
    return largest


def distance(gradient: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((gradient.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-12))


def mixed_batch(vocab_size: int, rows: int, length: int) -> Batch:
    """Rows of documents of many lengths, with a little padding at the end."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (rows, length + 1), generator=draw)
    starts = (torch.rand(rows, length, generator=draw) < 0.02).int()
    documents = starts.cumsum(1).int()
    places = torch.arange(length).expand(rows, length)
    begun = torch.where(starts.bool(), places, 0).cummax(1).values
    targets = ids[:, 1:].clone()
    targets[:, :-1][documents[:, 1:] != documents[:, :-1]] = -100
    documents[:, -5:], targets[:, -6:] = -1, -100
    return Batch(ids[:, :-1].contiguous(), targets, (places - begun).contiguous(), documents)


def memory(arguments: argparse.Namespace, work: Path, device: torch.device) -> dict[str, Any]:
    """Peaks of pretraining within the memory of small cards."""
    cells = []
    for card in arguments.cards:
        recipe, gigabytes = card.split("=")
        for compiled in ("off",) if arguments.compile == "off" else ("off", "on"):
            for checkpointing in ("off", "on"):
                torch._dynamo.reset()
                chosen = {"compile": compiled, "activation_checkpointing": checkpointing, "epochs": None}
                settings = dataclasses.replace(
                    load_recipe(recipe).pretrain, minutes=None, tokens=arguments.tokens, **chosen
                )
                cells.append({"recipe": recipe, "gigabytes": float(gigabytes)} | chosen)
                cells[-1] |= within(float(gigabytes) * 1e9, recipe, arguments.vocab_size, settings, device)
                print(json.dumps(cells[-1]), flush=True)
    return {"cells": cells}


def within(
    limit: float, recipe: str, vocab_size: int, settings: PretrainSettings, device: torch.device
) -> dict[str, Any]:
    """The rehearsal of a run in this process, which may take so many bytes of the device."""
    config, _ = derive_model(load_recipe(recipe).model, vocab_size, settings.row_length, (0, 0))
    request = {"config": config.to_dict(), "stage": "pretrain", "settings": dataclasses.asdict(settings)}
    request |= {"size": dataclasses.asdict(DataSize(settings.tokens or 0, 65536)), "spawned": time.time()}
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        share = limit / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    try:
        found = measure(request)
    except torch.cuda.OutOfMemoryError as error:
        return {"fits": False, "error": str(error).splitlines()[0]}
    finally:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    with torch.device("meta"):
        model = staged_model(config, settings)
    value_bytes = 4 if found.precision == "fp32" else 2
    computed = step_memory(model, found.rows, settings.row_length, value_bytes, found.settings["optimizer"])
    tokens = found.rows * settings.row_length
    return {
        "fits": not cuda or found.peak_bytes <= limit,
        "micro_batch_tokens": tokens,
        "computed_bytes": computed.total,
        "peak_bytes": found.peak_bytes,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else found.peak_bytes,
        "tokens_per_second": tokens / found.micro_s,
    }


def estimate(trained: dict[str, Any], model: CausalLM) -> dict[str, float]:
    """What the same work is likely to take on an RTX 3090. An estimate: nothing of it has run there."""
    gpu = GPUS["rtx3090"]
    tokens = sum(trained[stage]["tokens"] for stage in ("pretrain", "sft"))
    seconds = tokens * model.flops_per_token(512) / (gpu.flops * ESTIMATED_MFU)
    return {"minutes": seconds / 60, "yuan": cost(seconds, gpu.rent) * YUAN_A_DOLLAR}


def described(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"# {report['device']}, torch {report['torch']}", ""]
    if "train" in report:
        found = report["train"]
        lines += [f"From text to a chat model in {found['total_s'] / 60:.1f} minutes.", ""]
        lines += ["| stage | tokens | steps | tokens/s | MFU | wall, s | held-out bits per byte |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
        for stage in ("pretrain", "sft"):
            row = found[stage]
            scores = " to ".join(f"{value:.3f}" for value in row["heldout_bpb"])
            lines.append(
                f"| {stage} | {row['tokens']:,} | {row['steps']} | {row['tokens_per_second']:,.0f} | {row['mfu']:.1%} "
                f"| {row['wall_s']:.0f} | {scores} |"
            )
        arguments = report["arguments"]
        with torch.device("meta"):
            config, _ = derive_model(load_recipe(arguments["recipe"]).model, arguments["vocab_size"], 512, (0, 0))
            guess = estimate(found, CausalLM(config))
        lines += ["", f"RTX 3090, an estimate from the FLOPs at {ESTIMATED_MFU:.0%} of its peak: "]
        lines[-1] += f"{guess['minutes']:.0f} minutes, {guess['yuan']:.2f} yuan."
        lines.append("")
        lines += [f"- {one['prompt']}\n    {one['answer'].strip()}" for one in found["answers"]]
    if "mfu" in report:
        lines += ["", f"Matrix products: {report['mfu']['matmul_rate'] / 1e12:.0f} TFLOP/s.", ""]
        lines += ["| recipe | micro-batch | tokens/s | MFU | peak memory |", "| --- | ---: | ---: | ---: | ---: |"]
        for row in report["mfu"]["cells"]:
            lines.append(
                f"| {row['recipe']} | {row['micro_batch_tokens']:,} | {row['tokens_per_second']:,.0f} "
                f"| {row['mfu']:.1%} | {row['peak_bytes'] / 1e9:.1f} GB |"
            )
    if "memory" in report:
        lines += [
            "",
            "| recipe | card | compiled | checkpointing | micro-batch | computed | peak | reserved | tokens/s |",
        ]
        lines += ["| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in report["memory"]["cells"]:
            start = (
                f"| {row['recipe']} | {row['gigabytes']:g} GB | {row['compile']} | {row['activation_checkpointing']} "
            )
            if "error" in row:
                lines.append(f"{start}| DOES NOT FIT: {row['error']} | | | | |")
                continue
            sizes = [row[name] / 1e9 for name in ("computed_bytes", "peak_bytes", "reserved_bytes")]
            lines.append(
                f"{start}| {row['micro_batch_tokens']:,} | {' | '.join(f'{size:.2f} GB' for size in sizes)} "
                f"| {row['tokens_per_second']:,.0f} |"
            )
    if "equal" in report:
        found = report["equal"]
        lines += ["", f"Gradients, distance from fp32: plain bf16 {found['plain']['mean']:.2e} (worst "]
        lines[-1] += f"{found['plain']['worst']:.2e}), compiled {found['fused']['mean']:.2e} (worst "
        lines[-1] += f"{found['fused']['worst']:.2e}): {'equal to rounding' if found['equal'] else 'NOT EQUAL'}."
        apart = [f"{name} {found[name]:.1e}" for name in ("recorded_float32", "recorded_bfloat16") if name in found]
        lines += ["", f"Recorded decoding steps, largest difference of a logit: {', '.join(apart)}."] if apart else []
    return "\n".join(lines) + "\n"


def bring(work: Path, out: Path) -> None:
    """The newest weights in bf16, in files that are small enough to be sent, and everything small in one archive."""
    newest = [work / stage / "model.safetensors" for stage in ("sft", "pretrain")]
    weights = next((path for path in newest if path.is_file()), None)
    if weights is not None:
        shard(weights, work, out)
    with tarfile.open(out / "rest.tar.gz", "w:gz") as archive:
        for path in sorted(work.rglob("*")):
            small = path.is_file() and path.suffix != ".safetensors" and path.stat().st_size < 4e6
            if small and "state" not in path.parts:
                archive.add(path, path.relative_to(work))


def shard(weights: Path, work: Path, out: Path) -> None:
    """Weights in files of at most SHARD_BYTES under `out`, and under `work` their index, as `transformers` has it."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in load_file(weights).items():
        value = tensor.to(torch.bfloat16).contiguous()
        if size and size + value.nbytes > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += value.nbytes
    table: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        write_safetensors(part, out / file)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"from": weights.parent.name}, "weight_map": table}
    write_text(json.dumps(index, indent=1) + "\n", work / "model.safetensors.index.json")


if __name__ == "__main__":
    main()
