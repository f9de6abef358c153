"""`cutaway playground`: the built-in data sets as files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cutaway.cli.common import parse
from cutaway.errors import UserError


@dataclass(frozen=True)
class PlaygroundFlags:
    """Write the data sets of a made-up town: text, conversations, preference pairs, RL prompts, evaluation sets."""

    out: str
    """Directory to write; files of an earlier call in it are replaced."""
    seed: int = 0
    """Seed of the town, and of everything told about it."""
    size_mb: float = 12.0
    """Megabytes of pretraining text and conversations together."""
    lang: str = "en,zh-Hant,zh-Hans"
    """Languages, of en, zh-Hant and zh-Hans, with commas."""
    name: str = "Pip"
    """What the model calls itself in the identity set."""
    author: str = "the Cutaway class"
    """Who made it, in the identity set."""
    hard: bool = False
    """Let rl.jsonl hold only prompts that hardly any sample solves, to see what sparse rewards do."""


def main(argv: Sequence[str]) -> int:
    """Write, then say what was written."""
    flags = parse(PlaygroundFlags, argv, prog="cutaway playground")
    from cutaway.playground.write import PlaygroundSettings, write_playground

    languages = tuple(code.strip() for code in flags.lang.split(",") if code.strip())
    settings = PlaygroundSettings(flags.seed, flags.size_mb, languages, flags.name, flags.author, flags.hard)
    try:
        manifest = write_playground(Path(flags.out), settings)
    except NotADirectoryError:
        raise UserError(f"--out: {flags.out} is not a directory") from None
    except FileExistsError:
        raise UserError(f"--out: {flags.out} is a file, name a directory") from None
    for name, made in manifest["files"].items():
        print(f"{made['records']:>8} {made['bytes'] / 1e6:8.2f} MB  {name}", file=sys.stderr)
    return 0
