"""`cutaway plot`: the curves of runs as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError


@dataclass(frozen=True)
class PlotFlags:
    """Draw loss, held-out bits per byte, learning rate, gradient norm and speed of one run, or of several together."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories; what they measure is in their metrics.jsonl."""
    out: str | None = None
    """PNG to write; by default curves.png in the run, or in the current folder for several runs."""


def main(argv: Sequence[str]) -> int:
    """Draw, and print where the picture is."""
    flags = parse(PlotFlags, argv, prog="cutaway plot")
    if not flags.runs:
        raise UserError("cutaway plot: name at least one run directory")
    from cutaway.training.curves import draw_runs

    runs = [Path(run) for run in flags.runs]
    out = Path(flags.out) if flags.out else (runs[0] if len(runs) == 1 else Path()) / "curves.png"
    draw_runs(runs, out)
    print(out)
    return 0
