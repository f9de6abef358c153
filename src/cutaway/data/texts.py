"""The text of training files, for a vocabulary."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cutaway.data.formats import BadCounter, raw_records
from cutaway.data.records import BadRecordError, parse_record
from cutaway.data.scripts import convert_document, parse_scripts


def read_texts(files: Sequence[str | Path], scripts: str = "keep", seed: int = 0, skip_bad: int = 0) -> Iterator[str]:
    """The text of every record: documents as they are, conversations turn by turn. Raises UserError for a bad record
    beyond `skip_bad`."""
    mix = parse_scripts(scripts)
    bad = BadCounter(skip_bad)
    for path in files:
        for record in raw_records(path):
            try:
                if record.reason:
                    raise BadRecordError(record.reason)
                value = parse_record(record.raw, None)
            except BadRecordError as error:
                bad.add(str(path), record.line, str(error))
                continue
            for text in _texts_of(value):
                yield convert_document(text, mix, seed)


def _texts_of(value: dict[str, Any]) -> Iterator[str]:
    if "text" in value:
        yield value["text"]
    for key in ("conversations", "chosen", "rejected"):
        for turn in value.get(key) or ():
            for part in ("reasoning_content", "content"):
                if isinstance(turn.get(part), str):
                    yield turn[part]
