"""What every stage of a quickstart did to every skill: a thousand items of each, over several seeds.

    cutaway quickstart --out DIR/seed-0 --seed 0        (and 1, and 2)
    python benchmarks/life.py DIR/seed-0 DIR/seed-1 DIR/seed-2 [--items 1000]

Answers greedily, in the forms that the report of a quickstart scores; what is answered already is not asked again (the
answers lie in SEED/exam-ITEMS). Prints a table a stage: each skill before and after in the mean of the seeds, the least
and the greatest change of a seed, and McNemar's p over all seeds together; then what is wanted, and whether it was met.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cutaway.evals.intervals import mcnemar
from cutaway.evals.results import Result
from cutaway.life.journal import NAME, open_journal
from cutaway.life.quickstart import playground_life
from cutaway.life.report import joined
from cutaway.life.scoring import read_exam, score
from cutaway.life.stage import Life
from cutaway.life.steps import PLAYGROUND, Step
from cutaway.life.town import tools_of
from cutaway.recipe.files import load_recipe
from cutaway.training.plan import clock

MOST_FALL = 3.0
"""Points that a skill may lose by a stage that is not there for it, in the mean of the seeds."""
Scores = Mapping[str, Result]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lives", nargs="+", type=Path)
    parser.add_argument("--items", type=int, default=1000, help="of each skill, or as many as there are")
    flags = parser.parse_args(argv)
    lives = [read_life(path) for path in flags.lives]
    before: list[Scores] = []
    met = True
    for step in PLAYGROUND[1:]:
        after = [scores_of(life, step, flags.items) for life in lives]
        met &= print_stage(step, before, after)
        before = after
    return 0 if met else 1


def read_life(path: Path) -> Life:
    """A life that is complete; prints how long it took."""
    if not (path / NAME).is_file():
        sys.exit(f"{path}: no life is there (cutaway quickstart --out {path})")
    journal = open_journal(path, {}, {})
    print(f"{path.name}: {clock(sum(journal.seconds.values()))} in all")
    return playground_life(path, journal, load_recipe("nano"))


def scores_of(life: Life, step: Step, items: int) -> Scores:
    """Of the model that a step left."""
    exam = read_exam(life.data, tools_of(life.data), items)
    kept = life.out / f"exam-{items}" / step.stage
    kept.mkdir(parents=True, exist_ok=True)
    return score(life.model_of(step), exam, True, kept)


def print_stage(step: Step, before: Sequence[Scores], after: Sequence[Scores]) -> bool:
    """The table of a stage; whether it raised what it is there for, and no other skill fell too far."""
    print(f"\n{step.stage}, there for {', '.join(step.raises)}", flush=True)
    print(f"{'skill':18} {'items':>6} {'before':>8} {'after':>8} {'change':>8}   of a seed        p")
    fell: dict[str, float] = {}
    for name in after[0]:
        now = 100 * float(np.mean([scores[name].value for scores in after]))
        count = sum(len(scores[name].keys) for scores in after)
        if not before:
            print(f"{name:18} {count:6} {'':8} {now:7.1f} %")
            continue
        changes = [100 * (two[name].value - one[name].value) for one, two in zip(before, after, strict=True)]
        change, was = float(np.mean(changes)), now - float(np.mean(changes))
        flags = [np.concatenate([joined(scores, [name]) for scores in side]) for side in (before, after)]
        ends, p = f"{min(changes):+.1f} to {max(changes):+.1f}", mcnemar(*flags)
        print(f"{name:18} {count:6} {was:6.1f} % {now:6.1f} % {change:+8.1f}   {ends:14} {p:6.2g}")
        if name not in step.raises:
            fell[name] = change
    if not before:
        return True
    raised = all_raised(step, before, after)
    return verdict(min(fell.values()) >= -MOST_FALL, f"no other skill falls by more than {MOST_FALL:g} points") & raised


def all_raised(step: Step, before: Sequence[Scores], after: Sequence[Scores]) -> bool:
    """Whether the scores that a stage is there for rose, all their items together, in every seed."""
    rates = []
    for one, two in zip(before, after, strict=True):
        was, now = joined(one, step.raises), joined(two, step.raises)
        rates.append((now.sum() - was.sum()) / len(now))
    points = ", ".join(f"{100 * rate:+.1f}" for rate in rates)
    return verdict(min(rates) > 0, f"what it is there for rises in every seed (points: {points})")


def verdict(held: bool, what: str) -> bool:
    print(f"  {'met' if held else 'NOT MET'}: {what}", flush=True)
    return held


if __name__ == "__main__":
    sys.exit(main())
