"""`cutaway report`: runs side by side."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

log = logging.getLogger("cutaway")


@dataclass(frozen=True)
class ReportFlags:
    """Compare runs: their scores (`cutaway eval` first), whether the differences mean anything, what each answers to
    the same prompts, curves and cost. Writes report.html (one file), report.md and report.png."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories, in the order in which one came from the other."""
    out: str = "report"
    """Folder to write."""
    against: Literal["previous", "first"] = "previous"
    """Which run each is compared with."""
    prompts: str | None = None
    """File of prompts (RL records) that every run answers; default: six in three languages."""
    answers: bool = True
    """Let every run answer the prompts."""
    seed: int = 0
    """Of the answers."""


def main(argv: Sequence[str]) -> int:
    """Gather, answer, write, and print where."""
    flags = parse(ReportFlags, argv, prog="cutaway report")
    if not flags.runs:
        raise UserError("cutaway report: name at least one run directory")
    from cutaway.evals.report import read_prompts, read_runs, write_answers, write_report

    prompts = read_prompts(flags.prompts)
    runs = read_runs([Path(run) for run in flags.runs])
    if flags.answers:
        for place, run in enumerate(runs):
            log.info("%s: answering %d prompts", run.name, len(prompts))
            runs[place] = replace(run, answers=write_answers(run, prompts, flags.seed))
    for path in write_report(runs, Path(flags.out), prompts, flags.against):
        print(path)
    return 0
