"""How cost grows: with the data, with the depth, with the length of a row; a table and a picture of each.

    python benchmarks/growth.py --data D/pretrain_mix.jsonl.xz --tokenizer runs/tok [--sizes 1 10 100 1000]
        [--layers 1 2 4 8 16] [--row-lengths 128 256 512 1024 2048 4096] [--recipe nano] [--compile off]

Data: files of so many megabytes, made of the documents of `--data` (again and again, each time with another number in
front, where they are not enough); each is tokenised and trained on by a process of its own. Tokens a second of training
and the process's memory should not depend on the size. Depth: seconds of a forward and backward pass against the number
of layers, and the straight line through them. Row length: the same tokens in rows of other lengths; seconds a token
against the FLOP count (the full square of attention, as MFU counts it; its causal half; and where the blocked kernel
runs, compiled on a processor, what that computes), all as a share of their value at 512. Every time is multiplied by
the matrix-product rate of the same seconds, so that a processor that slows down or is shared does not bend a curve.
Results are kept in `--json`, under the machine and the arguments that decide them; what is there is not measured again.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.data.cache import build_cache
from cutaway.data.formats import read_records
from cutaway.data.loader import Batch, RowSource
from cutaway.model.attention import QUERY_BLOCK
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.stages.rehearsal import DataSize, RandomRows, peak_memory
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks
from cutaway.training.metrics import matmul_rate, synchronise
from cutaway.training.network import Network
from cutaway.training.precision import keep_freed_memory, pick_device, pick_dtype
from training_speed import Kept, machine, named

TURNS = 9
"""Of what is measured and of matrix products, one after the other."""
REFERENCE = 512
"""Row length that the others are compared with."""
COUNTS = {
    "flops": ("the FLOP count", "k--"),
    "causal_flops": ("the causal count", "k:"),
    "computed_flops": ("what is computed", "C3-."),
}
"""What time is compared with: under its name in a result, that in the tables, and the line in the picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--sizes", type=float, nargs="*", default=[1, 10, 100, 1000], help="megabytes")
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--row-lengths", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=30.0, help="of training for each size")
    parser.add_argument("--compile", choices=["on", "off"], default="on")
    parser.add_argument("--json", default="benchmarks/results/growth.json")
    parser.add_argument("--picture", default="benchmarks/results/growth.png")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        request = json.loads(arguments.worker)
        print(json.dumps(measured(arguments, request)))
        return
    print(f"{machine()}, torch {torch.__version__}, {arguments.recipe}")
    kept = Kept(Path(arguments.json))
    rows = {
        "size": [cell(arguments, kept, "size", value) for value in arguments.sizes],
        "layers": [cell(arguments, kept, "layers", value) for value in arguments.layers],
        "row_length": [cell(arguments, kept, "row_length", value) for value in arguments.row_lengths],
    }
    print(tables(rows))
    draw(rows, Path(arguments.picture))


