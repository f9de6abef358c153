"""Going through a life: where it is in the whole, each part's plain command, and what is done already."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cutaway.errors import Stopped, UserError
from cutaway.life.journal import Journal
from cutaway.life.steps import LEAST_SHARE, TRUSTED_S
from cutaway.model.weights import write_text
from cutaway.training.plan import clock
from cutaway.training.progress import WHOLE, Place

log = logging.getLogger("cutaway")
COMMANDS = "commands.txt"
"""Beside the journal: the plain command of every part."""


@dataclass(frozen=True)
class Part:
    """One thing to do."""

    name: str
    """In the journal."""
    minutes: float
    """About how long it takes; 0 where nobody knows."""
    says: str
    work: Callable[[], None]
    """Does it, or what is left of it."""
    command: str = ""
    """The command that does the same by hand; where it takes two, a line each."""
    training: float = 0.0
    """Of the minutes, those that may become fewer; 0 where all are needed."""


def share_left(parts: Sequence[Part], name: str, journal: Journal, minutes: float) -> float:
    """The share of its training minutes that the part of this name gets, so that all parts together take `minutes`.

    What surrounds training, such as scores, takes a slow machine longer than the table says. How much longer is taken
    from the parts that are done, with `TRUSTED_S` more that went as planned, since the first parts say little. What is
    left then is shared in proportion: nobody gets more than the table says, or less than `LEAST_SHARE` of it.
    """
    place = [part.name for part in parts].index(name)
    if not parts[place].training:
        return 1.0
    spent = around = planned = 0.0
    for part in parts[:place]:
        seconds = journal.seconds.get(part.name, 0.0)
        spent += seconds
        around += seconds - 60 * part.training * share_left(parts, part.name, journal, minutes)
        planned += 60 * (part.minutes - part.training)
    slower = max(1.0, (around + TRUSTED_S) / (planned + TRUSTED_S))
    training = 60 * sum(part.training for part in parts[place:])
    rest = 60 * minutes - spent - slower * 60 * sum(part.minutes - part.training for part in parts[place:])
    return min(1.0, max(LEAST_SHARE, rest / training))


def go(parts: Sequence[Part], journal: Journal) -> None:
    """Do what is not done yet, in order."""
    _keep_commands(parts, journal.path.with_name(COMMANDS))
    for number, part in enumerate(parts, start=1):
        label = f"{number}/{len(parts)}"
        if part.name in journal.seconds:
            log.info("%s %s: done before", label, part.name)
            continue
        seconds = [60 * one.minutes for one in parts[number - 1 :]]
        left = f"; about {clock(sum(seconds))} left in all" if seconds[0] else ""
        log.info("%s %s: %s%s", label, part.name, part.says, left)
        for line in part.command.splitlines():
            log.info("  by hand: %s", line)
        began = time.monotonic()
        before = sum(journal.seconds.get(one.name, 0.0) for one in parts[: number - 1])
        here = WHOLE.set(Place(label, before, sum(seconds[1:])))
        try:
            part.work()
        except BaseException as error:
            journal.interrupted(part.name, time.monotonic() - began)
            if isinstance(error, Stopped | UserError):  # a stage says how to go on with it alone
                error.args = (str(error).replace("with --resume", "by the same command"),)
            raise
        finally:
            WHOLE.reset(here)
        journal.note(part.name, time.monotonic() - began)


def _keep_commands(parts: Sequence[Part], path: Path) -> None:
    """The plain commands, to be found again once the terminal is closed."""
    text = "\n".join(f"# {part.name}: {part.says}\n{part.command}\n" for part in parts if part.command)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(text, path)
