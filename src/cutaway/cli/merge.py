"""`cutaway merge`: an adapter and its base as one plain model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cutaway.cli.common import parse


@dataclass(frozen=True)
class MergeFlags:
    """Merge an adapter into its base: the result is a model directory like any other."""

    run: tyro.conf.Positional[str]
    """Directory of the adapter (a run of `cutaway lora`, or one that PEFT wrote)."""
    out: str
    """Model directory to write."""
    base: str | None = None
    """Directory of the base, where it is not at the place that the adapter names."""


def main(argv: Sequence[str]) -> int:
    """Load, merge, write."""
    flags = parse(MergeFlags, argv, prog="cutaway merge")
    from cutaway.model.merging import merge

    merge(Path(flags.run), Path(flags.out), flags.base)
    print(f"{flags.out}: {flags.run} merged into its base", file=sys.stderr)
    return 0
