"""Cleaning of training files: every record passes the rules or is counted under the first one that it breaks.

Records are read as a stream and judged a chunk at a time (`data/rules.py`), by several processes; only what earlier
records looked like is kept here, so memory grows with the index of duplicates and with nothing else. The output is
moved into place when it is complete.
"""

import dataclasses
import gzip
import lzma
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.data.formats import check_readable, raw_records, suffix_of
from cutaway.data.near import NearIndex, permutations
from cutaway.data.overlap import OverlapIndex
from cutaway.data.parallel import chunks_of_files, map_chunks
from cutaway.data.records import BadRecordError, Kind, detect_kind, parse_json
from cutaway.data.rules import RULES, CleanSettings, Finding, Given, inspect
from cutaway.errors import UserError

EXAMPLES = 5
SMALL_INPUT = 4_000_000
CHANGES = {"normalised": "text was normalised", "converted": "Chinese text was converted"}


@dataclass
class Rule:
    """How often a rule applied, to how many bytes of input, and the first few records."""

    meaning: str
    records: int = 0
    bytes: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, where: str, finding: Finding, examples: int) -> None:
        """Count one record, and keep it as an example while there are few."""
        self.records += 1
        self.bytes += finding.size
        if len(self.examples) < examples:
            self.examples.append({"where": where, "detail": finding.detail, "text": finding.text})


@dataclass
class CleanReport:
    """What was done. `removed` and `changed` are by rule; every record read is kept or counted in `removed` once."""

    files: list[str]
    settings: dict[str, Any]
    records: int = 0
    kept: int = 0
    lines: int = 0
    """Lines written; with `--script both` more than records."""
    bytes_in: int = 0
    bytes_out: int = 0
    removed: dict[str, Rule] = field(default_factory=lambda: {key: Rule(words) for key, words in RULES.items()})
    changed: dict[str, Rule] = field(default_factory=lambda: {key: Rule(words) for key, words in CHANGES.items()})
    evaluation_questions: int = 0
    evaluation_too_short: int = 0
    index_bytes: int = 0
    index_documents: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        share = self.kept / max(self.records, 1)
        lines = [f"records {self.records}, kept {self.kept} ({share:.1%}), lines written {self.lines}"]
        lines.append(f"bytes read {self.bytes_in}, written {self.bytes_out}")
        for title, rules in (("removed", self.removed), ("changed", self.changed)):
            for name, rule in rules.items():
                if rule.records:
                    lines.append(f"{title} {name:<15} {rule.records:>9}  {rule.meaning}")
                    lines += [_example(example) for example in rule.examples[:2]]
        if self.evaluation_questions:
            lines.append(
                f"evaluation questions looked for: {self.evaluation_questions}; too short to look for: "
                f"{self.evaluation_too_short}"
            )
        if self.index_documents:
            each = self.index_bytes / self.index_documents
            lines.append(f"index of duplicates: {self.index_bytes / 1e6:.1f} MB, {each:.0f} bytes a document")
        return "\n".join(lines)


def _example(example: dict[str, str]) -> str:
    text = " ".join(example["text"].split())[:60]
    return "    " + ": ".join(filter(None, (example["where"], example["detail"], text)))


class Seen:
    """What earlier records were: a hash of each, and an index of near-duplicates where they are looked for."""

    def __init__(self, near: float) -> None:
        self.near = NearIndex(near) if near else None
        self._exact: dict[int, int] = {}
        self._where = array("Q")

    def check(self, finding: Finding, file: int, names: Sequence[str]) -> None:
        """Mark the finding as a duplicate, or remember it."""
        earlier = self._exact.get(finding.exact)
        if earlier is not None:
            finding.rule, finding.detail = "duplicate", f"of {self._name(earlier, names)}"
            return
        number = len(self._where)
        if self.near is not None and finding.near is not None:
            found = self.near.find(*finding.near)
            if found is not None:
                detail = f"of {self._name(found[0], names)}, similarity about {found[1]:.2f}"
                finding.rule, finding.detail = "near_duplicate", detail
                return
            self.near.add(*finding.near, number)
        self._exact[finding.exact] = number
        self._where.append(file << 40 | finding.line)

    def __len__(self) -> int:
        return len(self._where)

    def num_bytes(self) -> int:
        """Memory, the Python integers that the dicts hold included."""
        exact = sys.getsizeof(self._exact) + len(self._exact) * (sys.getsizeof(2**62) + sys.getsizeof(2**20))
        near = self.near.num_bytes() if self.near is not None else 0
        return exact + sys.getsizeof(self._where) + near

    def _name(self, number: int, names: Sequence[str]) -> str:
        place = self._where[number]
        return f"{names[place >> 40]}:{place & (1 << 40) - 1}"


