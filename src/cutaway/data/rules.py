"""What cleaning does to one chunk of records, whatever was before it: normalise, convert, and find what is unfit.

Each record gets the first rule that it breaks, in the order of RULES. The two rules that need what came before
(`duplicate`, `near_duplicate`) get their keys here and are decided in `data/clean.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cutaway.data import language
from cutaway.data.formats import RawRecord
from cutaway.data.hashing import content_hash
from cutaway.data.language import OTHER, SPACE
from cutaway.data.near import SHINGLE, bands, signatures, sketches
from cutaway.data.normalise import count_broken, normalise_text
from cutaway.data.overlap import RUN, OverlapIndex
from cutaway.data.records import BadRecordError, Kind, parse_record
from cutaway.data.scripts import ScriptMix, convert_conversation, convert_document
from cutaway.data.units import distinct, ngrams_of, text_of, units_of

RULES = {
    "bad_record": "not a valid record, or a line that is too long",
    "broken": "control characters and other leftovers of a wrong decoding",
    "too_short": "fewer characters than --min-chars",
    "too_long": "more characters than --max-chars",
    "symbols": "too few letters, or words too long to be words",
    "language": "a language that is not wanted",
    "repetition": "says the same again and again",
    "evaluation": "holds an evaluation question",
    "duplicate": "the same text as an earlier record",
    "near_duplicate": "nearly the same text as an earlier record",
}
CONVERSATIONS = ("conversations", "chosen", "rejected")
MOST_BROKEN = 0.01
LONG_WORD = 40
LEAST_SHINGLES = 30
"""Fewer runs than this say nothing about repetition."""
EXCERPT = 120


@dataclass(frozen=True)
class CleanSettings:
    """Normalise text, remove what is unfit, repeated or leaked from an evaluation, and say what was done."""

    script: Literal["keep", "hant", "hans", "both"] = "keep"
    """Chinese script of the output; `both` writes a record with Chinese text once in each."""
    nfkc: bool = False
    """Compatibility forms too: full-width letters and Chinese commas become ASCII."""
    min_chars: int | None = None
    """Fewest characters of a text; by default 20 for plain text, 1 for everything else."""
    max_chars: int = 1_000_000
    """Most characters of a text, which also bounds memory."""
    min_letters: float | None = None
    """Least share of letters among what is not a space; by default 0.5 for plain text, 0 for the rest."""
    max_repetition: float = 0.5
    """Largest share of the runs of five words or Chinese characters that stood in the same text before; 1 for any."""
    languages: str = "zh,en"
    """Languages kept, as ISO 639-1 codes; `any` keeps all."""
    near: float = 0.8
    """Jaccard similarity from which a text is a near-duplicate of an earlier one; 0 does not look for any."""
    coverage: float = 0.8
    """Share of an evaluation question's runs of eight units that makes a text contaminated."""


@dataclass(frozen=True)
class Given:
    """What a worker process is told once."""

    settings: CleanSettings
    kind: Kind
    evaluation: OverlapIndex | None

    @property
    def wanted(self) -> frozenset[str]:
        """Languages kept; empty for all."""
        names = {name.strip() for name in self.settings.languages.split(",")}
        return frozenset() if "any" in names else frozenset(names)


@dataclass
class Finding:
    """One record: the rule it breaks, or its output lines and what tells it from others."""

    line: int
    size: int
    rule: str = ""
    detail: str = ""
    text: str = ""
    output: bytes = b""
    exact: int = 0
    normalised: bool = False
    converted: bool = False
    near: tuple[list[int], Any] | None = None
    """Bands and sketch."""


@dataclass
class _Document:
    finding: Finding
    value: dict[str, Any]
    text: str


@dataclass
class _Measures:
    """Numbers of all documents of a chunk."""

    classes: Any
    english: Any
    long_words: Any
    repetition: Any
    leaks: list[Any]
    keys: Any = field(default=None)
    sketches: Any = field(default=None)
    shingles: Any = field(default=None)


def inspect(given: Given, records: list[RawRecord]) -> list[Finding]:
    """A finding for every record, in order."""
    findings = []
    documents = []
    for record in records:
        finding = Finding(record.line, len(record.raw) if isinstance(record.raw, bytes) else len(repr(record.raw)))
        findings.append(finding)
        try:
            if record.reason:
                raise BadRecordError(record.reason)
            value = parse_record(record.raw, given.kind)
        except BadRecordError as error:
            finding.rule, finding.detail = "bad_record", str(error)
            continue
        document = _normalised(finding, value, given.settings)
        if not finding.rule and not _wrong_length(document, given):
            documents.append(document)
    if documents:
        _judge(documents, given)
    for document in documents:
        if not document.finding.rule:
            _write(document, given.settings.script)
    return findings


def texts_of(value: dict[str, Any]) -> list[str]:
    """What people wrote and read in a record; the text that rules look at is these, a line each."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    _map_texts(value, note)
    return texts


def _map_texts(value: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The record with every text changed; roles, names, tools and calls are left alone."""
    new = dict(value)
    for key in ("text", "question"):
        if isinstance(value.get(key), str):
            new[key] = change(value[key])
    if isinstance(value.get("choices"), list):
        new["choices"] = [change(choice) for choice in value["choices"]]
    for key in CONVERSATIONS:
        if isinstance(value.get(key), list):
            new[key] = [
                turn | {part: change(turn[part]) for part in ("reasoning_content", "content") if _is_text(turn, part)}
                for turn in value[key]
            ]
    return new


