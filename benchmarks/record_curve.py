"""Record a run's curve as the reference of its recipe and stage.

    python benchmarks/record_curve.py RUN [--machine TEXT] [--out src/cutaway/recipes/curves]

The run must be complete and must have been made with the recipe's own shape; its losses are averaged to a hundred
points. The file says by which command, on what machine and data, and when it was made.
"""

import argparse
import json
import os
import platform
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cutaway.training.metrics import read_metrics
from cutaway.training.reference import KEYS, subject_of

POINTS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--machine", default=machine())
    parser.add_argument("--out", type=Path, default=Path("src/cutaway/recipes/curves"))
    arguments = parser.parse_args()
    subject = subject_of(arguments.run)
    if subject is None:
        sys.exit(f"{arguments.run}: no run of a stage (recipe.toml, config.json) that could be recorded")
    recipe = tomllib.loads((arguments.run / "recipe.toml").read_text(encoding="utf-8"))
    settings, rows = recipe[subject.stage], read_metrics(arguments.run)
    if rows[-1]["step"] != settings["steps"]:
        sys.exit(
            f"{arguments.run}: stands at step {rows[-1]['step']} of {settings['steps']}: go on with --resume first"
        )
    last = next(row for row in reversed(rows) if "elapsed_s" in row)
    flags = [f"--{name.replace('_', '-')} {settings[name]}" for name in ("steps", "batch_tokens", "row_length")]
    data = " ".join(f"D/{Path(file).name}" for file in recipe["run"]["data"])
    document = {
        "subject": asdict(subject),
        "command": f"cutaway {subject.stage} --recipe {subject.recipe} --data {data} --init INIT {' '.join(flags)}",
        "machine": arguments.machine,
        "date": recipe["made"]["started"][:10],
        "torch": recipe["made"]["torch"],
        "data": list(subject.data),
        "seconds": round(last["elapsed_s"]),
        "curves": {key: averaged(rows, key) for key in KEYS},
    }
    out = arguments.out / f"{subject.recipe}-{subject.stage}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print(f"{out}: {len(document['curves']['loss'])} points of {last['tokens']:,} tokens")


def averaged(rows: list[dict[str, Any]], key: str) -> list[list[float]]:
    """Tokens and value of at most POINTS points, each the mean of as many neighbours."""
    points = [(row["tokens"], row[key]) for row in rows if row.get(key) is not None]
    size = -(-len(points) // POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [[round(sum(column) / len(part), 4) for column in zip(*part, strict=True)] for part in parts]


def machine() -> str:
    """The processor and how much of it, without a name that would tell whose it is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {model}"


if __name__ == "__main__":
    main()
