"""A rehearsal beside the run that it stands for: the same derived values, and measures that can be."""

import json
from pathlib import Path

import pytest
from run_helpers import SIZES, Town, cutaway

from cutaway.errors import UserError
from cutaway.recipe.files import load_recipe
from cutaway.recipe.stages import DPOSettings, LoRASettings, PretrainSettings, RewardSettings
from cutaway.stages.rehearsal import DataSize, rehearse
from model_helpers import tiny_config


def test_a_plan_of_a_run_is_what_the_run_then_derives(town: Town, tmp_path: Path) -> None:
    shape = ("--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2")
    sizes = [flag for flag in SIZES if flag not in ("--batch-tokens", "256")]
    flags = ("--data", str(town.pretrain_data), "--init", str(town.tokenizer), *shape, *sizes, "--tokens", "6000")
    planned = cutaway("plan", "pretrain", *flags, "--json", str(tmp_path / "plan.json"))
    assert planned.returncode == 0, planned.stderr
    assert "measured" in planned.stdout and "counted" in planned.stdout
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))[0]
    ran = cutaway("pretrain", *flags, "--out", str(tmp_path / "run"))
    assert ran.returncode == 0, ran.stderr
    made = load_recipe(str(tmp_path / "run" / "recipe.toml")).pretrain
    assert plan["batch_tokens"] == made.batch_tokens and plan["optimizer"] == made.optimizer
    assert abs(plan["steps"] - (made.steps or 0)) <= 1
    assert 0.15e9 < plan["peak_bytes"] < 2e9 and plan["seconds"] > 1


@pytest.mark.slow
def test_pairs_are_rehearsed_with_their_reference_and_a_score_does_not_write() -> None:
    config = tiny_config(qk_norm=True)
    small = {"steps": 3, "row_length": 16, "batch_tokens": 64, "micro_batch_tokens": 32, "compile": "off"}
    size = DataSize(64_000, 320, reading_s=100.0)
    found = rehearse(config, "dpo", DPOSettings(**small), size)
    # One forward pass over all pairs, in the unit of what is held out.
    assert found.startup_s > 100 + found.evaluation_s * (64_000 + 320) / 320
    assert found.settings["optimizer"] == "adamw" and found.sample_s > 0
    found = rehearse(config, "reward", RewardSettings(**small), size)
    assert found.startup_s > 100 and found.sample_s == 0 and found.save_s > 0


def test_an_adapter_trains_little_and_a_failure_is_one_line() -> None:
    config, size = tiny_config(qk_norm=True), DataSize(1000, 100, 0.9)
    small = {"steps": 3, "row_length": 16, "batch_tokens": 64, "micro_batch_tokens": 32, "compile": "off"}
    found = rehearse(config, "lora", LoRASettings(**small, rank=2), size)
    assert (found.rows, found.accumulation, found.settings["steps"]) == (2, 2, 3)
    assert min(found.micro_s, found.update_s, found.save_s, found.evaluation_s, found.matmul_rate) > 0
    with pytest.raises(UserError, match="the rehearsal failed: batch_tokens 16 is less than one row of 32"):
        rehearse(config, "pretrain", PretrainSettings(steps=1, row_length=32, batch_tokens=16, compile="off"), size)
