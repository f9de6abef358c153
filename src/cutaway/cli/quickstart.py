"""`cutaway quickstart`: the whole life of a small model, on text that the project makes itself."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.cli.common import parse
from cutaway.errors import UserError
from cutaway.recipe.files import load_recipe
from cutaway.recipe.recipe import PlanSettings

if TYPE_CHECKING:
    from cutaway.evals.tables import Table
    from cutaway.stages.rehearsal import Stage

log = logging.getLogger("cutaway")
LEAST_MINUTES = 5.0
CARDS = ("rtx3090", "rtx4090", "a100-80", "h100")
"""For what a larger model would take."""
_ANSWER_TOKENS = "64"


@dataclass(frozen=True)
class QuickstartFlags:
    """The whole life of a small model on this machine: text of a made-up town, a vocabulary, pretraining, fine-tuning,
    an adapter, preference, reinforcement learning, tools; what each stage changed, and a chat at the end."""

    out: str = "runs/quickstart"
    """Directory for data, tokenizer, runs and report; a second call goes on where the first one stopped."""
    budget_minutes: float | None = None
    """Time for everything on this machine, shared out among the stages; default 20."""
    seed: int | None = None
    """Seed of the text, the weights and the order of the data; default 0."""


def main(argv: Sequence[str]) -> int:
    """Go through the life, then open the chat; without a terminal, print a few answers instead."""
    flags = parse(QuickstartFlags, argv, prog="cutaway quickstart")
    if flags.budget_minutes is not None and not LEAST_MINUTES <= flags.budget_minutes <= 10_000:
        given = f"cutaway quickstart: --budget-minutes is {flags.budget_minutes}"
        raise UserError(f"{given}, must be between {LEAST_MINUTES:g} and 10000")
    if flags.seed is not None and flags.seed < 0:
        raise UserError(f"cutaway quickstart: --seed is {flags.seed}, must be 0 or more")
    talk(live(flags))
    return 0


def live(flags: QuickstartFlags) -> Path:
    """From nothing to the last model; gives back its directory."""
    from cutaway.life.journal import open_journal
    from cutaway.life.parts import go
    from cutaway.life.quickstart import playground_life, playground_parts, report_part, sized
    from cutaway.life.steps import LIFE_MINUTES

    given = {"seed": flags.seed, "budget_minutes": flags.budget_minutes}
    journal = open_journal(Path(flags.out), given, {"seed": 0, "budget_minutes": LIFE_MINUTES})
    life = playground_life(Path(flags.out), journal, sized(load_recipe("nano"), journal))
    go([*playground_parts(life, journal), report_part(life, journal, lambda: [gpu_costs("mini")])], journal)
    return life.model_of(life.steps[-1])


def gpu_costs(recipe: str) -> "Table":
    """What pretraining and fine-tuning by a recipe take on published text, on cards of `cutaway plan`'s table."""
    from cutaway.evals.tables import Table
    from cutaway.stages.estimate import estimate
    from cutaway.training.plan import clock, cost

    stages: tuple[Stage, ...] = ("pretrain", "sft")
    rows = []
    for card in CARDS:
        plans = [estimate(load_recipe(recipe), stage, PlanSettings(card)) for stage in stages]
        seconds = sum(plan.seconds for plan in plans)
        money = cost(seconds, plans[0].price_per_hour)
        rows.append([plans[0].where, *(clock(plan.seconds) for plan in plans), clock(seconds), f"{money:.2f} USD"])
    sizes = "; ".join(f"{plan.stage}: {plan.data}" for plan in plans)
    note = f"{sizes}. {plans[0].notes[0]}. Computed by `cutaway plan`, not measured."
    title = f"What {recipe} ({plans[0].parameters / 1e6:.0f}M parameters) would take on published text"
    return Table(title, ["card", *stages, "together", "rent"], rows, note)


def talk(model: Path) -> None:
    """Open the chat; without a terminal, ask a few questions."""
    from cutaway.cli import chat
    from cutaway.playground.write import EXAMPLE_QUESTIONS

    log.info("chat: `cutaway chat %s` opens it again", model)
    if sys.stdin.isatty() and sys.stdout.isatty():
        log.info("things it has learnt: %s", " · ".join(EXAMPLE_QUESTIONS))
        chat.main([str(model)])
        return
    for question in EXAMPLE_QUESTIONS:
        print(f"> {question}", flush=True)
        chat.main([str(model), "--prompt", question, "--temperature", "0", "--max-new-tokens", _ANSWER_TOKENS])
