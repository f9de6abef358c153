"""The text of training files, for a vocabulary."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cutaway.data.formats import read_records
from cutaway.data.scripts import convert_document, parse_scripts


def read_texts(files: Sequence[str | Path], scripts: str = "keep", seed: int = 0, skip_bad: int = 0) -> Iterator[str]:
    """The text of every record: documents as they are, conversations turn by turn. Raises UserError for a bad record
    beyond `skip_bad`."""
    mix = parse_scripts(scripts)
    for record in read_records(files, None, skip_bad):
        for text in _texts_of(record.value):
            yield convert_document(text, mix, seed)


def _texts_of(value: dict[str, Any]) -> Iterator[str]:
    if "text" in value:
        yield value["text"]
    for key in ("conversations", "chosen", "rejected"):
        for turn in value.get(key) or ():
            for part in ("reasoning_content", "content"):
                if isinstance(turn.get(part), str):
                    yield turn[part]
