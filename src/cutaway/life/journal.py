"""What a life has behind it, in one small file, so that a second call goes on where the first one stopped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.model.weights import write_text

NAME = "life.json"


@dataclass
class Journal:
    """`settings` decide what the life is, and are those of the first call; `seconds` are those of the parts done."""

    path: Path
    settings: dict[str, Any]
    seconds: dict[str, float]

    def note(self, part: str, seconds: float) -> None:
        """Write down that a part is done. A crash before it repeats the part's end, never skips it."""
        self.seconds[part] = round(seconds, 1)
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        write_text(json.dumps({"settings": self.settings, "seconds": self.seconds}, indent=1) + "\n", self.path)


def open_journal(out: Path, settings: dict[str, Any], defaults: dict[str, Any]) -> Journal:
    """The journal of a folder, or a new one. A setting of None is what the life began with, or its default.

    Raises UserError where the folder holds a life with other settings.
    """
    path = out / NAME
    if not path.is_file():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made a directory: {error.strerror}") from None
        chosen = {name: defaults.get(name) if value is None else value for name, value in settings.items()}
        journal = Journal(path, chosen, {})
        journal.write()
        return journal
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        journal = Journal(path, dict(table["settings"]), {str(k): float(v) for k, v in table["seconds"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the journal of a life: {error}") from None
    for name, value in settings.items():
        if value is not None and (before := journal.settings.get(name)) != value:
            flag = name.replace("_", "-")
            raise UserError(f"{out} holds a life with --{flag} {before}: give that one, or another --out")
    return journal
