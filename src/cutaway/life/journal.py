"""What a life has behind it, in one small file, so that a second call goes on where the first one stopped."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.model.weights import write_text

NAME = "life.json"


@dataclass
class Journal:
    """`settings` decide what the life is, and are those of the first call; `seconds` are those of the parts done,
    `unfinished` those spent so far on parts that were interrupted."""

    path: Path
    settings: dict[str, Any]
    seconds: dict[str, float]
    unfinished: dict[str, float] = field(default_factory=dict)

    def note(self, part: str, seconds: float) -> None:
        """Write down that a part is done. A crash before it repeats the part's end, never skips it."""
        self.seconds[part] = round(self.unfinished.pop(part, 0.0) + seconds, 1)
        self.write()

    def interrupted(self, part: str, seconds: float) -> None:
        """Write down that a part took so long and is not done. The news is what interrupted it, no full disk here."""
        self.unfinished[part] = round(self.unfinished.get(part, 0.0) + seconds, 1)
        with contextlib.suppress(UserError):
            self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        table = {name: getattr(self, name) for name in ("settings", "seconds", "unfinished")}
        write_text(json.dumps(table, indent=1) + "\n", self.path)


def filled(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings with their defaults in place of None."""
    return {name: defaults.get(name) if value is None else value for name, value in settings.items()}


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
        journal = Journal(path, filled(settings, defaults), {})
        journal.write()
        return journal
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        # What the first versions did not write down yet has its default.
        known, begun = filled(dict.fromkeys(settings), defaults) | table["settings"], table.get("unfinished", {})
        times = ({str(part): float(value) for part, value in one.items()} for one in (table["seconds"], begun))
        journal = Journal(path, known, *times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the journal of a life: {error}") from None
    for name, value in settings.items():
        if value is not None and (before := journal.settings.get(name)) != value:
            flag = name.replace("_", "-")
            before = " ".join(before) if isinstance(before, list) else before
            raise UserError(f"{out} holds a life with --{flag} {before}: give that one, or another --out")
    return journal
