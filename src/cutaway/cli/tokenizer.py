"""`cutaway tokenizer train`: a vocabulary from text files."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutaway.cli.common import parse
from cutaway.errors import UserError


@dataclass(frozen=True)
class TokenizerFlags:
    """Train a byte-level BPE vocabulary; pretraining then takes the directory as --init."""

    data: tuple[str, ...]
    """Files of text or of conversations (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet)."""
    out: str
    """Directory for tokenizer.json and tokenizer_config.json."""
    vocab_size: int = 6400
    """Number of tokens, control tokens and the 256 bytes included."""
    pattern: Literal["qwen2", "llama3"] = "qwen2"
    """Pre-tokenizer: `qwen2` keeps every digit apart, `llama3` groups up to three."""
    scripts: str = "keep"
    """Chinese scripts of the training text: `keep`, `hans`, `hant`, or a mix such as `hans:0.8,hant:0.2`."""
    seed: int = 0
    """Seed of the document sample taken from inputs over 32 MB, and of the script mix."""
    skip_bad: int = 0
    """Bad records tolerated (each is reported) before it stops."""


def main(argv: Sequence[str]) -> int:
    """`train` is the only action."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: cutaway tokenizer train --data FILE... --vocab-size N --out DIR\n")
        print("`cutaway tokenizer train --help` explains the settings.")
        return 0
    if argv[0] != "train":
        raise UserError(f"cutaway tokenizer: no action '{argv[0]}' (known: train)")
    flags = parse(TokenizerFlags, argv[1:], prog="cutaway tokenizer train")
    if not flags.data:
        raise UserError("cutaway tokenizer train: --data needs at least one file")
    train(flags)
    return 0


def train(flags: TokenizerFlags) -> None:
    """Read, train, save, and say how well it compresses the start of the text it has seen."""
    from cutaway.data.formats import check_readable
    from cutaway.data.texts import read_texts
    from cutaway.recipe.base import TokenizerSettings
    from cutaway.tokenization.train import train_tokenizer

    if (Path(flags.out) / "config.json").is_file():
        raise UserError(f"{flags.out} holds a model, whose tokenizer must stay: choose another --out")
    try:
        Path(flags.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flags.out}: cannot be made a directory: {error.strerror}") from None
    for path in flags.data:
        check_readable(path)
    settings = TokenizerSettings(flags.vocab_size, flags.pattern, flags.scripts, flags.seed)
    files = functools.partial(read_texts, flags.data, flags.scripts, flags.seed, flags.skip_bad)
    tokenizer = train_tokenizer(files(), settings)
    tokenizer.save(Path(flags.out))
    sample = [text for text, _ in zip(files(), range(1000), strict=False)]
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in sample)
    num_tokens = sum(map(len, tokenizer.encode_batch(sample)))
    print(
        f"{flags.out}: {tokenizer.vocab_size} tokens, {num_bytes / max(num_tokens, 1):.2f} bytes a token "
        f"on the first {len(sample)} documents",
        file=sys.stderr,
    )
