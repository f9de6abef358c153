"""The same numbers that `metrics.jsonl` has, sent to wandb, SwanLab or Trackio as well, when asked (`--track`).

Each keeps to its own settings and environment (WANDB_MODE, SWANLAB_MODE, TRACKIO_DIR, keys); `offline` variants of them
write into the run directory or where these say. A resumed run goes on under the same id, kept in `tracker.json`. A
tracker that fails while training goes is left out from then on: no run ends for its sake.
"""

import json
import logging
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cutaway.errors import UserError
from cutaway.model.weights import write_text

log = logging.getLogger("cutaway")
TrackerName = Literal["off", "wandb", "swanlab", "trackio"]
PROJECT = "cutaway"


@dataclass
class Tracker:
    """A place that numbers go to; `send(metrics, step)` and `finish()` are the library's own."""

    name: str
    send: Callable[[dict[str, float], int], Any]
    finish: Callable[[], Any]

    def write(self, metrics: dict[str, Any]) -> None:
        """Send the finite numbers of a line of metrics."""
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._try(lambda: self.send(numbers, int(metrics["step"])))

    def close(self) -> None:
        """Finish the run there."""
        self._try(self.finish)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            log.warning("%s failed (%s: %s): no more is sent to it", self.name, type(error).__name__, error)
            self.send, self.finish = (lambda metrics, step: None), (lambda: None)


def open_tracker(name: TrackerName, run: Path, settings: dict[str, Any], resume: bool) -> Tracker | None:
    """Start, or on resume go on with, a run of the tracker `name`; None where it is off.

    Raises UserError where the library is missing or cannot start (no key, no network), which offline modes avoid.
    """
    if name == "off":
        return None
    start = {"wandb": _wandb, "swanlab": _swanlab, "trackio": _trackio}[name]
    identity = _identity(name, run, resume)
    try:
        send, finish = start(run, identity, settings)
    except ImportError:
        raise UserError(f"--track {name} needs the track extra: pip install 'cutaway[track]'") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = {"wandb": "WANDB_MODE=offline", "swanlab": "SWANLAB_MODE=offline"}.get(name)
        without = f" ({hint} works without)" if hint else ""
        raise UserError(f"--track {name}: it cannot start: {reason}{without}") from None
    return Tracker(name, send, finish)


def _identity(name: str, run: Path, resume: bool) -> str:
    path = run / "tracker.json"
    if resume and path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("tracker") == name:
            return str(known["id"])
    identity = uuid.uuid4().hex[:8]
    write_text(json.dumps({"tracker": name, "id": identity}) + "\n", path)
    return identity


Started = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]


def _wandb(run: Path, identity: str, settings: dict[str, Any]) -> Started:
    import wandb

    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=identity,
        resume="allow",
        dir=str(run),
        config=settings,
    )
    return (lambda metrics, step: tracked.log(metrics, step=step)), tracked.finish


def _swanlab(run: Path, identity: str, settings: dict[str, Any]) -> Started:
    import swanlab

    options: dict[str, Any] = {"project": PROJECT, "config": settings, "log_dir": str(run / "swanlog")}
    tracked = swanlab.init(name=run.name, id=identity, resume="allow", **options)
    return (lambda metrics, step: tracked.log(metrics, step=step)), swanlab.finish


def _trackio(run: Path, identity: str, settings: dict[str, Any]) -> Started:
    import trackio

    tracked = trackio.init(
        project=PROJECT,
        name=f"{run.name}-{identity}",
        resume="allow",
        config=settings,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return (lambda metrics, step: tracked.log(metrics, step=step)), trackio.finish
