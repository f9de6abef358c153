"""`cutaway data check` and `cutaway data stats`: is a file usable, and what is in it?"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

KindFlag = Literal["auto", "pretrain", "sft", "preference", "rl", "multiple_choice"]


@dataclass(frozen=True)
class CheckFlags:
    """Validate every record of training files; each bad one is named as file:line: reason."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE...")]
    """Files (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet)."""
    kind: KindFlag = "auto"
    """What the records must be; `auto` takes each file for what its first record is."""


@dataclass(frozen=True)
class StatsFlags:
    """Describe training files: records, duplicates, lengths, scripts, turns."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE...")]
    """Files (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet)."""
    kind: KindFlag = "auto"
    """What the records must be; `auto` takes each file for what its first record is."""
    tokenizer: str | None = None
    """Tokenizer or model directory, to count tokens too."""
    json: bool = False
    """Print one JSON object a file instead of tables."""


def main(argv: Sequence[str]) -> int:
    """Dispatch `check` and `stats`."""
    actions: dict[str, tuple[Any, Any]] = {"check": (CheckFlags, check), "stats": (StatsFlags, stats)}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: cutaway data check FILE... [--kind KIND]\n       cutaway data stats FILE... [--tokenizer DIR]\n")
        print("`cutaway data ACTION --help` explains the settings.")
        return 0
    if argv[0] not in actions:
        raise UserError(f"cutaway data: no action '{argv[0]}' (known: {', '.join(actions)})")
    flags_type, action = actions[argv[0]]
    flags = parse(flags_type, argv[1:], prog=f"cutaway data {argv[0]}")
    if not flags.files:
        raise UserError(f"cutaway data {argv[0]}: name at least one file")
    action(flags)
    return 0


def check(flags: CheckFlags) -> None:
    """Print one line a file. Raises UserError where anything is bad, after all files were read."""
    from cutaway.data.describe import check_files

    messages: list[str] = []
    total = 0
    for path in flags.files:
        report = check_files([path], None if flags.kind == "auto" else flags.kind)
        if report.records:
            print(f"{path}: {report.kind}, {report.records} good records, {report.bad_count} bad")
        messages += report.bad
        total += report.bad_count
    if total == 1:
        raise UserError(messages[0])
    for message in messages:
        print(message, file=sys.stderr)
    if total:
        listed = "" if total == len(messages) else f", the first {len(messages)} are listed above"
        raise UserError(f"{total} bad records{listed}: repair them, or train with --skip-bad {total}")


def stats(flags: StatsFlags) -> None:
    """Print a small table, or a JSON object, for each file."""
    from cutaway.data.describe import describe_files
    from cutaway.tokenization.tokenizer import Tokenizer

    tokenizer = None if flags.tokenizer is None else Tokenizer.load(flags.tokenizer)
    for path in flags.files:
        table = describe_files([path], None if flags.kind == "auto" else flags.kind, tokenizer).to_dict()
        if flags.json:
            print(json.dumps({"file": path, **table}, ensure_ascii=False))
            continue
        print(path)
        for name, value in table.items():
            cells = value.items() if isinstance(value, dict) else ()
            text = ", ".join(f"{key} {cell}" for key, cell in cells if cell) if cells else str(value)
            print(f"  {name.replace('_', ' '):<20} {text}")
