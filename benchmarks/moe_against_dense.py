"""A dense model against a mixture of experts of the same active size, after the same tokens in the same order.

    python benchmarks/moe_against_dense.py --data D/pretrain_mix.jsonl.xz --tokenizer runs/tok [--recipe nano]
        [--experts 8] [--tokens 1200000] [--seed 0] [--out DIR]

Both are trained by `cutaway pretrain` with the recipe's settings; the second with `--num-experts`, whose width follows
from the dense one's (`training/derive.py`). Data order, batch and learning rates depend on neither, so what differs is
the layer. Held-out text is the same slice of the same files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from cutaway.training.checkpoint import Checkpoints
from cutaway.training.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--out", help="keep the two runs here, and go on with them if they are there")
    arguments = parser.parse_args()
    print("| | parameters | active | tokens | steps | took, s | tokens/s | held-out bits per byte | expert load |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, experts in (("dense", 0), ("experts", arguments.experts)):
            row = train(arguments, experts, Path(arguments.out or folder, name))
            scores[name] = row["after"]
            print(
                f"| {name} | {row['parameters']:,} | {row['active']:,} | {row['tokens']:,} | {row['steps']} "
                f"| {row['seconds']:.0f} | {row['speed']:,.0f} | {row['before']:.3f} to {row['after']:.4f} "
                f"| {row['load']} |",
                flush=True,
            )
    print(f"experts lower by {1 - scores['experts'] / scores['dense']:.2%} in bits per byte")


def train(arguments: argparse.Namespace, experts: int, out: Path) -> dict[str, Any]:
    """One run and what to report of it."""
    flags = {"recipe": arguments.recipe, "data": arguments.data, "init": arguments.tokenizer, "out": out}
    flags |= {"tokens": arguments.tokens, "num-experts": experts, "seed": arguments.seed, "compile": arguments.compile}
    flags |= {"sample-every": 0, "eval-every": 1_000_000, "save-every": 1_000_000}
    command = [sys.executable, "-m", "cutaway", "pretrain"]
    if Checkpoints(out, 1).steps():  # stopped before: go on
        command += ["--resume", "--out", str(out)]
    else:
        command += [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    subprocess.run(command, check=True)
    rows = read_metrics(out)
    trained = [row for row in rows if "loss" in row]
    heldout = [row["heldout_bpb"] for row in rows if "heldout_bpb" in row]
    made = tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))["made"]
    last = trained[-1]
    speeds = sorted(row["tokens_per_second"] for row in trained)
    load = f"{last['expert_load_min']:.2f} to {last['expert_load_max']:.2f}" if experts else "-"
    print(json.dumps(last), file=sys.stderr)
    return {
        "parameters": made["parameters"],
        "active": made["active_parameters"],
        "tokens": last["tokens"],
        "steps": last["step"],
        "seconds": last["elapsed_s"],
        "speed": speeds[len(speeds) // 2],
        "before": heldout[0],
        "after": heldout[-1],
        "load": load,
    }


if __name__ == "__main__":
    main()