def clean_files(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: CleanSettings,
    *,
    evaluation: Sequence[str | Path] = (),
    kind: Kind | None = None,
    workers: int | None = None,
    examples: int = EXAMPLES,
    progress: Callable[[float, int], None] | None = None,
) -> CleanReport:
    """Clean files into one, and say what was done.

    Args:
        evaluation: files whose questions must not be in the output.
        kind: of all records; None for that of the first valid one.
        workers: processes; None for one a core.
        examples: records that the report shows for each rule.
        progress: called with the share of the input that is done, and the number of records.

    Raises UserError for unreadable or damaged input (no output is left then), and for settings that cannot be.
    """
    check_settings(settings)
    files, out = [Path(path) for path in paths], Path(out)
    for file in (*files, *map(Path, evaluation)):
        check_readable(file)
    if any(out.exists() and os.path.samefile(file, out) for file in files):
        raise UserError(f"{out}: is one of the inputs, choose another --out")
    if suffix_of(out) == ".parquet":
        raise UserError(f"{out}: cleaned records are written as .jsonl, .jsonl.gz, .jsonl.xz or .jsonl.zst")
    if settings.near:
        permutations()  # the extra is missed before anything is read
    index = OverlapIndex.from_files(evaluation) if evaluation else None
    given = Given(settings, kind or first_kind(files), index)
    report = CleanReport([str(file) for file in files], dataclasses.asdict(settings))
    if index is not None:
        report.evaluation_questions, report.evaluation_too_short = len(index.questions), index.too_short
    total = sum(file.stat().st_size for file in files)
    processes = (workers or os.cpu_count() or 1) if workers or total > SMALL_INPUT else 1
    seen = Seen(settings.near)
    partial = out.with_name(f".{os.getpid()}.partial-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _writer(partial) as sink:
            for place, findings in map_chunks(inspect, given, chunks_of_files(files), processes):
                for finding in findings:
                    _settle(finding, place.file, report, seen, sink, examples)
                if progress is not None:
                    progress(place.position / total, report.records)
        partial.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    report.index_documents, report.index_bytes = len(seen), seen.num_bytes()
    return report


def check_settings(settings: CleanSettings) -> None:
    """Raises UserError for a value that cannot be."""
    for name in ("min_letters", "max_repetition", "near", "coverage"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} is {value}, must be between 0 and 1")
    if 0 < settings.near < 0.5:
        raise UserError(f"near is {settings.near}, must be 0 (off) or at least 0.5: bands find no lower similarity")
    if settings.max_chars < 1 or (settings.min_chars or 0) < 0:
        raise UserError("min_chars must be 0 or more, max_chars at least 1")
    if not all(len(name.strip()) == 2 or name.strip() == "any" for name in settings.languages.split(",")):
        raise UserError(f"languages '{settings.languages}': must be two-letter codes such as zh,en, or any")


def first_kind(files: Sequence[Path]) -> Kind:
    """What the first record of a known kind is."""
    for file in files:
        for record in raw_records(file):
            try:
                if record.reason:
                    continue
                value = parse_json(record.raw) if isinstance(record.raw, bytes) else record.raw
                if isinstance(value, dict):
                    return detect_kind(value)
            except BadRecordError:
                continue
    raise UserError(f"{', '.join(map(str, files))}: no record of a known kind")


def _settle(finding: Finding, file: int, report: CleanReport, seen: Seen, sink: Any, examples: int) -> None:
    if not finding.rule:
        seen.check(finding, file, report.files)
    where = f"{report.files[file]}:{finding.line}"
    report.records += 1
    report.bytes_in += finding.size
    if finding.rule:
        report.removed[finding.rule].add(where, finding, examples)
        return
    sink.write(finding.output)
    report.kept += 1
    report.lines += finding.output.count(b"\n")
    report.bytes_out += len(finding.output)
    for name, applied in (("normalised", finding.normalised), ("converted", finding.converted)):
        if applied:
            report.changed[name].add(where, finding, examples)


def _writer(path: Path) -> Any:
    """A file that compresses as its name says."""
    suffix = suffix_of(path)
    if suffix == ".jsonl.gz":
        return gzip.open(path, "wb", compresslevel=6)
    if suffix == ".jsonl.xz":
        return lzma.open(path, "wb", preset=3)
    if suffix == ".jsonl.zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: writing .zst needs the zstd extra: pip install 'cutaway[zstd]'") from None
        return zstandard.open(path, "wb")
    return open(path, "wb")
