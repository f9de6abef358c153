"""An adapter and its base as one plain model directory."""

import shutil
from pathlib import Path

from cutaway.errors import UserError
from cutaway.model import lora
from cutaway.model.weights import find_base, is_adapter, load_adapted, save_model

_BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def merge(run: Path, out: Path, base: str | None = None) -> None:
    """Write the merged model with the tokenizer of the adapter, or where that has none, of its base."""
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
