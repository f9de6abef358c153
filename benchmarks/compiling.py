"""A model compiled whole beside one whose layers are compiled one by one: how long that takes, and a pass after it.

    python benchmarks/compiling.py [--recipes nano mini] [--rounds 30] [--vocab-size 2000]

The first pass forward and backward of either, with an empty cache and in a process of its own; then both in one
process, in turns, on the same micro-batch of 4,096 tokens in rows of 512.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Literal, get_args

import torch

from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise
from cutaway.recipe.files import load_recipe
from cutaway.stages.rehearsal import DataSize, RandomRows
from cutaway.training.derive import derive_model
from cutaway.training.distributed import Ranks
from cutaway.training.metrics import synchronise
from cutaway.training.network import Network
from cutaway.training.precision import keep_freed_memory, pick_device, pick_dtype
from training_speed import machine, run_cold

How = Literal["on", "layers"]
ROWS, ROW_LENGTH = 8, 512


class Side:
    """A network compiled in one way, and a pass through it."""

    def __init__(self, recipe: str, vocab_size: int, how: How) -> None:
        config, _ = derive_model(load_recipe(recipe).model, vocab_size, ROW_LENGTH, (1, 0))
        model = CausalLM(config)
        initialise(model, 0)
        device = pick_device()
        self.network = Network(model, Ranks(0, 1, device), pick_dtype("auto", device))
        self.network.compile(how)
        self.batch = RandomRows(config, DataSize(1, 1), ROWS, ROW_LENGTH).batch.to(device)

    def seconds(self) -> float:
        """Of one pass forward and backward."""
        device = self.network.ranks.device
        synchronise(device)
        began = time.perf_counter()
        torch.autograd.backward(self.network.token_losses(self.batch).mean())
        synchronise(device)
        seconds = time.perf_counter() - began
        self.network.model.zero_grad(set_to_none=True)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["nano", "mini"])
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--first", choices=get_args(How), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    keep_freed_memory()
    if flags.first:
        print(json.dumps(Side(flags.recipes[0], flags.vocab_size, flags.first).seconds()))
        return
    print(f"{machine()}, {torch.backends.cpu.get_cpu_capability()}, {pick_dtype('auto', pick_device())}")
    for recipe in flags.recipes:
        first = {how: cold(recipe, flags.vocab_size, how) for how in get_args(How)}
        sides = {how: Side(recipe, flags.vocab_size, how) for how in get_args(How)}
        times: dict[str, list[float]] = {how: [] for how in sides}
        for turn in range(flags.rounds + 2):
            for how, side in sides.items():
                seconds = side.seconds()
                if turn >= 2:  # compiled, and memory is there
                    times[how].append(seconds)
        for how in sides:
            print(f"{recipe}, {how}: first pass {first[how]:.1f} s, a pass {statistics.median(times[how]):.3f} s")
        pairs = [one / whole for whole, one in zip(times["on"], times["layers"], strict=True)]
        print(f"{recipe}: layers take {statistics.median(pairs):.3f} times as long as the whole", flush=True)


def cold(recipe: str, vocab_size: int, how: How) -> float:
    """Seconds of the first pass, in a new process whose compiler has an empty cache."""
    command = [sys.executable, __file__, "--recipes", recipe, "--vocab-size", str(vocab_size), "--first", how]
    return float(json.loads(run_cold(command, stdout=subprocess.PIPE, text=True).stdout))


if __name__ == "__main__":
    main()
