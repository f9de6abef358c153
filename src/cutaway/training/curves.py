"""The curves of runs as a picture: loss, held-out bits per byte, learning rate, gradient norm and speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.training.metrics import read_metrics
from cutaway.training.reference import reading_for, subject_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One plot: a key of metrics.jsonl and how to show it."""

    key: str
    label: str
    logarithmic: bool = False
    smooth: bool = False


PANELS = (
    Panel("loss", "training loss (nats)", smooth=True),
    Panel("heldout_bpb", "held-out text (bits a byte)"),
    Panel("lr", "learning rate"),
    Panel("grad_norm", "gradient norm before clipping", logarithmic=True, smooth=True),
    Panel("tokens_per_second", "tokens a second", smooth=True),
)
_KNOWN = {panel.key for panel in PANELS} | {"step", "tokens", "elapsed_s", "mfu", "heldout_loss"}
_DOTS_BELOW = 40


def draw_curves(run_dir: Path, out: Path) -> None:
    """Draw one run's metrics.jsonl as a PNG, over its steps. Raises UserError where there are no metrics."""
    draw_runs([run_dir], out)


def draw_runs(run_dirs: Sequence[Path], out: Path) -> None:
    """Draw runs over each other as a PNG; several runs are drawn over tokens, since their steps differ in size.

    The stage's own numbers get panels after the common ones. Smoothed lines are averages over a twentieth of the
    points, with the raw values behind them. Where a recorded run belongs beside the first one, it is drawn dashed as
    `reference`. Raises UserError for a run without metrics.
    """
    runs = {name: _read(run) for name, run in zip(short_names(run_dirs), run_dirs, strict=True)}
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = [row for table in runs.values() for row in table]
    own = sorted({key for row in rows for key, value in row.items() if key not in _KNOWN and _is_number(value)})
    panels = [panel for panel in (*PANELS, *(Panel(key, key) for key in own)) if any(panel.key in row for row in rows)]
    x_key = "tokens" if len(runs) > 1 and all("tokens" in row for row in rows) else "step"
    subject = subject_of(run_dirs[0])
    reading = reading_for(subject)[0] if subject is not None else None
    last = next(iter(runs.values()))[-1]
    scale = last["step"] / last["tokens"] if x_key == "step" and last.get("tokens") else 1.0
    height = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3 * height + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(height, 2, number + 1)
        for color, (name, table) in enumerate(runs.items()):
            _draw(axes, panel, name, table, x_key, f"C{color}")
        if reading is not None and (points := reading.curve(panel.key)):
            places, values = zip(*points, strict=True)
            axes.plot([place * scale for place in places], values, "k--", linewidth=1, alpha=0.6, label="reference")
        axes.set_title(panel.label, fontsize=10, loc="left")
        axes.set_xlabel("tokens seen" if x_key == "tokens" else "step", fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.logarithmic and any((row.get(panel.key) or 0) > 0 for row in rows):
            axes.set_yscale("log")
        elif panel.key == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(which="both", labelsize=8)
        if number == 0 and (len(runs) > 1 or reading is not None):
            axes.legend(fontsize=8)
    figure.suptitle(next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=110)


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Mean over a window centred on each point, so without lag; the window is cut off at both ends."""
    reach = span // 2
    averaged = []
    for position in range(len(values)):
        window = values[max(0, position - reach) : position + reach + 1]
        averaged.append(sum(window) / len(window))
    return averaged


def _read(run: Path) -> list[dict[str, Any]]:
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run}: no metrics.jsonl there, a run directory is needed")
    rows = read_metrics(run)
    if not rows:
        raise UserError(f"{run / 'metrics.jsonl'}: no metrics in it yet")
    return rows


def short_names(run_dirs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell the runs apart."""
    parts = [run.resolve().parts for run in run_dirs]
    for depth in (1, 2, 3):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {run}" for number, run in enumerate(run_dirs, start=1)]


def _draw(axes: "Axes", panel: Panel, name: str, table: list[dict[str, Any]], x_key: str, color: str) -> None:
    points = [(row[x_key], row[panel.key]) for row in table if x_key in row and _is_number(row.get(panel.key))]
    if not points:
        return
    x, y = zip(*points, strict=True)
    marker = "." if len(points) < _DOTS_BELOW else ""
    if not panel.smooth or len(points) < _DOTS_BELOW:
        axes.plot(x, y, color=color, linewidth=1.4, marker=marker, label=name)
        return
    axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
    axes.plot(x, smooth(y, len(y) // 20), color=color, linewidth=1.6, label=name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
