"""Runs of a tiny model in processes of their own, which can be killed."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cutaway.model.weights import read_safetensors
from cutaway.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ("--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2", "--num-key-value-heads", "1")
SIZES = (
    *("--row-length", "64", "--batch-tokens", "256", "--micro-batch-tokens", "128", "--holdout-tokens", "500"),
    *("--workers", "1", "--log-every", "1", "--eval-every", "50", "--sample-every", "0", "--compile", "off"),
)


@dataclass(frozen=True)
class Town:
    """Files to train on."""

    root: Path
    pretrain_data: Path
    sft_data: Path
    tokenizer: Path

    def pretrain(self, out: Path, steps: int, *more: str) -> list[str]:
        """Arguments of `cutaway` for a run from nothing."""
        files = ("--data", str(self.pretrain_data), "--init", str(self.tokenizer), "--out", str(out))
        return ["pretrain", *files, "--steps", str(steps), *SHAPE, *SIZES, *more]

    def sft(self, base: Path, out: Path, steps: int, *more: str) -> list[str]:
        """Arguments of `cutaway` for fine-tuning."""
        files = ("--data", str(self.sft_data), "--init", str(base), "--out", str(out))
        return ["sft", *files, "--steps", str(steps), *SIZES, *more]


def environment() -> dict[str, str]:
    """One thread, because these matrices are too small for more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def cutaway(*arguments: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "cutaway", *arguments]
    return subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout, **options
    )


SMALL_RUN: dict[str, Any] = {
    "row_length": 128,
    "batch_tokens": 512,
    "micro_batch_tokens": 256,
    "holdout_tokens": 600,
    "compile": "off",
    "precision": "fp32",
    "sample_every": 0,
    "log_every": 1,
    "eval_every": 50,
    "save_every": 3,
    "keep_checkpoints": 9,
    "workers": 1,
}
"""Settings of a short run in the test's own process."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("cutaway.stages.sft", "cutaway.cli.sft", "cutaway.stages.spo", "cutaway.cli.spo"),
        *("torch.utils.tensorboard", "run_helpers"),
    ]
)


def start(arguments: list[str], log: Path) -> BaseProcess:
    """The command in a process forked from one that has imported everything, so that twenty starts take seconds."""
    os.environ["OMP_NUM_THREADS"] = "1"
    process = _CONTEXT.Process(target=_child, args=(arguments, str(log)))
    process.start()
    return process


def _child(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from cutaway.cli.main import main

    sys.exit(main(arguments))


def finish(arguments: list[str], log: Path) -> None:
    """Run the command to its end, which must be a good one."""
    process = start(arguments, log)
    process.join(120)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, log.read_text(encoding="utf-8")


def rows_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Lines of a run's file; a torn last one is left out."""
    path = run / name
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def last_step(run: Path) -> int:
    return max((row["step"] for row in rows_of(run) if "loss" in row), default=0)


def final_bytes(run: Path, steps: int) -> tuple[bytes, bytes]:
    """Weights and optimizer state at the end of a run."""
    optimizer = run / "state" / f"step-{steps:08d}" / "optimizer.safetensors"
    return (run / "model.safetensors").read_bytes(), optimizer.read_bytes()


def blank_model(
    town: Town, folder: Path, hidden_size: int = 32, seed: int = 0, sharpness: float = 1, **more: Any
) -> Path:
    """Write a tiny model with random weights and the town's tokenizer; its logits are multiplied by `sharpness`."""
    from cutaway.model.transformer import CausalLM
    from cutaway.model.weights import initialise, save_model
    from cutaway.recipe.base import ModelSettings
    from cutaway.tokenization.tokenizer import Tokenizer
    from cutaway.training.derive import derive_model

    tokenizer = Tokenizer.load(town.tokenizer)
    settings = ModelSettings(hidden_size=hidden_size, num_hidden_layers=2, num_attention_heads=2, **more)
    config, _ = derive_model(settings, tokenizer.vocab_size, 128, (tokenizer.im_end_id, tokenizer.eos_id))
    network = CausalLM(config)
    initialise(network, seed)
    network.model.norm.weight.data.mul_(sharpness)
    tokenizer.save(folder)
    save_model(network, folder, config)
    return folder


def same_end(one: Path, other: Path, steps: int) -> None:
    """Weights and optimizer state are equal to the bit. (An adapter's file names its metadata in any order.)"""
    from safetensors.torch import load_file

    files = sorted(path.name for path in (one / "state" / f"step-{steps:08d}").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        first, second = (load_file(run / "state" / f"step-{steps:08d}" / file) for run in (one, other))
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first), file


def kill_and_resume(first: list[str], run: Path, whole: Path, kills: int, save_every: int, seed: int) -> list[int]:
    """Kill the run of the command `first` that many times at random moments, and let it finish; gives back the steps of
    the checkpoints it went on from. It may lose the steps since the last one, and so at most `save_every`.

    The moments are counted in steps, so that they are spread over the run on a busy machine too.
    """
    draw, log, resumed_from = random.Random(seed), run.with_suffix(".log"), list[int]()
    for left in range(kills, 0, -1):
        saved = Checkpoints(run, 1).steps()[-1:]
        resumed_from += saved
        rest = last_step(whole) - max(saved, default=0)
        goal = max(saved, default=0) + max(1.0, draw.uniform(0, min(1.4 / left, 0.7) * rest))
        metrics = run / "metrics.jsonl"
        before = metrics.stat().st_ino if metrics.exists() else 0
        process = start([first[0], "--resume", "--out", str(run)] if saved else first, log)
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 1))  # while it starts: nothing is trained yet
        else:
            while process.is_alive() and (
                not metrics.exists() or metrics.stat().st_ino == before or last_step(run) < goal
            ):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break  # a busy machine: it was done before the kill came
        assert process.exitcode == -signal.SIGKILL, log.read_text(encoding="utf-8")
        assert last_step(run) - max(Checkpoints(run, 1).steps(), default=0) <= save_every
        if (run / "model.safetensors").exists():
            assert read_safetensors(run)
    finish([first[0], "--resume", "--out", str(run)], log)
    return resumed_from


def check_same(run: Path, whole: Path, keys: Sequence[str] = (), heldout: str = "heldout_bpb") -> None:
    """Two complete runs ended alike: weights, optimizer, every line of the metrics."""
    steps = last_step(whole)
    assert final_bytes(run, steps) == final_bytes(whole, steps)
    trained = [row for row in rows_of(run) if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, steps + 1))
    expected = [row for row in rows_of(whole) if "loss" in row]
    for key in ("loss", "tokens", "lr", "grad_norm", *keys):
        assert [row.get(key) for row in trained] == [row.get(key) for row in expected], key
    held = [(row["step"], row[heldout]) for row in rows_of(run) if heldout in row]
    assert held and held == [(row["step"], row[heldout]) for row in rows_of(whole) if heldout in row]
    assert not list(run.rglob("*.partial"))
