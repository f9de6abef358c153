"""Going part of the way from one model to another, and what does not fit."""

from pathlib import Path

import pytest
import torch

from cutaway.errors import UserError
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.merging import merge
from cutaway.model.weights import load_model, save_adapter, save_model
from model_helpers import random_model, tiny_config


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_way_from_a_base_to_a_run(tmp_path: Path, share: float) -> None:
    models = [random_model(tiny_config(), seed) for seed in (0, 1)]
    for model, name in zip(models, ("base", "run"), strict=True):
        save_model(model, tmp_path / name, model.config)
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    merge(tmp_path / "run", tmp_path / "out", str(tmp_path / "base"), share)
    merged = dict(load_model(tmp_path / "out").named_parameters())
    ends = [dict(load_model(tmp_path / name).named_parameters()) for name in ("base", "run")]
    for name, weight in merged.items():
        torch.testing.assert_close(weight, ends[0][name] + share * (ends[1][name] - ends[0][name]))
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_a_share_of_an_adapter(tmp_path: Path) -> None:
    base = random_model(tiny_config(), 0)
    save_model(base, tmp_path / "base", base.config)
    adapted = load_model(tmp_path / "base")
    adapt(adapted, LoRAConfig(rank=2, targets=("q_proj",)))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name.endswith("lora_B"):
                weight.fill_(0.1)
    save_adapter(adapted, tmp_path / "adapter", str(tmp_path / "base"))
    for name, share in (("half", 0.5), ("whole", 1.0)):
        merge(tmp_path / "adapter", tmp_path / name, share=share)
    name = "model.layers.0.self_attn.q_proj.weight"
    start, half, whole = (
        dict(load_model(tmp_path / one).named_parameters())[name].detach() for one in ("base", "half", "whole")
    )
    assert (whole - start).abs().max() > 0.01
    torch.testing.assert_close(half, (start + whole) / 2)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_shares_and_models_that_do_not_fit(tmp_path: Path, share: float) -> None:
    for name, config in (("base", tiny_config()), ("other", tiny_config(hidden_size=64))):
        model = random_model(config, 0)
        save_model(model, tmp_path / name, model.config)
    base, other = tmp_path / "base", tmp_path / "other"
    with pytest.raises(UserError, match="say --base, the model it began with"):
        merge(other, tmp_path / "out")
    with pytest.raises(UserError, match="must be above 0 and at most 1"):
        merge(base, tmp_path / "out", str(base), share)
    with pytest.raises(UserError, match="not one model before and after training"):
        merge(other, tmp_path / "out", str(base), 0.5)
