"""Are evaluation questions in a text? Runs of units shared with each question, for cleaning and for evaluation alike.

A question counts as leaked into a document that holds at least `coverage` of the question's runs of RUN units (words,
or Chinese characters; `data/units.py` says what makes two of them equal). One run alone proves nothing, since stock
phrases are longer than that; nearly all runs of one question together do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from cutaway.data.formats import raw_records
from cutaway.data.records import BadRecordError, parse_json
from cutaway.data.units import Hashes, Ngrams, ngrams_of, owners, text_of, units_of
from cutaway.errors import UserError

RUN = 8
"""Units in a run."""
LEAST_UNITS = 13
"""A question shorter than this is looked for together with its choices, and left out where these are short too."""
COVERAGE = 0.8
_BITS = 24


class Leak(NamedTuple):
    """The question that a document covers best: its place in `questions`, and the share of its runs that are there."""

    question: int
    coverage: float


@dataclass(frozen=True)
class OverlapIndex:
    """Runs of all questions: sorted hashes, and for each those it is part of, `owners[starts[i]:starts[i + 1]]`."""

    questions: tuple[str, ...]
    too_short: int
    """Questions left out, since so few units could stand anywhere."""
    hashes: Hashes
    starts: Integer[np.ndarray, "_hashes_and_one"]
    owners: Integer[np.ndarray, "_owners"]
    runs: Integer[np.ndarray, "_questions"]
    """Different runs of each question."""
    filter: Integer[np.ndarray, "_bits"]
    """1 where a hash with these low bits may be among the wanted: most runs of a document end here."""

    @staticmethod
    def build(questions: Iterable[tuple[str, str]]) -> "OverlapIndex":
        """From pairs of a question and its choices in one text (which may be empty)."""
        pairs = list(questions)
        lengths = np.diff(units_of(text_of([question for question, _ in pairs])).offsets)
        texts = [
            question if units >= LEAST_UNITS else f"{question}\n{choices}"
            for (question, choices), units in zip(pairs, lengths, strict=True)
        ]
        units = units_of(text_of(texts))
        kept = np.flatnonzero(np.diff(units.offsets) >= LEAST_UNITS)
        texts = [texts[number] for number in kept]
        runs = ngrams_of(units_of(text_of(texts)), RUN)
        owner = owners(runs.offsets)
        order = np.lexsort((owner, runs.hashes))
        hashes, owner = runs.hashes[order], owner[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        hashes, owner = hashes[new], owner[new]
        unique, starts = np.unique(hashes, return_index=True)
        table = np.zeros(1 << _BITS, np.uint8)
        table[(unique & np.uint64((1 << _BITS) - 1)).astype(np.int64)] = 1
        return OverlapIndex(
            tuple(texts),
            len(pairs) - len(texts),
            unique,
            np.append(starts, len(hashes)),
            owner,
            np.bincount(owner, minlength=len(texts)),
            table,
        )

    @staticmethod
    def from_files(paths: Sequence[str | Path]) -> "OverlapIndex":
        """From evaluation files: multiple choice, conversations (the user's turns) or plain text, one record a line."""
        questions = []
        for path in paths:
            for record in raw_records(path):
                try:
                    value = parse_json(record.raw) if isinstance(record.raw, bytes) else record.raw
                    if record.reason:
                        raise BadRecordError(record.reason)
                    questions.append(question_of(value))
                except BadRecordError as error:
                    raise UserError(f"{path}:{record.line}: {error}") from None
        return OverlapIndex.build(questions)

    def leaks(self, documents: Sequence[str], coverage: float = COVERAGE) -> list[Leak | None]:
        """For each document the question it covers best, if any is covered that far."""
        return self.leaks_in(ngrams_of(units_of(text_of(documents)), RUN), coverage)

    def leaks_in(self, runs: Ngrams, coverage: float = COVERAGE) -> list[Leak | None]:
        """`leaks` of documents whose runs of RUN units are known already."""
        found: list[Leak | None] = [None] * (len(runs.offsets) - 1)
        likely = np.flatnonzero(self.filter[(runs.hashes & np.uint64((1 << _BITS) - 1)).astype(np.int64)])
        if not len(likely) or not len(self.hashes):
            return found
        place = np.minimum(np.searchsorted(self.hashes, runs.hashes[likely]), len(self.hashes) - 1)
        hit = self.hashes[place] == runs.hashes[likely]
        document = np.searchsorted(runs.offsets, likely[hit], side="right") - 1
        pairs = np.unique(document * len(self.hashes) + place[hit])
        document, place = pairs // len(self.hashes), pairs % len(self.hashes)
        repeats = self.starts[place + 1] - self.starts[place]
        before = np.cumsum(repeats) - repeats
        question = self.owners[np.arange(repeats.sum()) + np.repeat(self.starts[place] - before, repeats)]
        keys, counts = np.unique(np.repeat(document, repeats) * len(self.questions) + question, return_counts=True)
        document, question = keys // len(self.questions), keys % len(self.questions)
        share = counts / self.runs[question]
        for number in np.flatnonzero(share >= coverage):
            best = found[document[number]]
            if best is None or share[number] > best.coverage:
                found[document[number]] = Leak(int(question[number]), float(share[number]))
        return found


def question_of(record: Any) -> tuple[str, str]:
    """Question and choices of an evaluation record. Raises BadRecordError where neither can be found."""
    if isinstance(record, dict):
        if isinstance(record.get("question"), str):
            choices = record.get("choices")
            return record["question"], "\n".join(map(str, choices)) if isinstance(choices, list) else ""
        if isinstance(record.get("conversations"), list):
            turns = [turn for turn in record["conversations"] if isinstance(turn, dict) and turn.get("role") == "user"]
            return "\n".join(str(turn.get("content", "")) for turn in turns), ""
        if isinstance(record.get("text"), str):
            return record["text"], ""
    raise BadRecordError("no evaluation question: needs 'question', 'conversations' or 'text'")
