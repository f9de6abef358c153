"""Reference curves: what a recipe's loss was in the run that was recorded, so that "is my number right?" has an answer.

A recorded curve is `recipes/curves/RECIPE-STAGE.json`, written by `benchmarks/record_curve.py RUN`.
"""

import bisect
import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

NEAR = 0.25
"""Runs whose lengths differ by at most this share are compared at the same share of training, others at the same
tokens: the learning rate falls with the share, and a loss is read off best where the rates are alike."""
KEYS = ("loss", "heldout_bpb")


@dataclass(frozen=True)
class Subject:
    """What a run is, as far as its curve hangs on it."""

    recipe: str
    stage: str
    parameters: int
    vocab_size: int
    data: tuple[str, ...]
    """Names of the training files, without folder and ending."""
    tokens: int
    """Tokens of the whole run."""


@dataclass(frozen=True)
class Reference:
    """A recorded run."""

    subject: Subject
    command: str
    machine: str
    date: str
    curves: dict[str, list[list[float]]]
    """For `loss` and `heldout_bpb`, pairs of tokens seen and value, ascending."""


@dataclass(frozen=True)
class Reading:
    """A recorded run, read at the places of another one of `tokens` tokens."""

    reference: Reference
    tokens: int

    @property
    def by_share(self) -> bool:
        """Whether places correspond by share of training; else by tokens."""
        return abs(self.tokens / self.reference.subject.tokens - 1) <= NEAR

    @property
    def _stretch(self) -> float:
        return self.tokens / self.reference.subject.tokens if self.by_share else 1.0

    def curve(self, key: str) -> list[tuple[float, float]]:
        """The recorded values, at the tokens of the other run to which they correspond."""
        return [(place * self._stretch, value) for place, value in self.reference.curves.get(key, [])]

    def value(self, key: str, tokens: int) -> float | None:
        """The recorded value at that place, interpolated; None before the first and well after the last."""
        points = self.curve(key)
        places = [place for place, _ in points]
        if not points or not places[0] <= tokens <= places[-1] * 1.05:
            return None
        after = min(bisect.bisect_left(places, tokens), len(points) - 1)
        (right, high), (left, low) = points[after], points[max(0, after - 1)]
        return high if tokens >= right else low + (high - low) * (tokens - left) / (right - left)


def load_reference(recipe: str, stage: str) -> Reference | None:
    """The curve that comes with the package, if one was recorded."""
    path = resources.files("cutaway") / "recipes" / "curves" / f"{recipe}-{stage}.json"
    if not path.is_file():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    subject = Subject(**(table.pop("subject") | {"data": tuple(table["data"])}))
    return Reference(subject, **{key: table[key] for key in ("command", "machine", "date", "curves")})


def reading_for(subject: Subject) -> tuple[Reading | None, str]:
    """The recorded run that belongs beside this one, and a sentence: where it is from, or why there is none."""
    name = f"{subject.recipe}, {subject.stage}"
    reference = load_reference(subject.recipe, subject.stage)
    if reference is None:
        return None, f"no curve is recorded for {name}; python benchmarks/record_curve.py RUN records that of a run"
    recorded = reference.subject
    for what in ("vocab_size", "parameters", "data"):
        theirs, ours = getattr(recorded, what), getattr(subject, what)
        if theirs != ours:
            was, now = (" ".join(value) if isinstance(value, tuple) else f"{value:,}" for value in (theirs, ours))
            return None, f"none to compare with: the recorded run of {name} has {what} {was}, this one {now}"
    reading = Reading(reference, subject.tokens)
    place = "share of training" if reading.by_share else f"tokens, of {recorded.tokens / 1e6:.3g}M"
    return reading, f"recorded {reference.date} on {reference.machine}; shown at the same {place}"


def data_names(files: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names that stay the same when a file is moved or packed differently."""
    return tuple(sorted(Path(file).name.split(".jsonl")[0].removesuffix(".parquet") for file in files))


def subject_of(run: Path) -> Subject | None:
    """What the run in a directory is; None where its files do not say."""
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
        made = recipe["made"]
        settings = recipe[made["stage"]]
        return Subject(
            recipe=recipe["name"],
            stage=made["stage"],
            parameters=made["parameters"],
            vocab_size=config["vocab_size"],
            data=data_names(recipe["run"]["data"]),
            tokens=settings["steps"] * settings["batch_tokens"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
