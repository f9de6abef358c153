"""What a person sees while a run is going: a live bar on a terminal, plain lines otherwise."""

import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cutaway.training.plan import clock, cost
from cutaway.training.reference import Reading


@dataclass(frozen=True)
class Place:
    """Where a run stands in a longer work."""

    label: str
    """Such as 3/9."""
    seconds_before: float
    """What came before it took: the cost begins with it."""
    seconds_after: float
    """About what comes after it takes; 0 where nobody knows."""


WHOLE: ContextVar[Place | None] = ContextVar("whole", default=None)
"""The longer work that runs begun now are part of."""


class TrainingProgress:
    """Step, loss, that of the reference curve, speed, MFU, time left and cost of a run."""

    def __init__(
        self, stage: str, total: int, done: int, price_per_hour: float, quiet: bool, reading: Reading | None = None
    ) -> None:
        self.total, self.price, self.quiet, self.reading = total, price_per_hour, quiet, reading
        self.place = WHOLE.get()
        stage = f"{self.place.label} {stage}" if self.place is not None else stage
        self.head = f"{stage} · " if self.place is not None else ""
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self.started, self.first, self.printed = time.monotonic(), done, 0.0
        if self.live:
            columns = (TextColumn(f"[bold]{stage}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
            self.progress = Progress(*columns, console=self.console, transient=False)
            self.task = self.progress.add_task(stage, total=total, completed=done, line="starting")
            self.progress.start()

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Show the newest metrics; without a terminal at most one line every ten seconds, and the last one."""
        if self.quiet:
            return
        line = self._line(step, metrics)
        if self.live:
            self.progress.update(self.task, completed=step, line=line)
        elif step == self.total or time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            print(self.head + line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self.live:
            self.progress.stop()

    def _line(self, step: int, metrics: dict[str, Any]) -> str:
        passed = time.monotonic() - self.started
        left = passed / max(1, step - self.first) * (self.total - step)
        parts = [f"step {step}/{self.total}", f"loss {metrics['loss']:.3f}{self._recorded('loss', metrics)}"]
        if "heldout_bpb" in metrics:
            recorded = self._recorded("heldout_bpb", metrics)
            parts.append(f"held-out {metrics['heldout_bpb']:.3f} bits/byte{recorded}")
        parts += [f"{metrics['tokens_per_second']:,.0f} tokens/s", f"MFU {metrics['mfu']:.0%}", f"{clock(left)} left"]
        if self.place is not None and self.place.seconds_after:
            parts[-1] += f", {clock(left + self.place.seconds_after)} in all"
        if self.price:
            before = self.place.seconds_before if self.place is not None else 0.0
            parts.append(f"cost {cost(before + metrics['elapsed_s'], self.price):.2f}")
        return " · ".join(parts)

    def _recorded(self, key: str, metrics: dict[str, Any]) -> str:
        value = self.reading.value(key, metrics["tokens"]) if self.reading is not None else None
        return "" if value is None else f" (reference {value:.3f})"


def print_tokens(rows: list[Text]) -> None:
    """Rows of tokens in colour, for `--dump-tokens`."""
    console = Console(stderr=True, highlight=False)
    for row in rows:
        console.print(row)
        console.print()
