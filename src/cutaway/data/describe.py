"""What is in data files: every bad record with its reason, and statistics of the good ones."""

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data.formats import RawRecord, raw_records
from cutaway.data.hashing import content_hash
from cutaway.data.records import KINDS, BadRecordError, Kind, detect_kind, parse_json, parse_record
from cutaway.data.scripts import HAN, HANS, HANT, KANA, LATIN, count_scripts
from cutaway.errors import UserError
from cutaway.tokenization.chat import render
from cutaway.tokenization.tokenizer import Tokenizer

LISTED_BAD = 100
_CLASSES = {"hans": HANS, "hant": HANT, "han_both": HAN, "latin": LATIN, "kana": KANA, "other": 0}


@dataclass
class CheckReport:
    """`bad` lists the first bad records as `file:line: reason`; unreadable files are in it too."""

    kind: Kind | None = None
    records: int = 0
    bad_count: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one bad record, and list it while there is room."""
        self.bad_count += 1
        if len(self.bad) < LISTED_BAD:
            self.bad.append(message)


@dataclass
class Stats:
    """Statistics of valid records. Lengths are in characters; shares are 0 to 1."""

    kind: Kind
    records: int = 0
    bad: int = 0
    bytes: int = 0
    characters: int = 0
    duplicates: int = 0
    """Records whose content stood before in these files, exactly."""
    scripts: dict[str, float] = field(default_factory=dict)
    """Share of the characters: hans (simplified only), hant (traditional only), han_both, latin, kana, other."""
    length_percentiles: dict[str, int] = field(default_factory=dict)
    tokens: int | None = None
    token_percentiles: dict[str, int] | None = None
    roles: dict[str, int] = field(default_factory=dict)
    """Turns by role (conversations)."""
    mean_turns: float | None = None
    tools_share: float | None = None
    """Conversations that offer tools or call one."""
    thinking_share: float | None = None
    """Conversations with a thinking block that is not empty."""

    def to_dict(self) -> dict[str, Any]:
        """All fields that have a value."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, {})}


def check_files(paths: Iterable[str | Path], kind: Kind | None = None) -> CheckReport:
    """Read everything and report every bad record instead of stopping at the first.

    Without `kind` the first record that has a known one decides, and all others must be like it.
    """
    report = CheckReport(kind)
    for path in paths:
        try:
            for record in raw_records(path):
                try:
                    report.kind = report.kind or _kind_of(record)
                    _parse(record, report.kind)
                    report.records += 1
                except BadRecordError as error:
                    report.add(f"{path}:{record.line}: {error}")
        except UserError as error:
            report.add(str(error))
    return report


def describe_files(paths: Iterable[str | Path], kind: Kind | None = None, tokenizer: Tokenizer | None = None) -> Stats:
    """Statistics over all valid records; bad ones are only counted (`check_files` lists them).

    With a tokenizer, tokens as training counts them. Memory: 8 bytes a record each for hash, length and tokens. Raises
    UserError for an unreadable file and where no record is valid.
    """
    hashes, lengths, tokens = array("Q"), array("Q"), array("Q")
    scripts = np.zeros(len(_CLASSES), dtype=np.int64)
    conversations: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    number_bad = number_bytes = 0
    files = list(paths)
    for record in (record for path in files for record in raw_records(path)):
        try:
            kind = kind or _kind_of(record)
            value = _parse(record, kind)
        except BadRecordError:
            number_bad += 1
            continue
        text = "\n".join(_texts(value))
        number_bytes += len(text.encode("utf-8"))
        scripts += count_scripts(text)
        lengths.append(len(text))
        hashes.append(content_hash(json.dumps(value, ensure_ascii=False, sort_keys=True)))
        if tokenizer is not None:
            tokens.append(_count_tokens(value, kind, tokenizer))
        for turns in (value.get(key) for key in ("conversations", "chosen")):
            if turns:
                roles.update(turn["role"] for turn in turns)
                conversations["all"] += 1
                conversations["tools"] += any(turn.get("tools") or turn.get("tool_calls") for turn in turns)
                conversations["thinking"] += any((turn.get("reasoning_content") or "").strip() for turn in turns)
    if kind is None or not lengths:
        raise UserError(f"{', '.join(map(str, files))}: no valid record{f' of kind {kind}' if kind else ''}")
    stats = Stats(kind, len(lengths), number_bad, number_bytes, sum(lengths))
    stats.duplicates = len(hashes) - len(np.unique(np.asarray(hashes)))
    total = max(int(scripts.sum()), 1)
    stats.scripts = {name: round(int(scripts[index]) / total, 4) for name, index in _CLASSES.items()}
    stats.length_percentiles = _percentiles(lengths)
    if tokenizer is not None:
        stats.tokens, stats.token_percentiles = sum(tokens), _percentiles(tokens)
    if conversations["all"]:
        stats.roles = dict(roles)
        stats.mean_turns = round(roles.total() / conversations["all"], 2)
        stats.tools_share = round(conversations["tools"] / conversations["all"], 4)
        stats.thinking_share = round(conversations["thinking"] / conversations["all"], 4)
    return stats


def _kind_of(record: RawRecord) -> Kind:
    if record.reason:
        raise BadRecordError(record.reason)
    value = parse_json(record.raw) if isinstance(record.raw, bytes) else record.raw
    if not isinstance(value, dict):
        raise BadRecordError(f"a record must be a JSON object with the keys of one of {', '.join(KINDS)}")
    return detect_kind(value)


def _parse(record: RawRecord, kind: Kind) -> dict[str, Any]:
    if record.reason:
        raise BadRecordError(record.reason)
    return parse_record(record.raw, kind)


def _texts(value: dict[str, Any]) -> Iterator[str]:
    """The texts of a record: what people wrote and read, not keys and names."""
    for key in ("text", "question"):
        if isinstance(value.get(key), str):
            yield value[key]
    yield from value.get("choices") or []
    for key in ("conversations", "chosen", "rejected"):
        for turn in value.get(key) or []:
            for part in (turn.get("reasoning_content"), turn.get("content"), turn.get("tool_calls")):
                if part:
                    yield part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)


def _count_tokens(value: dict[str, Any], kind: Kind, tokenizer: Tokenizer) -> int:
    turns = [value[key] for key in ("conversations", "chosen", "rejected") if value.get(key)]
    if turns:
        return sum(len(render(conversation, tokenizer).ids) for conversation in turns)
    return len(tokenizer.encode("\n".join(_texts(value)))) + (2 if kind == "pretrain" else 0)


def _percentiles(values: "array[int]") -> dict[str, int]:
    points = (0, 5, 25, 50, 75, 95, 99, 100)
    found = np.percentile(np.asarray(values), points)
    return {f"p{point}": int(value) for point, value in zip(points, found, strict=True)}
