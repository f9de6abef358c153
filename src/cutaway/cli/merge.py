"""`cutaway merge`: an adapter and its base, or a run and what it began with, as one plain model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cutaway.cli.common import parse


@dataclass(frozen=True)
class MergeFlags:
    """Merge an adapter into its base, or go only part of the way from the model that a run began with: the result is a
    model directory like any other."""

    run: tyro.conf.Positional[str]
    """Directory of the adapter (a run of `cutaway lora`, or one that PEFT wrote), or of any other run."""
    out: str
    """Model directory to write."""
    base: str | None = None
    """Directory of the base, where it is not at the place that the adapter names; of any other run, what it began
    with."""
    share: float = 1.0
    """Of the way from the base to the run: 1 is the run, less keeps more of what the base could do."""


def main(argv: Sequence[str]) -> int:
    """Load, merge, write."""
    flags = parse(MergeFlags, argv, prog="cutaway merge")
    from cutaway.model.merging import merge

    merge(Path(flags.run), Path(flags.out), flags.base, flags.share)
    print(f"{flags.out}: {flags.run} merged into its base", file=sys.stderr)
    return 0
