"""`cutaway merge`: an adapter and its base as one plain model."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

_BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class MergeFlags:
    """Merge an adapter into its base: the result is a model directory like any other."""

    run: tyro.conf.Positional[str]
    """Directory of the adapter (a run of `cutaway lora`, or one that PEFT wrote)."""
    out: str
    """Model directory to write."""
    base: str | None = None
    """Directory of the base, where it is not at the place that the adapter names."""


def main(argv: Sequence[str]) -> int:
    """Load, merge, write."""
    flags = parse(MergeFlags, argv, prog="cutaway merge")
    merge(Path(flags.run), Path(flags.out), flags.base)
    print(f"{flags.out}: {flags.run} merged into its base", file=sys.stderr)
    return 0


def merge(run: Path, out: Path, base: str | None = None) -> None:
    """Write the merged model with the tokenizer of the adapter, or where that has none, of its base."""
    from cutaway.model import lora
    from cutaway.model.weights import find_base, is_adapter, load_adapted, save_model

    if not is_adapter(run):
        raise UserError(f"{run}: not an adapter directory (no adapter_config.json)")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")
    model = load_adapted(run, base)
    lora.merge(model)
    save_model(model, out, model.config)
    for name in _BESIDE:
        for place in (run, find_base(run, base)):
            if (place / name).is_file():
                shutil.copyfile(place / name, out / name)
                break
