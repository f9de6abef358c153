"""Bits per byte against position, up to several times the length of the rows that a model was trained on.

    python benchmarks/long_context.py [--row-length 128] [--factor 4] [--tokens 2000000] [--tune-tokens 300000]
        [--documents 128] [--out docs/images/long-context.png] [--runs DIR]
        [--data D/pretrain_mix.jsonl.xz --text D/pretrain_extra.jsonl.xz --tokenizer runs/tok]

A model of `--recipe` is trained on rows of `--row-length` tokens, then read at `--factor` times that length: as it is,
with its positions interpolated evenly (linear), with YaRN, and with YaRN after a short training on long rows (reported
apart). "restarted" is the model as it is, its context emptied every row length: what it can do without any stretch.

The text is single documents that the run never saw, each cut to exactly factor x row length tokens, so every document
is in every position of the picture. Bytes are those of the tokens predicted there. Without --data it is text of the
playground, joined to long documents: after minutes of open text a small model hardly looks far back, so nothing breaks.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cutaway.data.cache import build_cache
from cutaway.life.steps import VOCAB_SIZE
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import load_model
from cutaway.playground.language import LANGUAGES
from cutaway.playground.pretraining import documents
from cutaway.playground.world import make_world
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.precision import autocast, pick_device, pick_dtype

BATCH = 8
BUCKETS_A_ROW = 4
"""Points of the picture within one row length."""
TRAIN_SEED, TRAIN_BYTES, READ_BYTES, JOINED_BYTES = 10, 12_000_000, 1_500_000, 3000
"""Of the playground's text: the seed of what is trained on (the next one's is read), bytes, bytes of a document."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="to train on; by default the playground's documents")
    parser.add_argument("--text", help="to read, with --data")
    parser.add_argument("--tokenizer", help="with --data")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--row-length", type=int, default=128)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--tune-tokens", type=int, default=300_000)
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--out", default="docs/images/long-context.png")
    parser.add_argument("--runs", help="keep the two runs here, and go on with them if they are there")
    arguments = parser.parse_args()
    if len({flag is None for flag in (arguments.data, arguments.text, arguments.tokenizer)}) > 1:
        parser.error("--data, --text and --tokenizer are given together, or none of them")
    row, length = arguments.row_length, arguments.row_length * arguments.factor
    stretch = f"{arguments.factor}:{row}"
    with tempfile.TemporaryDirectory() as folder:
        base, tuned = (Path(arguments.runs or folder, name) for name in ("base", "tuned"))
        if arguments.data is None:
            write_town(Path(arguments.runs or folder), arguments)
        pretrain(arguments, arguments.tokenizer, base, row, "--tokens", arguments.tokens)
        extra = ("--tokens", arguments.tune_tokens, "--rope-scaling", f"yarn:{stretch}")
        pretrain(arguments, str(base), tuned, length, *extra)
        ids = long_documents(arguments, length)
        num_bytes = bytes_of(ids[:, 1:], Tokenizer.load(arguments.tokenizer))
        readings = {
            "as trained": nll(load_model(base), ids, length),
            "restarted": nll(load_model(base), ids, row),
            "linear": nll(load_model(base, rope_scaling=f"linear:{stretch}"), ids, length),
            "YaRN": nll(load_model(base, rope_scaling=f"yarn:{stretch}"), ids, length),
            "YaRN, tuned": nll(load_model(tuned), ids, length),
        }
    shape = f"{len(ids)} documents of {length} tokens"
    trained = f"{arguments.tokens:,} tokens in rows of {row}, tuned on {arguments.tune_tokens:,}"
    print(f"{arguments.recipe}, {trained}; read on {shape}")
    print(f"| | first {row} tokens | tokens {row} to {length} | beyond / inside | last {row} |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in readings.items():
        inside, beyond, last = (
            bits(values, num_bytes, part) for part in (slice(0, row), slice(row, length), slice(length - row, length))
        )
        print(f"| {name} | {inside:.3f} | {beyond:.3f} | {beyond / inside - 1:+.1%} | {last:.3f} |")
    draw(readings, num_bytes, row, length, Path(arguments.out))


def write_town(folder: Path, arguments: argparse.Namespace) -> None:
    """Training text, text to read and a vocabulary of the playground; the arguments name them from then on."""
    world = make_world(0)
    for name, seed, size in (("data", TRAIN_SEED, TRAIN_BYTES), ("text", TRAIN_SEED + 1, READ_BYTES)):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for text in joined(documents(world, seed, LANGUAGES, size)):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        setattr(arguments, name, str(path))
    lines = Path(arguments.data).read_text(encoding="utf-8").splitlines()
    texts = (json.loads(line)["text"] for line in lines[: len(lines) // 3])
    train_tokenizer(texts, TokenizerSettings(VOCAB_SIZE)).save(folder / "tokenizer")
    arguments.tokenizer = str(folder / "tokenizer")


def joined(texts: Iterator[str]) -> Iterator[str]:
    """Documents of one language joined to long ones; the languages come in turn."""
    parts: list[list[str]] = [[] for _ in LANGUAGES]
    for number, text in enumerate(texts):
        part = parts[number % len(LANGUAGES)]
        part.append(text)
        if sum(len(one.encode()) for one in part) > JOINED_BYTES:
            yield "\n".join(part)
            part.clear()


def pretrain(arguments: argparse.Namespace, init: str, out: Path, row: int, *more: object) -> None:
    """One run of `cutaway pretrain`, without looks at held-out text."""
    flags: list[object] = ["--recipe", arguments.recipe, "--data", arguments.data, "--init", init, "--out", out]
    flags += ["--row-length", row, "--sample-every", 0, "--holdout-tokens", 0, *more]
    if Checkpoints(out, 1).steps():  # stopped before: go on
        flags = ["--resume", "--out", out]
    subprocess.run([sys.executable, "-m", "cutaway", "pretrain", *map(str, flags)], check=True)


def long_documents(arguments: argparse.Namespace, length: int) -> Int[Tensor, "documents tokens"]:
    """The first tokens of documents that are long enough, spread evenly over the file."""
    cache = build_cache([arguments.text], Tokenizer.load(arguments.tokenizer), "pretrain")
    enough = np.flatnonzero(cache.lengths > length)
    chosen = enough[np.linspace(0, len(enough) - 1, min(arguments.documents, len(enough))).astype(int)]
    rows = [cache.tokens(index)[: length + 1].astype(np.int64) for index in chosen]
    return torch.from_numpy(np.stack(rows))


def bytes_of(ids: Int[Tensor, "documents tokens"], tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes at each position, over all documents."""
    lengths = torch.tensor([len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)])
    return lengths[ids].sum(0)


@torch.no_grad()
def nll(model: CausalLM, ids: Int[Tensor, "documents tokens"], restart: int) -> Tensor:
    """Negative log-likelihood at each position in nats, over all documents, the context emptied every `restart`."""
    device = pick_device()
    model = model.to(device).eval()
    inputs, targets = ids[:, :-1], ids[:, 1:]
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        with autocast(device, pick_dtype("auto", device)):
            losses = model(x.reshape(-1, restart).to(device), targets=y.reshape(-1, restart).to(device))
        total += losses.double().cpu().view(len(x), -1).sum(0)
    return total


def bits(values: Tensor, num_bytes: Tensor, part: slice) -> float:
    """Bits per byte of some positions."""
    return float(values[part].sum() / math.log(2) / num_bytes[part].sum())


def draw(readings: dict[str, Tensor], num_bytes: Tensor, row: int, length: int, out: Path) -> None:
    """The picture: one line a reading, and where the trained length ends."""
    width = row // BUCKETS_A_ROW
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in readings.items():
        parts = [slice(start, start + width) for start in range(0, length, width)]
        y = [bits(values, num_bytes, part) for part in parts]
        axes.plot([part.start + width / 2 for part in parts], y, marker=".", linewidth=1.5, label=name)
    axes.axvline(row, color="gray", linestyle="--", linewidth=1)
    axes.set_title(f"trained on rows of {row} tokens (dashed), read up to {length}", fontsize=10, loc="left")
    axes.set_xlabel("position in the document, tokens", fontsize=9)
    axes.set_ylabel("bits per byte", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=110)
    print(out)


if __name__ == "__main__":
    main()
