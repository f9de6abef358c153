"""How many bytes of text a token holds, by script, for vocabulary sizes, patterns and training mixes.

python benchmarks/compression.py --data pretrain.jsonl.xz --sizes 6400 12288 16384 --peer minimind/tokenizer.json

The corpus is split by document: one in fifty is held out, the rest trains. Traditional Chinese is the held-out Chinese
converted by OpenCC (s2tw), code is this interpreter's standard library, rare characters are CJK extension B.
"""

import argparse
import json
import lzma
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import opencc
import tokenizers

from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer

COLUMNS = ("hans", "hant", "en", "zh+en", "code", "emoji", "rare")
EMOJI = "".join(chr(code) for code in (*range(0x1F600, 0x1F650), *range(0x1F300, 0x1F340))) + "👨‍👩‍👧‍👦👩🏽‍🚀🏳️‍🌈"
RARE = "".join(chr(code) for code in range(0x20000, 0x20100))


def documents(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def is_chinese(text: str) -> bool:
    return sum("\u4e00" <= character <= "\u9fff" for character in text[:400]) * 5 > len(text[:400])


def split_corpus(paths: list[Path], train_bytes: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and held-out documents by language: about `train_bytes` of each language for training."""
    train: dict[str, list[str]] = {"hans": [], "en": []}
    held: dict[str, list[str]] = {"hans": [], "en": []}
    used = dict.fromkeys(train, 0)
    for number, text in enumerate(documents(paths)):
        language = "hans" if is_chinese(text) else "en"
        if number % 50 == 0:
            held[language].append(text)
        elif used[language] < train_bytes:
            train[language].append(text)
            used[language] += len(text.encode())
    return train, held


def mixed(
    train: dict[str, list[str]], mix: tuple[float, float, float], total: int, to_hant: opencc.OpenCC
) -> list[str]:
    """Documents of about `total` bytes, with the shares hans : hant : en."""
    texts: list[str] = []
    shares = [share / sum(mix) * total for share in mix]
    budgets = {"hans": shares[0], "hant": shares[1], "en": shares[2]}
    chinese, english = iter(train["hans"]), iter(train["en"])
    for name, source in (("hans", chinese), ("hant", chinese), ("en", english)):
        left = budgets[name]
        while left > 0:
            text = next(source, None)
            if text is None:
                print(f"note: not enough text for {name}: {left / 1e6:.1f} MB short", file=sys.stderr)
                break
            texts.append(to_hant.convert(text) if name == "hant" else text)
            left -= len(text.encode())
    return texts


def bytes_per_token(tokenizer: Tokenizer | tokenizers.Tokenizer, texts: list[str]) -> float:
    if isinstance(tokenizer, Tokenizer):
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    else:
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return sum(len(text.encode()) for text in texts) / tokens


def held_out_sets(held: dict[str, list[str]], to_hant: opencc.OpenCC) -> dict[str, list[str]]:
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = [path.read_text(encoding="utf-8") for path in random.Random(0).sample(library, 30)]
    size = min(sum(len(text.encode()) for text in texts) for texts in held.values())
    even: list[str] = []
    for texts in held.values():
        left = size
        for text in texts:
            if left <= 0:
                break
            even.append(text)
            left -= len(text.encode())
    return {
        "hans": held["hans"],
        "hant": [to_hant.convert(text) for text in held["hans"]],
        "en": held["en"],
        "zh+en": even,
        "code": code,
        "emoji": [EMOJI],
        "rare": [RARE],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="pretraining files, .jsonl or .jsonl.xz")
    parser.add_argument("--peer", type=Path, nargs="*", default=[], help="tokenizer.json files to compare with")
    parser.add_argument("--sizes", type=int, nargs="+", default=[6400, 12288, 16384])
    parser.add_argument("--patterns", nargs="+", default=["qwen2", "llama3"])
    parser.add_argument("--mixes", nargs="+", default=["0.35:0.15:0.5"], help="shares of bytes hans:hant:en")
    parser.add_argument("--train-mb", type=float, default=20)
    parser.add_argument("--save", type=Path, help="directory for the first tokenizer trained")
    arguments = parser.parse_args()

    to_hant = opencc.OpenCC("s2tw")
    total = int(arguments.train_mb * 1e6)
    train, held = split_corpus(arguments.data, total)
    sets = held_out_sets(held, to_hant)
    print("held-out MB: " + ", ".join(f"{n} {sum(len(t.encode()) for t in s) / 1e6:.2f}" for n, s in sets.items()))
    print(f"zh+en is half and half by bytes. Trained on {arguments.train_mb:g} MB.\n")
    print(f"{'vocabulary':<44}" + "".join(f"{name:>8}" for name in COLUMNS) + f"{'s':>7}")

    def show(name: str, tokenizer: Tokenizer | tokenizers.Tokenizer, seconds: float) -> None:
        figures = [bytes_per_token(tokenizer, sets[column]) for column in COLUMNS]
        print(f"{name:<44}" + "".join(f"{figure:8.3f}" for figure in figures) + f"{seconds:7.0f}", flush=True)

    for path in arguments.peer:
        show(f"peer {path.parent.name}/{path.name}", tokenizers.Tokenizer.from_file(str(path)), 0)
    for mix in arguments.mixes:
        shares = tuple(float(share) for share in mix.split(":"))
        texts = mixed(train, (shares[0], shares[1], shares[2]), total, to_hant)
        for pattern in arguments.patterns:
            for size in arguments.sizes:
                begun = time.perf_counter()
                trained = train_tokenizer(texts, TokenizerSettings(vocab_size=size, pattern=pattern))
                show(f"{size} {pattern} {mix}", trained, time.perf_counter() - begun)
                if arguments.save is not None:
                    trained.save(arguments.save)
                    arguments.save = None


if __name__ == "__main__":
    main()
