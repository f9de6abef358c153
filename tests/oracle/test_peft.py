"""LoRA, rsLoRA and DoRA against PEFT: outputs, gradients, merged weights, and files read both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from cutaway.model.lora import LoRAConfig, adapt, adapter_state, merge  # noqa: E402
from cutaway.model.transformer import CausalLM  # noqa: E402
from cutaway.model.weights import load_adapted, load_model, save_adapter, save_model  # noqa: E402
from model_helpers import random_ids, random_model, tiny_config  # noqa: E402

pytestmark = pytest.mark.slow

AGREE = {"atol": 1e-5, "rtol": 1e-5}
CASES = {
    "lora": LoRAConfig(rank=4, alpha=8),
    "some layers": LoRAConfig(rank=4, alpha=8, targets=("q_proj", "model.layers.1.mlp.down_proj")),
    "rslora": LoRAConfig(rank=4, alpha=8, rslora=True),
    "dora": LoRAConfig(rank=4, alpha=8, dora=True),
}


def base_in(directory: Path) -> CausalLM:
    """A base with small logits, so that 1e-5 is a meaningful distance."""
    model = random_model(tiny_config(qk_norm=True))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.3)
    save_model(model, directory, model.config)
    return model


def randomise(parameters: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(parameters.items()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def read_by_peft(adapter: Path, base: Path) -> Any:
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(plain, adapter, is_trainable=True).eval()


@pytest.mark.parametrize("case", CASES)
def test_peft_reads_ours_and_computes_the_same(case: str, tmp_path: Path) -> None:
    ours = base_in(tmp_path / "base")
    adapt(ours, CASES[case])
    randomise(adapter_state(ours))
    save_adapter(ours, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = read_by_peft(tmp_path / "adapter", tmp_path / "base")
    ids = random_ids(ours.config, 2, 11)
    logits, expected = ours(ids), theirs(ids).logits
    torch.testing.assert_close(logits, expected, **AGREE)
    logits.square().mean().backward()
    expected.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    mine = adapter_state(ours)
    assert len(gradients) == len(mine)
    for name, parameter in mine.items():
        their_name = name.replace(".weight", ".default.weight")
        if name.endswith("magnitude_vector"):
            their_name = f"{name}.default.weight"
        torch.testing.assert_close(parameter.grad, gradients[their_name].view_as(parameter), **AGREE)
    merge(ours)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], **AGREE)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_we_read_what_peft_writes(case: str, tmp_path: Path) -> None:
    base_in(tmp_path / "base")
    config = CASES[case]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    table = peft.LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha),
        target_modules=list(config.targets),
        use_rslora=config.rslora,
        use_dora=config.dora,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(plain, table).eval()
    trained = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    randomise(trained)
    theirs.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    ids = random_ids(tiny_config(), 2, 11)
    expected = theirs(ids).logits
    torch.testing.assert_close(load_adapted(tmp_path / "adapter")(ids), expected, **AGREE)
    torch.testing.assert_close(load_model(tmp_path / "adapter")(ids), expected, **AGREE)