def _is_text(turn: dict[str, Any], part: str) -> bool:
    return isinstance(turn.get(part), str)


def _normalised(finding: Finding, value: dict[str, Any], settings: CleanSettings) -> _Document:
    new = _map_texts(value, lambda text: normalise_text(text, settings.nfkc))
    finding.normalised = new != value
    broken, characters = sum(map(count_broken, texts_of(value))), sum(map(len, texts_of(value)))
    if broken > MOST_BROKEN * characters:
        finding.rule, finding.detail = "broken", f"{broken} characters of {characters}"
    document = _Document(finding, new, "\n".join(texts_of(new)))
    finding.text = document.text[:EXCERPT]
    finding.exact = content_hash(json.dumps(new, sort_keys=True) if "text" not in new else document.text)
    return document


def _wrong_length(document: _Document, given: Given) -> bool:
    settings, length = given.settings, len(document.text.strip())
    least = settings.min_chars if settings.min_chars is not None else 20 if given.kind == "pretrain" else 1
    if length < least:
        document.finding.rule = "too_short"
    elif length > settings.max_chars:
        document.finding.rule = "too_long"
    document.finding.detail = f"{length} characters" if document.finding.rule else ""
    return bool(document.finding.rule)


def _judge(documents: list[_Document], given: Given) -> None:
    settings = given.settings
    least_letters = settings.min_letters
    if least_letters is None:
        least_letters = 0.5 if given.kind == "pretrain" else 0.0
    measures = _measure(documents, given)
    for number, document in enumerate(documents):
        finding, classes = document.finding, measures.classes[number]
        visible = max(int(classes.sum() - classes[SPACE]), 1)
        letters = int(classes[OTHER:].sum()) / visible
        leak = measures.leaks[number]
        if letters < least_letters:
            finding.rule, finding.detail = "symbols", f"{letters:.0%} letters"
        elif least_letters and measures.long_words[number] > 0.3 * visible:
            finding.rule, finding.detail = "symbols", f"words of over {LONG_WORD} letters"
        elif other := _unwanted(document.text, classes, float(measures.english[number]), given.wanted):
            finding.rule, finding.detail = "language", other
        elif measures.repetition[number] > settings.max_repetition:
            finding.rule, finding.detail = "repetition", f"{measures.repetition[number]:.0%} of the runs are repeats"
        elif leak is not None and given.evaluation is not None:
            question = given.evaluation.questions[leak.question]
            finding.rule, finding.detail = "evaluation", f"{leak.coverage:.0%} of: {question[:EXCERPT]}"
        elif measures.keys is not None and measures.shingles[number]:
            finding.near = measures.keys[number].tolist(), measures.sketches[number]


def _measure(documents: list[_Document], given: Given) -> _Measures:
    text = text_of([document.text for document in documents])
    units = units_of(text)
    shingles = ngrams_of(units, SHINGLE)
    counts = np.diff(shingles.offsets)
    repetition = np.where(counts >= LEAST_SHINGLES, 1 - distinct(shingles) / np.maximum(counts, 1), 0.0)
    long = np.concatenate([[0], np.cumsum(np.where(units.lengths > LONG_WORD, units.lengths, 0))])
    leaks: list[Any] = [None] * len(documents)
    if given.evaluation is not None:
        leaks = list(given.evaluation.leaks_in(ngrams_of(units, RUN), given.settings.coverage))
    measures = _Measures(
        classes=language.count_classes(text),
        english=language.english_shares(units),
        long_words=np.diff(long[units.offsets]),
        repetition=repetition,
        leaks=leaks,
    )
    if given.settings.near:
        signature = signatures(shingles)
        measures.keys, measures.sketches, measures.shingles = bands(signature), sketches(signature), counts
    return measures


def _unwanted(text: str, classes: Any, english: float, wanted: frozenset[str]) -> str:
    """The language that a text is in, where that is none of the wanted ones; empty where it is, or cannot be told."""
    if not wanted:
        return ""
    found = language.by_script(classes)
    if found == "cyrillic" and not wanted & language.IN_CYRILLIC:
        return "a language in Cyrillic letters"
    if found in ("latin", "cyrillic"):
        if found == "latin" and english >= language.ENGLISH_SHARE:
            found = "en"
        else:
            found = language.by_words(text) or "none"
    return "" if found in wanted or found == "none" else found


def _write(document: _Document, script: str) -> None:
    """The output lines: one, or with `both` one for each script where they differ."""
    mixes: tuple[ScriptMix, ...] = ({},)
    if script != "keep":
        mixes = ({"hans": 1.0}, {"hant": 1.0}) if script == "both" else ({script: 1.0},)
    values = []
    for mix in mixes:
        value = _converted(document.value, mix)
        if value not in values:
            values.append(value)
    document.finding.converted = values != [document.value]
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
    document.finding.output = "".join(lines).encode("utf-8")


def _converted(value: dict[str, Any], mix: ScriptMix) -> dict[str, Any]:
    new = dict(value)
    for key in ("text", "question"):
        if isinstance(value.get(key), str):
            new[key] = convert_document(value[key], mix, 0)
    if isinstance(value.get("choices"), list):
        new["choices"] = [convert_document(choice, mix, 0) for choice in value["choices"]]
    for key in CONVERSATIONS:
        if isinstance(value.get(key), list):
            new[key] = convert_conversation(value[key], mix, 0)
    return new
