"""Many streaming clients at once against `cutaway serve`: errors, leaked slots, time to first token, memory.

    python benchmarks/serving_load.py [--clients 64] [--seconds 180] [--recipe nano] [--run DIR]

Without --run the model is one of the recipe's shape with random weights: it costs what a trained one costs, and its
answers never end before their limit. Every tenth request is abandoned in the middle. Prints one JSON object, and ends
with 1 where a request failed, a slot was not given back, or memory grew by more than a tenth after the first quarter.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TEXT = "the cat sat on a mat and asked how many days there are until the moon is full again 今天 天氣 很好"
WORDS = TEXT.split(" ")


@dataclass
class Tally:
    """What the clients saw."""

    first_token_s: list[float] = field(default_factory=list)
    tokens: int = 0
    finished: int = 0
    abandoned: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def random_run(folder: Path, recipe: str) -> Path:
    """A model directory of the recipe's shape with random weights."""
    from cutaway.model.transformer import CausalLM
    from cutaway.model.weights import initialise, save_model
    from cutaway.recipe.base import TokenizerSettings
    from cutaway.recipe.files import load_recipe
    from cutaway.tokenization.train import train_tokenizer
    from cutaway.training.derive import derive_model

    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, TokenizerSettings(vocab_size=320))
    ids = (tokenizer.im_end_id, tokenizer.eos_id)
    config, _ = derive_model(load_recipe(recipe).model, tokenizer.vocab_size, 512, ids)
    model = CausalLM(config)
    initialise(model, 0)
    save_model(model, folder, config)
    tokenizer.save(folder)
    (folder / "recipe.toml").write_text('[made]\nstage = "sft"\n')
    return folder


@contextmanager
def server(run: Path, slots: int, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`cutaway serve` on a free port; it must end well when it is told to."""
    command = [sys.executable, "-m", "cutaway", "serve", str(run), "--port", "0", "--slots", str(slots)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--max-waiting", "256"], stdout=out, stderr=out)
    try:
        limit = time.monotonic() + 120
        while b"serving on" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            time.sleep(0.1)
        yield log.read_text().split("serving on ")[1].split()[0], process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


async def client(http: httpx.AsyncClient, until: float, draw: random.Random, tally: Tally) -> None:
    """One conversation partner that never rests."""
    while time.monotonic() < until:
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(5, 60)))
        body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": draw.randint(16, 96)}
        leave_after = draw.randint(1, 8) if draw.random() < 0.1 else None
        started, first, chunks, last = time.monotonic(), None, 0, ""
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    tally.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                    continue
                async for line in answer.aiter_lines():
                    if not line:
                        continue
                    last = line
                    if '"content":"' in line and '"role"' not in line:
                        chunks += 1
                        if first is None:
                            first = time.monotonic() - started
                    if '"error"' in line:
                        tally.errors.append(line)
                    if leave_after is not None and chunks >= leave_after:
                        break
        except httpx.HTTPError as error:
            tally.errors.append(f"{type(error).__name__}: {error}")
            continue
        if first is not None:
            tally.first_token_s.append(first)
        tally.tokens += chunks
        if leave_after is not None and last != "data: [DONE]":
            tally.abandoned += 1
        elif last == "data: [DONE]":
            tally.finished += 1
        else:
            tally.errors.append(f"a stream ended with {last[:200]}")


def metric(text: str, name: str) -> float:
    """Sum of a metric over its labels."""
    rows = (row for row in text.splitlines() if row.startswith((name + "{", name + " ")))
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


async def watch(http: httpx.AsyncClient, until: float, tally: Tally) -> None:
    """The server's memory, once a second."""
    while time.monotonic() < until:
        tally.memory.append(metric((await http.get("/metrics")).text, "process_resident_memory_bytes"))
        await asyncio.sleep(1)


async def drive(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Run the clients, wait until the server is idle, and sum up."""
    tally = Tally()
    limits = httpx.Limits(max_connections=clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        started = time.monotonic()
        until = started + seconds
        crowd = [client(http, until, random.Random(number), tally) for number in range(clients)]
        await asyncio.gather(watch(http, until, tally), *crowd)
        took = time.monotonic() - started
        held = ("cutaway_engine_requests", "cutaway_requests_running", "cutaway_requests_waiting")
        for _ in range(100):
            text = (await http.get("/metrics")).text
            leaked = int(sum(metric(text, name) for name in held))
            if not leaked:
                break
            await asyncio.sleep(0.1)
        counted = {name: int(metric(text, f"cutaway_{name}_total")) for name in ("answers", "generated_tokens")}
    quarter = max(len(tally.memory) // 4, 1)
    before, after = (statistics.median(part) for part in (tally.memory[quarter : 2 * quarter], tally.memory[-quarter:]))
    ordered = sorted(tally.first_token_s)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "finished": tally.finished,
        "abandoned": tally.abandoned,
        "errors": len(tally.errors),
        "first_errors": tally.errors[:3],
        "leaked": leaked,
        "answers_counted": counted["answers"],
        "tokens_per_second": round(counted["generated_tokens"] / took),
        "first_token_p50_s": round(statistics.median(ordered), 3),
        "first_token_p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "memory_mb_second_quarter": round(before / 1e6),
        "memory_mb_last_quarter": round(after / 1e6),
        "memory_growth": round(after / before - 1, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--run", type=Path, default=None)
    flags = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryDirectory() as scratch:
        run = flags.run or random_run(Path(scratch) / "model", flags.recipe)
        with server(run, flags.slots, Path(scratch) / "log") as (url, _):
            found = asyncio.run(drive(url, flags.clients, flags.seconds))
    print(json.dumps(found, indent=1))
    return int(bool(found["errors"] or found["leaked"] or found["memory_growth"] > 0.1))


if __name__ == "__main__":
    sys.exit(main())
