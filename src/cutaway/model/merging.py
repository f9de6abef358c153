"""An adapter and its base, or a run and the model that it began with, as one plain model directory."""

import shutil
from pathlib import Path

import torch

from cutaway.errors import UserError
from cutaway.model import lora
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import find_base, is_adapter, load_adapted, load_model, save_model

_BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def merge(run: Path, out: Path, base: str | None = None, share: float = 1.0) -> None:
    r"""Write $W = W_0 + s\,(W_1 - W_0)$ with the tokenizer of the run, or where that has none, of its base.

    $W_1$ are the weights of the run (of an adapter: base and adapter merged), $W_0$ those of the base, `share` is $s$.
    Between the two ends a model keeps most of what training taught it and most of what training would have cost it
    (WiSE-FT, arXiv 2109.01903, section 3). UserError where there is nothing to merge, or the two do not fit.
    """
    adapter = is_adapter(run)
    if not adapter and base is None:
        raise UserError(
            f"{run}: not an adapter directory (no adapter_config.json): say --base, the model it began with"
        )
    if not 0 < share <= 1:
        raise UserError(f"--share is {share}, must be above 0 and at most 1")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")
    start = find_base(run, base) if adapter else Path(str(base))
    if adapter:
        model = load_adapted(run, base)
        lora.merge(model)
    else:
        model = load_model(run)
    if share < 1:
        go_back(model, load_model(start), share)
    save_model(model, out, model.config)
    for name in _BESIDE:
        for place in (run, start):
            if (place / name).is_file():
                shutil.copyfile(place / name, out / name)
                break


@torch.no_grad()
def go_back(model: CausalLM, start: CausalLM, share: float) -> None:
    """Set a model's weights to `share` of the way to them from those of `start`. UserError for another architecture."""
    ends = dict(start.named_parameters())
    for name, weight in model.named_parameters():
        if name not in ends or ends[name].shape != weight.shape:
            raise UserError(f"the two models differ in {name}: they are not one model before and after training")
        weight.copy_(ends[name].lerp(weight, share))
