"""`cutaway data get`, `check`, `stats`, `clean`, `answer`: fetch files, see what is in them, take out what should not
be, have a teacher answer them."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cutaway.cli.common import parse, progress_bar
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


@dataclass(frozen=True)
class _CleanFiles:
    """What is read and written."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE...")]
    """Files (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet)."""
    out: str
    """File to write (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst); the report goes beside it as .report.json."""
    evaluation: tuple[str, ...] = ()
    """Evaluation files whose questions must not be in the output."""
    kind: KindFlag = "auto"
    """What the records must be; `auto` takes what the first record is."""
    workers: int | None = None
    """Processes; by default one a core."""


@dataclass(frozen=True)
class GetFlags:
    """Fetch published data sets; a download that broke off goes on, and what arrives is checked.

    A name is one of MiniMind's sets (pretrain_t2t, pretrain_t2t_mini, sft_t2t, sft_t2t_mini, dpo, rlaif, agent_rl,
    agent_rl_math, lora_identity, lora_medical, lora_exam), an evaluation set (ceval, cmmlu, mmlu, arc_easy,
    arc_challenge, hellaswag, piqa, openbookqa), or owner/name or owner/name:file of any data set on the hub.
    HF_ENDPOINT names a mirror of the hub.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME...")]
    """Data sets."""
    out: str = "data"
    """Folder to write."""
    source: Literal["hf", "modelscope"] = "hf"
    """The Hugging Face hub or a mirror of it, or ModelScope (MiniMind's sets are on both)."""


@dataclass(frozen=True)
class _AnswerFiles:
    """What is read and written."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE...")]
    """Files of conversations; everything up to the last question is asked."""
    out: str
    """File to write (.jsonl); one that is there is gone on with."""
    api_key: str | None = None
    """Key of the endpoint; by default the environment's OPENAI_API_KEY."""
    skip_bad: int = 0
    """Bad records tolerated (each is reported)."""


USAGE = """usage: cutaway data get NAME... [--out DIR] [--source hf|modelscope]
       cutaway data check FILE... [--kind KIND]
       cutaway data stats FILE... [--tokenizer DIR]
       cutaway data clean FILE... --out FILE [--evaluation FILE...]
       cutaway data answer FILE... --out FILE --endpoint URL --model NAME

`cutaway data ACTION --help` explains the settings."""


def main(argv: Sequence[str]) -> int:
    """Dispatch the actions."""
    actions = {"get": get, "check": check, "stats": stats, "clean": clean, "answer": answer}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] not in actions:
        raise UserError(f"cutaway data: no action '{argv[0]}' (known: {', '.join(actions)})")
    actions[argv[0]](argv[1:])
    return 0


def _need(names: Sequence[str], action: str) -> None:
    if not names:
        raise UserError(f"cutaway data {action}: name at least one {'data set' if action == 'get' else 'file'}")


def get(argv: Sequence[str]) -> None:
    """Fetch, and print the path of every file."""
    flags = parse(GetFlags, argv, prog="cutaway data get")
    _need(flags.names, "get")
    from cutaway.data import hub

    for name in flags.names:
        path = None if name in hub.MINIMIND_FILES or "/" in name else _evaluation_set(name, Path(flags.out))
        for file in hub.get(name, Path(flags.out), flags.source) if path is None else [path]:
            print(file)
    if any(name in hub.MINIMIND_FILES for name in flags.names):
        print(f"licence of MiniMind's sets: {hub.MINIMIND_LICENCE}", file=sys.stderr)


def _evaluation_set(name: str, out: Path) -> Path | None:
    """The questions of an evaluation set as a file, for `data clean --evaluation`; None where there is no such set."""
    from cutaway.evals.sets import SETS, load

    if name not in SETS:
        return None
    lines = []
    for item in load(name):
        record = {"subject": item.subject, "question": item.question, "choices": item.choices, "answer": item.answer}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path = out / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def check(argv: Sequence[str]) -> None:
    """Print one line a file. Raises UserError where anything is bad, after all files were read."""
    flags = parse(CheckFlags, argv, prog="cutaway data check")
    _need(flags.files, "check")
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


def stats(argv: Sequence[str]) -> None:
    """Print a small table, or a JSON object, for each file."""
    flags = parse(StatsFlags, argv, prog="cutaway data stats")
    _need(flags.files, "stats")
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


def clean(argv: Sequence[str]) -> None:
    """Clean files into one; print what was done and write it down beside the output."""
    from cutaway.data.clean import clean_files
    from cutaway.data.formats import suffix_of
    from cutaway.data.rules import CleanSettings

    @dataclass(frozen=True)
    class CleanFlags:
        """Normalise text, remove what is unfit, repeated or leaked from an evaluation, and say what was done."""

        source: tyro.conf.OmitArgPrefixes[_CleanFiles]
        settings: tyro.conf.OmitArgPrefixes[CleanSettings]

    flags = parse(CleanFlags, argv, prog="cutaway data clean")
    source = flags.source
    _need(source.files, "clean")
    with progress_bar("cleaning") as progress:
        report = clean_files(
            source.files,
            source.out,
            flags.settings,
            evaluation=source.evaluation,
            kind=None if source.kind == "auto" else source.kind,
            workers=source.workers,
            progress=progress,
        )
    path = Path(source.out.removesuffix(suffix_of(source.out)) + ".report.json")
    path.write_text(json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(report)
    print(f"written: {source.out}, {path}")


def answer(argv: Sequence[str]) -> None:
    """Have a teacher answer the questions of files; print what became of them."""
    from cutaway.stages.answer import Teacher, answer_files

    @dataclass(frozen=True)
    class AnswerFlags:
        """Ask a teacher behind an OpenAI-compatible endpoint every question of the files, and write an SFT file."""

        source: tyro.conf.OmitArgPrefixes[_AnswerFiles]
        teacher: tyro.conf.OmitArgPrefixes[Teacher]

    flags = parse(AnswerFlags, argv, prog="cutaway data answer")
    source = flags.source
    _need(source.files, "answer")
    key = source.api_key or os.environ.get("OPENAI_API_KEY")
    with progress_bar("answers") as progress:
        report = answer_files(
            source.files, Path(source.out), flags.teacher, api_key=key, skip_bad=source.skip_bad, progress=progress
        )
    print(f"{source.out}: {report}")
