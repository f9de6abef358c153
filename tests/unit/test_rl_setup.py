"""From the settings of an RL stage to what it works with: what does nothing is said, what cannot fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.model.reward import RewardModel
from cutaway.model.weights import save_model
from cutaway.recipe.recipe import RunSettings
from cutaway.recipe.rl import GRPOSettings, PPOSettings, SPOSettings
from cutaway.rl import setup
from cutaway.rl.setup import idle, make_rewards, resolve
from cutaway.training.distributed import Ranks
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer

ALONE = Ranks(0, 1, torch.device("cpu"))


def said(settings: Any) -> list[str]:
    resolved, row, _ = resolve(settings)
    return [line.partition(":")[0] for line in idle(resolved, row)]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (GRPOSettings(steps=1), []),
        (GRPOSettings(steps=1, holdout_tokens=0), ["holdout_tokens 0"]),
        (GRPOSettings(steps=1, algorithm="dapo", beta=0.1), ["beta 0.1"]),
        (GRPOSettings(steps=1, algorithm="rloo", clip_high=0.3, dual_clip=3.0), ["clip_high 0.3", "dual_clip 3.0"]),
        (GRPOSettings(steps=1, offline_samples=8, reward_range=(-1.0, 1.0)), ["reward_range", "offline_samples 8"]),
        (GRPOSettings(steps=1, resample_rounds=9, reward_model="x"), ["resample_rounds 9", "reward_model x"]),
        (SPOSettings(steps=1, offline_samples=8, drift_half=0.1), []),
        (SPOSettings(steps=1, algorithm="spo_global", offline_samples=8), ["offline_samples 8"]),
    ],
)
def test_a_setting_that_does_nothing_is_said(settings: Any, names: list[str]) -> None:
    found = said(settings)
    assert len(found) == len(names)
    assert all(line.startswith(name) for line, name in zip(found, names, strict=True)), found


def test_gspo_would_throw_away_what_a_value_model_credits() -> None:
    with pytest.raises(UserError, match="gspo has one ratio an answer"):
        resolve(PPOSettings(steps=1, policy_loss="gspo"))


def test_a_reward_model_with_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = RewardModel.on(tiny_model()), tiny_tokenizer()
    save_model(model, tmp_path, model.config)
    (tmp_path / "config.json").write_text(json.dumps(model.config_dict()))
    tokenizer.save(tmp_path)
    settings, _, _ = resolve(GRPOSettings(steps=1, rewards=("reward_model",), reward_model=str(tmp_path)))
    assert make_rewards(settings, tokenizer, ALONE).rewards[0].name == "reward_model"
    monkeypatch.setattr(type(tokenizer), "fingerprint", property(lambda self: str(id(self))))
    with pytest.raises(UserError, match="another tokenizer than the policy"):
        make_rewards(settings, tokenizer, ALONE)


def test_prompts_are_held_out_only_where_a_verifier_can_judge_them(tmp_path: Path) -> None:
    user = [{"role": "user", "content": "the cat"}]
    data = write_jsonl(tmp_path / "rl.jsonl", [{"conversations": user, "gt": str(i)} for i in range(10)])
    run = RunSettings(data=(str(data),))
    for rewards, expected in ((("verifier",), (6, 4)), (("length",), (10, 0)), (("length", "partial"), (6, 4))):
        settings, _, _ = resolve(GRPOSettings(steps=1, rewards=rewards, holdout_prompts=4))
        assert tuple(map(len, setup.read_both(settings, run, tiny_tokenizer()))) == expected


def test_a_judge_is_sent_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(setup, "Judge", lambda *given: seen.append(given) or (lambda dialogues: [1.0]))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    settings, _, _ = resolve(GRPOSettings(steps=1, rewards=("judge",), judge_url="http://x", judge_model="m"))
    make_rewards(settings, tiny_tokenizer(), ALONE)
    assert seen == [("http://x", "m", "secret")]
