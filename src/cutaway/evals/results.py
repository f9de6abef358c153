"""Results as files: one JSON a task beside the run, with every item's own result, so that runs can be paired later."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.errors import UserError
from cutaway.evals.answers import Answered
from cutaway.evals.intervals import mcnemar, paired_bootstrap
from cutaway.evals.multiple_choice import Scored
from cutaway.evals.text import TextScores
from cutaway.model.weights import write_text

FOLDER = "evals"
FORMAT = 1
Kind = str


@dataclass(frozen=True)
class Result:
    """A task's figures (`summary`, plain values) and those of its items.

    `values` over `weights` is the score: 1 or 0 over 1 for an item right or wrong, bits over bytes for a document.
    """

    task: str
    variant: str
    """How it was asked: two results compare only where task and variant are the same."""
    summary: dict[str, Any]
    keys: list[str]
    values: Float[np.ndarray, "items"]
    weights: Float[np.ndarray, "items"]

    @property
    def name(self) -> str:
        """Of the file and in tables."""
        return f"{self.task}.{self.variant}" if self.variant else self.task

    @property
    def value(self) -> float:
        """The headline score."""
        return float(self.values.sum() / max(1e-300, self.weights.sum()))


def of_choice(scored: Scored, summary: dict[str, Any]) -> Result:
    """The result of a multiple-choice set by its headline rule."""
    asking = scored.asking
    variant = f"{asking.style}-{asking.shots}shot" + ("-chat" if asking.chat else "")
    correct = np.array(scored.correct(scored.headline), dtype=np.float64)
    keys = [short_key(item.key) for item in scored.items]
    return Result(scored.name, variant, summary, keys, correct, np.ones(len(correct)))


def of_text(scores: TextScores, summary: dict[str, Any]) -> Result:
    """The result of a text file, in bits per byte."""
    return Result(scores.name, "bpb", summary, scores.keys, scores.nats / np.log(2), scores.bytes)


def of_answers(answered: Answered, summary: dict[str, Any], variant: str) -> Result:
    """The result of a generation task: of every task, the share of right answers."""
    right = np.array([np.mean([verdict.ok for verdict in verdicts]) for verdicts in answered.verdicts])
    keys = [short_key(f"{number} {task.key}") for number, task in enumerate(answered.tasks)]
    return Result(answered.name, variant, summary, keys, right, np.ones(len(right)))


def short_key(key: str) -> str:
    """What items are paired by."""
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).hexdigest()


def to_json(result: Result) -> dict[str, Any]:
    """The file's content."""
    items = {
        "keys": result.keys,
        "values": [round(value, 6) for value in result.values.tolist()],
        "weights": result.weights.tolist(),
    }
    return {"format": FORMAT, "task": result.task, "variant": result.variant, "summary": result.summary, "items": items}


def save_result(result: Result, run: Path) -> Path:
    """Write `RUN/evals/TASK.VARIANT.json`, in place of an earlier one."""
    path = run / FOLDER / f"{result.name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"could not write {path.parent}: {error.strerror}") from None
    write_text(json.dumps(to_json(result), ensure_ascii=False) + "\n", path)
    return path


def load_results(run: Path) -> dict[str, Result]:
    """All results beside a run, by name. Raises UserError for a file that is none."""
    found = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            items = table["items"]
            values, weights = (np.array(items[key], dtype=np.float64) for key in ("values", "weights"))
            keys = [str(key) for key in items["keys"]]
            if table["format"] != FORMAT or not len(keys) == len(values) == len(weights):
                raise ValueError(f"format {table['format']}, {len(keys)} keys, {len(values)} values")
            result = Result(str(table["task"]), str(table["variant"]), dict(table["summary"]), keys, values, weights)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a result of `cutaway eval`: {error}") from None
        found[result.name] = result
    return found


@dataclass(frozen=True)
class Difference:
    """The second of two results against the first, on the items that both have."""

    items: int
    difference: float
    low: float
    high: float
    p: float
    test: str


def compare(first: Result, second: Result) -> Difference:
    """Second minus first, with the bootstrap's interval; p by McNemar's exact test where items are right or wrong, else
    by the paired bootstrap. Raises UserError where they have no item in common."""
    places = {key: i for i, key in enumerate(first.keys)}
    pairs = [(places[key], j) for j, key in enumerate(second.keys) if key in places]
    if not pairs:
        raise UserError(f"{first.name}: the two runs have no item in common")
    mine, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    a, b = (first.values[mine], first.weights[mine]), (second.values[theirs], second.weights[theirs])
    low, high, p = paired_bootstrap(a, b)
    test = "paired bootstrap"
    if set(np.unique(np.concatenate([a[0], b[0]]))) <= {0.0, 1.0} and (a[1] == 1).all():
        p, test = mcnemar(a[0] == 1, b[0] == 1), "McNemar"
    change = float(b[0].sum() / b[1].sum() - a[0].sum() / a[1].sum())
    return Difference(len(pairs), change, low, high, p, test)
