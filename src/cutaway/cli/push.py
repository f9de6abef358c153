"""`cutaway push`: publish a run on the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cutaway.cli.common import parse


@dataclass(frozen=True)
class PushFlags:
    """Upload model, tokenizer, recipe, metrics and model card of a run; checkpoints (state/) never go up."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    repo: str
    """Repository to write, owner/name; it is made where it does not exist."""
    public: bool = False
    """Make a new repository public; it is private otherwise."""
    licence: str = "unknown"
    """Licence on the card, as the hub writes it (apache-2.0, cc-by-nc-4.0, ...); it follows from your data."""


def main(argv: Sequence[str]) -> int:
    """Push, and print the address."""
    flags = parse(PushFlags, argv, prog="cutaway push")
    from cutaway.exporting.publish import push

    print(push(Path(flags.run), flags.repo, public=flags.public, licence=flags.licence))
    return 0
