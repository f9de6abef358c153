"""What a life came to: `report.html`, `report.md` and `report.png`, with what each stage was there for at the top."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from cutaway.evals.intervals import Share, mcnemar
from cutaway.evals.report import Run, read_runs, write_answers, write_report
from cutaway.evals.results import Result
from cutaway.evals.tables import Table, interval, percent
from cutaway.life.journal import Journal
from cutaway.life.stage import Life
from cutaway.life.steps import Step
from cutaway.tokenization.messages import Message
from cutaway.training.plan import clock


def write(life: Life, journal: Journal, prompts: Sequence[Sequence[Message]], own: Sequence[Table] = ()) -> list[Path]:
    """Let every model answer the prompts, and put everything together; tables of the caller's own come last."""
    runs = read_runs([life.run_of(step) for step in life.steps])
    runs = [
        dataclasses.replace(run, answers=write_answers(run, prompts, life.seed, life.model_of(step)))
        for run, step in zip(runs, life.steps, strict=True)
    ]
    maybe = [purpose_table(life.steps, runs), fall_table(life.steps, runs), learning_table(runs)]
    first = [table for table in maybe if table is not None]
    return write_report(runs, life.out, prompts, first=first, last=[time_table(journal), *own])


def purpose_table(steps: Sequence[Step], runs: Sequence[Run]) -> Table | None:
    """For each stage the scores that it is there for, all their items together, against the model it began with. None
    where nothing was scored."""
    rows = []
    for place, step in enumerate(steps):
        names = [name for name in step.raises if name in runs[place].results]
        if not names:
            continue
        after = joined(runs[place].results, names)
        row = [step.stage, ", ".join(names), str(len(after))]
        if place and all(name in runs[place - 1].results for name in names):
            before = joined(runs[place - 1].results, names)
            better, worse = int((after & ~before).sum()), int((before & ~after).sum())
            rate = (better + (len(after) - better - worse) / 2) / len(after)
            counts = [str(better), str(worse), percent(rate), f"{mcnemar(before, after):.2g}"]
            row += [_share(before), _share(after), *counts]
        else:
            row += ["-", _share(after), "-", "-", "-", "-"]
        rows.append(row)
    if not rows:
        return None
    headers = ["stage", "is there for", "items", "before", "after", "better", "worse", "win rate", "p"]
    note = (
        "Win rate: answers against those of the model that the stage began with, ties as halves. p: McNemar, exact. A "
        "model that has only read text was asked in a dialogue such as it has read."
    )
    return Table("What each stage was there for", headers, rows, note)


def fall_table(steps: Sequence[Step], runs: Sequence[Run]) -> Table | None:
    """What a stage cost: the shares of right answers that fell most, of those that it is not there for. None without
    two scored runs."""
    rows = []
    for place, step in enumerate(steps[1:], start=1):
        before, after = runs[place - 1].results, runs[place].results
        shares = [name for name, result in after.items() if result.summary["kind"] != "text"]
        shared = [name for name in shares if name in before and name not in step.raises]
        if not shared:
            continue
        changes = sorted((100 * (after[name].value - before[name].value), name) for name in shared)
        worst = ", ".join(f"{name} {change:+.1f}" for change, name in changes[:3])
        mean = sum(change for change, _ in changes) / len(changes)
        rows.append([step.stage, str(len(shared)), f"{mean:+.1f}", worst])
    headers = ["stage", "other scores", "their mean change, points", "lowest three"]
    return Table("What it did to the other skills", headers, rows) if rows else None


MEASURES = {
    "heldout_accuracy": "held-out pairs: the better answer is likelier than before",
    "heldout_margin": "held-out pairs: how much, in nats times beta",
    "success": "sampled answers that the verifier accepts",
    "heldout_bpb": "held-out text, bits a byte",
}
"""Keys of metrics.jsonl that say what a stage learnt of its own data."""


def learning_table(runs: Sequence[Run]) -> Table:
    """What changed while each stage trained, on its own data: the first tenth of what was logged and the last."""
    rows = []
    for run in runs:
        for key, words in MEASURES.items():
            values = [row[key] for row in run.metrics if isinstance(row.get(key), int | float)]
            if len(values) > 1:
                few = max(1, len(values) // 10)
                ends = [f"{float(np.mean(part)):.3f}" for part in (values[:few], values[-few:])]
                rows.append([run.name, words, *ends])
    return Table("What each stage learnt of its own data", ["stage", "measure", "at first", "at last"], rows)


def joined(results: Mapping[str, Result], names: Sequence[str]) -> Bool[np.ndarray, " items"]:
    """Right or wrong of every item of some sets; the same items in the same order for every model of a life."""
    return np.concatenate([results[name].values == 1 for name in names])


def _share(flags: Bool[np.ndarray, " items"]) -> str:
    one = Share.of(list(map(bool, flags)))
    return f"{percent(one.share)} {interval(one.low, one.high)}"


def time_table(journal: Journal) -> Table:
    """Wall-clock of every part, scores included."""
    rows = [[name, clock(seconds)] for name, seconds in journal.seconds.items()]
    rows.append(["all", clock(sum(journal.seconds.values()))])
    note = "Of a part that was killed, without what it had done before."
    return Table("Time on this machine", ["part", "time"], rows, note)
