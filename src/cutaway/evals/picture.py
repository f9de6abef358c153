"""Pictures of results: scores with their intervals beside the chance level, subjects, calibration, curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cutaway.evals.results import Result
from cutaway.training.curves import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = 40
"""Up to so many points each has a dot."""


class Column(Protocol):
    """What is drawn of a run."""

    @property
    def name(self) -> str: ...
    @property
    def results(self) -> dict[str, Result]: ...
    @property
    def metrics(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Curve:
    """A key of metrics.jsonl."""

    key: str
    title: str
    logarithmic: bool = False


CURVES = (
    Curve("heldout_bpb", "held-out bits per byte while training, over tokens"),
    Curve("loss", "training loss, over tokens (logarithmic)", logarithmic=True),
    Curve("success", "sampled answers that a verifier accepts, over tokens"),
)


def points_of(run: Column, key: str) -> list[tuple[float, float]]:
    """Tokens and values; the loss of RL says nothing by itself, and is left out."""
    return [
        (row.get("tokens", row["step"]), row[key])
        for row in run.metrics
        if row.get(key) is not None and not (key == "loss" and "rollout_tokens" in row)
    ]


def _draw_curve(axes: "Axes", curve: Curve, runs: Sequence[Column]) -> None:
    for number, run in enumerate(runs):
        points = points_of(run, curve.key)
        if points:
            x, y = zip(*points, strict=True)
            marker = "." if len(points) <= DOTS else ""
            axes.plot(x, smooth(y, len(y) // 20), color=f"C{number}", marker=marker, label=run.name)
    if curve.logarithmic:
        axes.set_yscale("log")
    axes.set_title(curve.title, fontsize=10, loc="left")
    axes.legend(fontsize=8)
    _plain(axes)


def draw_report(runs: Sequence[Column], out: Path) -> None:
    """Shares with intervals and chance, bits per byte with intervals, and the curves of training, as a PNG."""
    shares = _rows(runs, ("choice", "answers"))
    texts = _rows(runs, ("text",))
    curves = [curve for curve in CURVES if any(points_of(run, curve.key) for run in runs)]
    heights = [_height(rows, runs) for rows in (shares, texts) if rows] + [3.0] * len(curves)
    figure, save = _figure((10, sum(heights) + 0.4) if heights else (6, 1.5))
    if not heights:
        save(out)
        return
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    place = 0
    if shares:
        axes = figure.add_subplot(grid[place])
        _dots(axes, shares, runs, percent=True)
        known = any("chance" in run.results[name].summary for run in runs for name in shares if name in run.results)
        guessing = "; the grey mark is guessing" if known else ""
        axes.set_title(f"right, %, with 95 % intervals{guessing}", fontsize=10, loc="left")
        place += 1
    if texts:
        axes = figure.add_subplot(grid[place])
        _dots(axes, texts, runs, percent=False)
        axes.set_title("bits per byte with 95 % intervals (lower is better)", fontsize=10, loc="left")
        place += 1
    for curve in curves:
        axes = figure.add_subplot(grid[place])
        _draw_curve(axes, curve, runs)
        place += 1
    save(out)


def draw_choice(result: Result, out: Path, most: int = 70) -> None:
    """A multiple-choice set: accuracy by subject with intervals and chance, and how well confidence is founded."""
    summary = result.summary
    subjects = list(summary["subjects"].items())[:most] or [("all", _whole(result))]
    subjects.sort(key=lambda pair: pair[1]["accuracy"])
    figure, save = _figure((11, max(3.5, 0.17 * len(subjects) + 1.2)))
    grid = figure.add_gridspec(1, 2, width_ratios=[3, 2])
    axes = figure.add_subplot(grid[0])
    for y, (_, one) in enumerate(subjects):
        axes.plot([100 * one["low"], 100 * one["high"]], [y, y], color="C0", linewidth=1.2, alpha=0.6)
        axes.plot(100 * one["accuracy"], y, ".", color="C0")
    axes.axvline(100 * summary["chance"], color="0.5", linestyle="--", linewidth=1, label="guessing")
    axes.axvline(100 * _whole(result)["accuracy"], color="C1", linewidth=1, label="all items")
    axes.set_yticks(range(len(subjects)), [name[:36] for name, _ in subjects], fontsize=6)
    axes.set_ylim(-0.7, len(subjects) - 0.3)
    axes.set_title(f"{result.name}: right, %", fontsize=10, loc="left")
    axes.legend(fontsize=8, loc="lower right")
    _plain(axes)
    axes = figure.add_subplot(grid[1])
    bins = summary["calibration"]["bins"]
    axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1)
    sizes = [10 + 200 * one["items"] / summary["items"] for one in bins]
    axes.scatter([one["confidence"] for one in bins], [one["accuracy"] for one in bins], s=sizes, color="C0", alpha=0.7)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_title(f"right, by confidence (error {summary['calibration']['ece']:.2f})", fontsize=10, loc="left")
    _plain(axes)
    save(out)


def _whole(result: Result) -> dict[str, Any]:
    one: dict[str, Any] = result.summary["scores"][result.summary["headline"]]
    return one


def _rows(runs: Sequence[Column], kinds: Sequence[str]) -> list[str]:
    names = {name for run in runs for name, result in run.results.items() if result.summary["kind"] in kinds}
    return sorted(names, reverse=True)


def _height(rows: Sequence[str], runs: Sequence[Column]) -> float:
    return 0.9 + len(rows) * (0.16 + 0.11 * len(runs))


def _dots(axes: "Axes", names: Sequence[str], runs: Sequence[Column], percent: bool) -> None:
    scale = 100.0 if percent else 1.0
    for y, name in enumerate(names):
        for number, run in enumerate(runs):
            result = run.results.get(name)
            if result is None:
                continue
            value, low, high = _ends(result)
            at = y + 0.6 * ((len(runs) - 1) / 2 - number) / max(1, len(runs))
            label = run.name if not any(run.name == line.get_label() for line in axes.lines) else None
            axes.plot([scale * low, scale * high], [at, at], color=f"C{number}", linewidth=1.4, alpha=0.6)
            axes.plot(scale * value, at, "o", markersize=4, color=f"C{number}", label=label)
            if "chance" in result.summary:
                axes.plot([scale * result.summary["chance"]] * 2, [y - 0.4, y + 0.4], color="0.5", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.legend(fontsize=8, loc="best")
    _plain(axes)


def _ends(result: Result) -> tuple[float, float, float]:
    summary = result.summary
    if summary["kind"] == "text":
        return summary["bpb"], summary["low"], summary["high"]
    if summary["kind"] == "choice":
        one = _whole(result)
        return one["accuracy"], one["low"], one["high"]
    first = next(iter(summary["pass"].values()))
    return first["value"], first["low"], first["high"]


def _plain(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)


def _figure(size: tuple[float, float]) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)

    def save(out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=110)

    return figure, save