def cell(arguments: argparse.Namespace, kept: Kept, what: str, value: float) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    deciding = ("data", "tokenizer", "micro_batch_tokens", "compile")
    name = named(f"{arguments.recipe} {what} {value:g}", arguments, *deciding)
    if kept.missing([name]):
        request = json.dumps({"what": what, "value": value})
        done = subprocess.run([sys.executable, *sys.argv, "--worker", request], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed")
        kept.add(name, json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{name}: {json.dumps(kept.found[name])}", file=sys.stderr, flush=True)
    found: dict[str, Any] = kept.found[name] | {"value": value}
    return found


def measured(arguments: argparse.Namespace, request: dict[str, Any]) -> dict[str, float]:
    """What a worker finds."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    what, value = request["what"], request["value"]
    tokenizer = Tokenizer.load(arguments.tokenizer)
    length = int(value) if what == "row_length" else REFERENCE
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, _ = derive_model(load_recipe(arguments.recipe).model, tokenizer.vocab_size, length, ids)
    if what == "layers":
        config = replace(config, num_hidden_layers=int(value))
    network = prepared(config, arguments.compile)
    if what == "size":
        return trained(arguments, network, tokenizer, value)
    rows = RandomRows(config, DataSize(1, 1), max(1, arguments.micro_batch_tokens // length), length)
    batch = rows.batch.to(network.ranks.device)
    passes(network, batch)  # the first one compiles
    seconds, rate = median_turn(network, lambda: timed(network, lambda: passes(network, batch)))
    model = network.model
    found = {
        "seconds": seconds,
        "tokens": batch.input_ids.numel(),
        "rate": rate,
        "flops": model.flops_per_token(length),
        "causal_flops": model.causal_flops_per_token(length),
        "peak_bytes": peak_memory(network.ranks.device),
    }
    if network.compiled and network.ranks.device.type != "cuda":
        found["computed_flops"] = computed_flops(model, length)
    return found


def computed_flops(model: CausalLM, length: int) -> float:
    """FLOPs a token where attention is blocked: of its square, each block of queries by the keys up to its end."""
    pairs = sum((end - start) * end for start, end in itertools.pairwise([*range(0, length, QUERY_BLOCK), length]))
    full = model.flops_per_token(length)
    square = 2 * (full - model.causal_flops_per_token(length))
    return full - square * (1 - pairs / length**2)


def prepared(config: ModelConfig, compiled: str) -> Network:
    model = CausalLM(config)
    initialise(model, 0)
    device = pick_device()
    network = Network(model, Ranks(0, 1, device), pick_dtype("auto", device))
    if compiled == "on":
        network.compile()
    return network


def median_turn(network: Network, action: Callable[[], float]) -> tuple[float, float]:
    """The seconds that an action measures, and the matrix rate just after it, in turns: those of the turn whose product
    of both is the median."""
    device, dtype = network.ranks.device, network.dtype
    turns = [(action(), matmul_rate(device, dtype, seconds=0.3)) for _ in range(TURNS)]
    return sorted(turns, key=lambda turn: turn[0] * turn[1])[TURNS // 2]


def timed(network: Network, action: Callable[[], object]) -> float:
    synchronise(network.ranks.device)
    begin = time.perf_counter()
    action()
    synchronise(network.ranks.device)
    return time.perf_counter() - begin


def passes(network: Network, batch: Batch) -> None:
    torch.autograd.backward(network.token_losses(batch).mean())
    network.model.zero_grad(set_to_none=True)


def trained(
    arguments: argparse.Namespace, network: Network, tokenizer: Tokenizer, megabytes: float
) -> dict[str, float]:
    """Tokenise a file of that size, then train on it: speeds of both, and the memory after each."""
    device = network.ranks.device
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.jsonl")
        write(arguments.data, path, megabytes)
        begin = time.perf_counter()
        cache = build_cache([path], tokenizer, "pretrain", root=folder)
        tokenise_s = time.perf_counter() - begin
        held = peak_memory(device)
        rows = max(1, arguments.micro_batch_tokens // REFERENCE)
        begin = time.perf_counter()
        source = RowSource(cache, rows=rows, seq=REFERENCE, prefetch=2)
        batch = next(source)
        first_s = time.perf_counter() - begin
        passes(network, batch.to(device))

        def seconds_a_token() -> float:
            useful, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < arguments.seconds / TURNS:
                batch = next(source)
                useful += batch.useful_tokens()
                passes(network, batch.to(device))
                synchronise(device)
            return (time.perf_counter() - begin) / useful

        seconds, rate = median_turn(network, seconds_a_token)
        source.close()
        tokens = float(cache.offsets[-1])
        del cache
    return {
        "tokens": tokens,
        "tokenise": tokens / tokenise_s,
        "first_s": first_s,
        "speed": 1 / seconds,
        "rate": rate,
        "tokenising_bytes": held,
        "peak_bytes": peak_memory(device),
    }


def write(data: str, path: Path, megabytes: float) -> None:
    """Documents of a file until there are so many megabytes of lines; beyond its end, again with a number in front."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for line in endless(data):
            file.write(line)
            written += len(line.encode())
            if written >= megabytes * 1e6:
                return


def endless(data: str) -> Iterator[str]:
    turn = 0
    while True:
        for record in read_records([data], "pretrain"):
            text = f"{turn} {record.value['text']}" if turn else record.value["text"]
            yield json.dumps({"text": text}, ensure_ascii=False) + "\n"
        turn += 1


def line_through(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope and intercept of the straight line by least squares, and the largest distance from it as a share of y."""
    slope, intercept = np.polyfit(x, y, 1)
    off = max(abs(slope * a + intercept - b) / b for a, b in zip(x, y, strict=True))
    return float(slope), float(intercept), float(off)


def work(row: dict[str, Any]) -> float:
    """Matrix-product FLOPs that would have taken as long as a token took."""
    return float(row["seconds"] / row["tokens"] * row["rate"])


def reference(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next((row for row in rows if row["value"] == REFERENCE), rows[0])


def against_flops(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Measured over counted, both as shares of their value at REFERENCE: 1 where the count explains the time."""
    base = reference(rows)
    return [work(row) / work(base) / (row[key] / base[key]) for row in rows]


def tables(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    if rows["size"]:
        lines += ["", "| text | tokens | tokenised, tokens/s | first batch after | trained, tokens/s | peak memory |"]
        lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
        for row in rows["size"]:
            lines.append(
                f"| {row['value']:g} MB | {row['tokens']:,.0f} | {row['tokenise']:,.0f} | {row['first_s']:.2f} s "
                f"| {row['speed']:,.0f} | {row['peak_bytes'] / 1e9:.2f} GB |"
            )
        speeds = [row["speed"] / row["rate"] for row in rows["size"]]
        spread = max(speeds) / min(speeds) - 1
        memory = max(row["peak_bytes"] for row in rows["size"]) / min(row["peak_bytes"] for row in rows["size"]) - 1
        lines.append(f"\nspeed over the matrix rate differs by {spread:.1%}, memory by {memory:.1%}")
    if len(rows["layers"]) > 1:
        depths = [float(row["value"]) for row in rows["layers"]]
        slope, intercept, off = line_through(depths, [work(row) for row in rows["layers"]])
        lines += ["", "| layers | seconds | off the line |", "| ---: | ---: | ---: |"]
        for row in rows["layers"]:
            lines.append(
                f"| {row['value']} | {row['seconds']:.3f} | {(slope * row['value'] + intercept) / work(row) - 1:+.1%} |"
            )
        lines.append(f"\nlargest distance from a straight line: {off:.1%}")
    if rows["row_length"]:
        counts = [count for count in COUNTS if count in rows["row_length"][0]]
        columns = [against_flops(rows["row_length"], count) for count in counts]
        lines += ["", "| row length | tokens/s | " + "".join(f"over {COUNTS[count][0]} | " for count in counts)]
        lines[-1] += "peak memory |"
        lines += ["| ---: | ---: |" + " ---: |" * len(counts) + " ---: |"]
        for row, *shares in zip(rows["row_length"], *columns, strict=True):
            over = " | ".join(f"{share - 1:+.1%}" for share in shares)
            speed, memory = row["tokens"] / row["seconds"], row["peak_bytes"] / 1e9
            lines.append(f"| {row['value']} | {speed:,.0f} | {over} | {memory:.2f} GB |")
        most = [max(abs(share - 1) for share in shares) for shares in columns]
        said = [f"from {COUNTS[count][0]}: {share:.1%}" for count, share in zip(counts, most, strict=True)]
        lines.append("\nlargest distance " + ", ".join(said))
    return "\n".join(lines)


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Three panels: data size, depth, row length; measured as dots, expected as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    size, depth, length = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    if rows["size"]:
        speeds = [row["speed"] * rows["size"][0]["rate"] / row["rate"] for row in rows["size"]]
        size.semilogx([row["value"] for row in rows["size"]], speeds, "o-")
    size.set_xlabel("megabytes of text")
    size.set_ylabel("tokens/s, at one matrix rate")
    if len(rows["layers"]) > 1:
        depths = [float(row["value"]) for row in rows["layers"]]
        seconds = [row["seconds"] * row["rate"] / rows["layers"][0]["rate"] for row in rows["layers"]]
        slope, intercept, _ = line_through(depths, seconds)
        depth.plot(depths, seconds, "o")
        depth.plot([0, max(depths)], [intercept, slope * max(depths) + intercept], "k--", linewidth=1)
    depth.set_xlabel("layers")
    depth.set_ylabel("seconds forward and backward, at one matrix rate")
    if rows["row_length"]:
        lengths = [row["value"] for row in rows["row_length"]]
        base = reference(rows["row_length"])
        length.plot(lengths, [work(row) / work(base) for row in rows["row_length"]], "o", label="measured")
        for count, (name, style) in COUNTS.items():
            if count in base:
                shares = [row[count] / base[count] for row in rows["row_length"]]
                length.plot(lengths, shares, style, linewidth=1, label=name)
        length.set_xscale("log", base=2)
        length.legend(fontsize=8)
    length.set_xlabel("row length")
    length.set_ylabel(f"time a token, as a share of that at {REFERENCE}")
    for axes in (size, depth, length):
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)


if __name__ == "__main__":
    main()
