"""Bits per byte of runs on text they never saw, by language and script; and of the assistant's tokens.

    python benchmarks/bits_per_byte.py RUN... --text pretrain_extra.jsonl.xz [--chat sft_mix.jsonl.xz] [--megabytes 1]

Text: the first megabytes of Chinese and of English documents of `--text`; the Chinese ones in Simplified and, converted
by OpenCC, in Traditional characters. Chat: the conversations of `--chat` that the runs' own hash of contents held out.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cutaway.data.cache import build_cache, split_holdout
from cutaway.data.formats import read_records
from cutaway.data.loader import evaluation_batches
from cutaway.data.scripts import convert_document, parse_scripts
from cutaway.evals.bpb import bits_per_byte
from cutaway.model.weights import load_model
from cutaway.recipe.files import load_recipe
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.distributed import Ranks
from cutaway.training.network import Network
from cutaway.training.precision import pick_device, pick_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--chat")
    parser.add_argument("--megabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    device = pick_device()
    dtype = pick_dtype("auto", device)
    with tempfile.TemporaryDirectory() as folder:
        slices = text_slices(arguments.text, arguments.megabytes, Path(folder))
        print("run".ljust(40), *(name.rjust(9) for name in (*slices, "assistant")))
        for run in arguments.runs:
            network = Network(load_model(run), Ranks(0, 1, device), dtype)
            tokenizer = Tokenizer.load(run)
            scores = [score(network, tokenizer, path, "pretrain", folder) for path in slices.values()]
            scores.append(chat_score(network, tokenizer, run, arguments.chat) if arguments.chat else float("nan"))
            print(run.ljust(40), *(f"{value:9.4f}" for value in scores), flush=True)


def text_slices(path: str, megabytes: float, folder: Path) -> dict[str, Path]:
    """Files of Simplified, Traditional and English documents, each of about so many megabytes."""
    limit = int(megabytes * 1e6)
    documents: dict[str, list[str]] = {"hans": [], "en": []}
    size = dict.fromkeys(documents, 0)
    for text in _texts(path):
        han = sum("\u4e00" <= char <= "\u9fff" for char in text)
        kind = "hans" if han > 0.2 * len(text) else "en"
        if size[kind] < limit:
            documents[kind].append(text)
            size[kind] += len(text.encode())
        if min(size.values()) >= limit:
            break
    to_hant = parse_scripts("hant")
    documents["hant"] = [convert_document(text, to_hant, 0) for text in documents["hans"]]
    paths = {}
    for kind in ("hans", "hant", "en"):
        paths[kind] = folder / f"{kind}.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents[kind])
        paths[kind].write_text("".join(lines), encoding="utf-8")
    return paths


def _texts(path: str) -> Iterator[str]:
    for record in read_records([path], "pretrain"):
        yield record.value["text"]


def score(network: Network, tokenizer: Tokenizer, path: Path, kind: str, root: str) -> float:
    """Bits per byte of all documents of a file."""
    cache = build_cache([path], tokenizer, "pretrain", root=root)
    batches, num_bytes = evaluation_batches(cache, np.arange(len(cache)), 16, 512)
    return bits_per_byte(network, batches, num_bytes)["bpb"]


def chat_score(network: Network, tokenizer: Tokenizer, run: str, path: str) -> float:
    """Bits per byte of the assistant's tokens of the held-out conversations, split as `cutaway sft` splits them."""
    settings = load_recipe(str(Path(run) / "recipe.toml")).sft
    cache = build_cache(
        [path],
        tokenizer,
        "sft",
        scripts=settings.scripts,
        seed=settings.seed,
        max_tokens=settings.row_length + 1,
    )
    _, heldout = split_holdout(cache, settings.holdout_tokens, settings.seed)
    batches, num_bytes = evaluation_batches(cache, heldout, 16, settings.row_length)
    return bits_per_byte(network, batches, num_bytes)["bpb"]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
