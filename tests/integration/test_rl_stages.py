"""RL stages from prompts to a finished run, with a tiny random model."""

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_helpers import SMALL, rows_of, state_of, train, trained, write_model, write_prompts
from safetensors.torch import load_file

from cutaway.errors import UserError
from cutaway.generation.engine import Engine, Request
from cutaway.model.weights import load_model
from cutaway.recipe.files import load_recipe
from cutaway.recipe.rl import GRPOSettings
from cutaway.rl import measuring, source
from cutaway.rl.policy import ActorCritic
from cutaway.rl.rollout import Sample
from cutaway.stages import rl
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("rl") / "model")


@pytest.fixture(scope="module")
def data(init: Path) -> Path:
    return write_prompts(init.parent / "prompts.jsonl")


@pytest.fixture(scope="module")
def spo(init: Path, data: Path) -> Path:
    """A whole run of SPO whose prompts come again and again."""
    out = init.parent / "spo"
    train("spo", init, data, out, steps=8, keep_checkpoints=9)
    return out


@pytest.fixture(scope="module")
def ppo(init: Path, data: Path) -> Path:
    out = init.parent / "ppo"
    train("ppo", init, data, out, steps=8, save_every=4, keep_checkpoints=9, minibatches=2, rollout_epochs=2)
    return out


COMMON = {
    *("reward", "reward_std", "reward_verifier", "success", "success_level_1", "success_level_2", "response_length"),
    *(
        "entropy",
        "policy_loss",
        "kl_old_k3",
        "sampler_mismatch",
        "advantage_mean",
        "advantage_std",
        "degenerate_groups",
    ),
    *("truncated", "empty", "unjudged", "rollout_tokens", "rollout_tokens_per_second", "ratio_0.95_1.05", "rollouts"),
}


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "rloo"])
def test_the_group_family(algorithm: str, init: Path, data: Path, tmp_path: Path) -> None:
    # A random model hardly ever ends by itself, so leaving out what was cut off would leave nothing.
    rows = train("grpo", init, data, tmp_path / "run", algorithm=algorithm, group_size=4, mask_truncated=False)
    lines = trained(rows)
    assert [row["step"] for row in lines] == [1, 2, 3, 4]
    # A rollout is measured in the line of its first update.
    assert lines[0].keys() >= COMMON
    assert lines[0]["sampler_mismatch"] < 1e-5
    assert lines[0]["kl_old_k3"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["kl_old_k3"] > 0
    assert (lines[0]["rollouts"], lines[2]["rollouts"]) == (1, 2)
    if algorithm != "dapo":
        assert lines[2]["kl_ref_k3"] > 0
    assert 0 <= rows[-1]["heldout_success"] <= 1
    before, after = load_file(init / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    own = load_recipe(str(tmp_path / "run" / "recipe.toml")).grpo
    assert (own.algorithm, own.group_size, own.steps) == (algorithm, 4, 4)
    assert own.advantage is not None and own.aggregation is not None


@pytest.mark.parametrize(("changes", "gone_through"), [({}, 12), ({"rollout_epochs": 2}, 24), ({"kl": "reward"}, 24)])
def test_only_what_is_asked_for_is_measured(
    changes: dict[str, Any],
    gone_through: int,
    init: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one rollout: the first update needs no old log-probabilities, and the engine's serve for all in fp32; with
    those of all, measured, it is the same run."""
    counts: dict[str, int] = {}
    fill = measuring.measure

    def count(samples: Sequence[Sample], forward: Any, names: Sequence[str], device: torch.device) -> None:
        for name in names:
            counts[name] = counts.get(name, 0) + len(samples)
        fill(samples, forward, names, device)

    monkeypatch.setattr(measuring, "measure", count)
    steps = 2 * changes.get("rollout_epochs", 1)
    values = {"group_size": 4, "steps": steps, "save_every": steps, "beta": 0.04} | changes
    least = trained(train("grpo", init, data, tmp_path / "least", **values))
    assert counts == {"ref_logprobs": 24}
    counts.clear()
    monkeypatch.setattr(measuring, "sampler_is_exact", lambda players: False)
    less = trained(train("grpo", init, data, tmp_path / "less", **values))
    assert counts == {"old_logprobs": gone_through, "ref_logprobs": 24}
    monkeypatch.setattr(source.RolloutSource, "_later", lambda self, samples, total: list(samples))
    whole = trained(train("grpo", init, data, tmp_path / "whole", **values))
    for key in ("loss", "grad_norm", "kl_old_k3"):
        assert [row[key] for row in less] == pytest.approx([row[key] for row in whole], rel=1e-3, abs=1e-6)
        assert [row[key] for row in least] == pytest.approx([row[key] for row in whole], rel=1e-3, abs=1e-6)


def test_the_reward_rises(init: Path, data: Path, tmp_path: Path) -> None:
    """Twelve updates for a letter: whatever else is wrong, the sign is not."""
    rows = trained(train("grpo", init, data, tmp_path / "run", steps=24, adam_lr=3e-3, group_size=8, beta=0.0))
    rewards = [row["reward"] for row in rows[::2]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


def test_spo_keeps_a_belief_for_every_prompt_and_resumes_exactly(
    init: Path, data: Path, spo: Path, tmp_path: Path
) -> None:
    tracker = state_of(spo, 8)["data"]["tracker"]
    assert 8 <= len(tracker) <= 16
    assert {len(belief) for belief in tracker.values()} == {5}
    rows = trained(rows_of(spo))
    assert rows[-2]["tracker_visited_before"] > 0
    assert rows[-2]["tracker_drift"] > 0
    run = tmp_path / "run"
    shutil.copytree(spo, run)
    for step in (6, 8):
        shutil.rmtree(run / "state" / f"step-{step:08d}")
    settings = load_recipe(str(run / "recipe.toml")).spo
    train("spo", init, data, run, resume=True, **dataclasses.asdict(settings))
    assert (run / "model.safetensors").read_bytes() == (spo / "model.safetensors").read_bytes()
    assert state_of(run, 8)["data"] == state_of(spo, 8)["data"]
    for again, whole in zip(trained(rows_of(run)), rows, strict=True):
        for key in ("loss", "reward", "success", "entropy", "response_length", "rollout_tokens"):
            assert again.get(key) == whole.get(key), (again["step"], key)


def test_ppo_trains_its_value_model_and_resumes_exactly(init: Path, data: Path, ppo: Path, tmp_path: Path) -> None:
    rows = trained(rows_of(ppo))
    assert {"value_error", "explained_variance"} <= rows[4].keys()
    state = ppo / "state"
    assert not (ppo / "critic.safetensors").exists()
    critic = load_file(state / "step-00000008" / "critic.safetensors")
    assert critic["score.weight"].abs().sum() > 0
    run = tmp_path / "run"
    shutil.copytree(ppo, run)
    shutil.rmtree(run / "state" / "step-00000008")
    settings = load_recipe(str(run / "recipe.toml")).ppo
    train("ppo", init, data, run, resume=True, **dataclasses.asdict(settings))
    for name in ("model", "critic", "optimizer"):
        file = f"step-00000008/{name}.safetensors"
        assert (run / "state" / file).read_bytes() == (state / file).read_bytes()


def test_checkpoints_wait_for_the_end_of_a_rollout(init: Path, data: Path, tmp_path: Path) -> None:
    train("grpo", init, data, tmp_path / "run", steps=6, minibatches=3, save_every=1, keep_checkpoints=9)
    assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == ["step-00000003", "step-00000006"]


def test_an_adapter_is_trained_against_the_model_below_it(init: Path, data: Path, tmp_path: Path) -> None:
    rows = trained(train("grpo", init, data, tmp_path / "run", rank=2, adam_lr=1e-2, group_size=4))
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert rows[0]["kl_ref_k3"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl_ref_k3"] > 1e-5
    assert rows[2]["sampler_mismatch"] < 1e-5


def test_a_rollout_far_from_its_policy_is_dropped(init: Path, data: Path, tmp_path: Path) -> None:
    """With a tiny target every rollout gives two updates: the one that moves, and the one that shows it. Where the rest
    is dropped, a checkpoint may fall."""
    settings = {"steps": 8, "minibatches": 4, "rollout_epochs": 1, "adam_lr": 1e-2, "keep_checkpoints": 9}
    free = trained(train("ppo", init, data, tmp_path / "free", target_kl=0.0, **settings))
    held = trained(train("ppo", init, data, tmp_path / "held", target_kl=1e-6, **settings))
    assert free[-1]["rollouts"] == 2
    assert held[-1]["rollouts"] == 4
    assert Checkpoints(tmp_path / "free", 9).steps() == [4, 8]
    assert Checkpoints(tmp_path / "held", 9).steps() == [2, 4, 6, 8]


def test_dynamic_sampling_drops_what_teaches_nothing(init: Path, data: Path, tmp_path: Path) -> None:
    """Every answer of the first draw earns the same: all trained ones are of the second."""
    own = tmp_path / "own.py"
    own.write_text(
        "calls = []\n"
        "def later(episodes):\n"
        "    calls.append(1)\n"
        "    return [float(len(calls) > 1 and i % 2) for i, _ in enumerate(episodes)]\n"
    )
    more = {"algorithm": "dapo", "mask_truncated": False, "rewards": (f"{own}:later", "overlong=0")}
    more |= {"group_size": 4, "steps": 2}
    row = trained(train("grpo", init, data, tmp_path / "run", **more))[0]
    assert row["degenerate_groups"] == pytest.approx(0.5)
    assert row["dynamic_filled"] == 1
    few = trained(train("grpo", init, data, tmp_path / "few", resample_rounds=1, **more))[0]
    assert few["dynamic_filled"] == 0
    assert row.get("advantage_zero", 0.0) == 0


def test_routers_are_held_to_balance_here_too(data: Path, tmp_path: Path) -> None:
    """Two answers of other lengths: what pads the shorter one counts for no expert."""
    init = write_model(tmp_path / "experts", experts=4)
    rows = trained(train("grpo", init, data, tmp_path / "run", group_size=4, steps=2))
    assert all(1.9 < row["load_balance"] < 4 and row["router_z"] > 0 for row in rows)
    assert all(0 <= row["expert_load_min"] <= 1 <= row["expert_load_max"] <= 2 for row in rows)


def test_tokens_are_dumped_with_all_their_numbers(init: Path, data: Path, tmp_path: Path) -> None:
    train("grpo", init, data, tmp_path / "run", dump_tokens=2, group_size=4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rl_tokens.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["own"]]
    assert {line["row"] for line in lines} == {0, 1}
    assert all(
        line["ratio"] == pytest.approx(math.exp(line["logprob"] - line["old_logprob"]), rel=1e-4) for line in own
    )
    assert any(abs(line["ratio"] - 1) > 1e-4 for line in own)
    assert "clipped, no gradient" in (tmp_path / "run" / "rl_tokens.html").read_text()
    assert all(line["entropy"] > 0 and line["value"] is None for line in own)
    train("ppo", init, data, tmp_path / "ppo", dump_tokens=2, steps=4, rollout_epochs=1)
    lines = [json.loads(line) for line in (tmp_path / "ppo" / "rl_tokens.jsonl").read_text().splitlines()]
    assert any(line["returns"] != 0 for line in lines) and all(line["value"] is not None for line in lines)
    # A loss without bounds clips nothing, however far the policy has moved.
    train("grpo", init, data, tmp_path / "free", algorithm="rloo", dump_tokens=2, group_size=4, adam_lr=0.1)
    lines = [json.loads(line) for line in (tmp_path / "free" / "rl_tokens.jsonl").read_text().splitlines()]
    assert any(abs(line["ratio"] - 1) > 0.3 for line in lines) and not any(line["clipped"] for line in lines)


def test_the_first_update_off_the_policy_may_be_of_the_second_pass(init: Path, data: Path, tmp_path: Path) -> None:
    more = {"dump_tokens": 2, "group_size": 4, "minibatches": 1, "rollout_epochs": 2, "steps": 2, "adam_lr": 1e-2}
    train("grpo", init, data, tmp_path / "run", **more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rl_tokens.jsonl").read_text().splitlines()]
    assert any(abs(line["ratio"] - 1) > 1e-4 for line in lines if line["own"])


def test_an_environment_that_fails_is_a_mistake_before_the_first_rollout(
    init: Path, data: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text("def shop(record):\n    return {}[record['id']]\n")
    with pytest.raises(UserError, match=r"^p\d+: environment failed: KeyError: 'p\d+'$"):
        train("agent", init, data, tmp_path / "run", environment=f"{own}:shop", group_size=4)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_rewards_and_long_prompts_are_survived_and_counted(
    init: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reward that is NaN for some, a prompt over the limit, a model that answers with nothing."""
    data = write_prompts(tmp_path / "p.jsonl", 12)
    with data.open("a") as file:
        turns = [{"role": "user", "content": "the cat " * 90}]
        file.write(json.dumps({"id": "long", "conversations": turns, "gt": "a"}) + "\n")
    own = tmp_path / "own.py"
    own.write_text(
        "def odd(episodes):\n    return [float('nan') if i % 3 == 0 else 1.0 * i for i, _ in enumerate(episodes)]\n"
    )
    rows = trained(train("grpo", init, data, tmp_path / "run", group_size=4, rewards=("verifier=0", f"{own}:odd")))
    assert rows[0]["unjudged"] == pytest.approx(1 / 3, abs=0.01)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    assert "prompt long has" in caplog.text
    assert "no reward (odd" in caplog.text


def test_a_rollout_without_anything_to_train_on_is_survived(init: Path, data: Path, tmp_path: Path) -> None:
    """Every answer is cut off and left out, or earns the same."""
    cut = trained(train("grpo", init, data, tmp_path / "cut", algorithm="dapo", max_new_tokens=1, overlong_buffer=1))
    assert all(abs(row["loss"]) < 1 and math.isfinite(row["grad_norm"]) for row in cut)
    none = tmp_path / "none.py"
    none.write_text("def none(episodes):\n    return [float('nan')] * len(episodes)\n")
    rewards = (f"{none}:none",)
    for stage, more in (("grpo", {"group_size": 4}), ("spo", {}), ("ppo", {})):
        rows = trained(train(stage, init, data, tmp_path / stage, rewards=rewards, steps=2, **more))
        assert all(math.isfinite(row["loss"]) for row in rows), stage


def test_a_function_of_ones_own_in_two_columns(init: Path, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def centre(rewards):\n    return rewards - rewards.mean(1, keepdim=True)\n"
        "def plain(tokens):\n    return -tokens.advantages * tokens.logprobs\n"
        "def flat(rewards):\n    return rewards.flatten()\n"
    )
    mine = {"advantage": f"{own}:centre", "policy_loss": f"{own}:plain", "group_size": 4, "steps": 2, "minibatches": 1}
    ours = {"algorithm": "dr_grpo", "policy_loss": "reinforce", "group_size": 4, "steps": 2, "minibatches": 1}
    mine |= {"algorithm": "dr_grpo"}
    runs = [train("grpo", init, data, tmp_path / name, **more) for name, more in (("mine", mine), ("ours", ours))]
    assert [row["loss"] for row in trained(runs[0])] == [row["loss"] for row in trained(runs[1])]
    with pytest.raises(UserError, match=r"flat gave back \[8\], must be a tensor of shape \[2, 4\]"):
        train("grpo", init, data, tmp_path / "flat", advantage=f"{own}:flat", group_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"temperature": 0.0}, "greedy answers teach nothing"),
        ({"batch_tokens": 100}, "batch_tokens means nothing"),
        ({"rank": 2, "dropout": 0.1}, "dropout means nothing"),
        ({"overlong_buffer": 0}, "overlong_buffer is 0"),
        ({"advantage": "gae"}, "needs the value model"),
        ({"prompt_sampling": "uncertainty"}, "needs the tracker"),
        ({"max_new_tokens": 96}, "leaves no room"),
        ({"rewards": ("nobody",)}, "no reward 'nobody'"),
        ({"reward_range": (1.0, 0.0)}, "reward_range"),
        ({"scripts": "hans"}, "scripts means nothing"),
        ({"compile": "on"}, "compile means nothing"),
        ({"prompts_per_rollout": 2, "group_size": 2, "minibatches": 5}, "a rollout has only 4 answers"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str, init: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train("grpo", init, data, tmp_path / "run", **changes)


def test_what_comes_to_the_same_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from cutaway.rl.algorithms import ALGORITHMS, coincidences

    one = " ".join(coincidences(ALGORITHMS["gspo"], updates=1, group_size=8))
    assert "every ratio is 1" in one
    assert "also that of" not in one
    alike = ALGORITHMS["gspo"].with_values(aggregation="token_mean")
    assert "also that of: cispo" in " ".join(coincidences(alike, updates=1, group_size=8))
    assert coincidences(alike, updates=4, group_size=8) == []
    assert "older policy" in " ".join(coincidences(ALGORITHMS["rloo"], updates=4, group_size=8))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_the_training_forward_finds_what_the_engine_drew_as_likely(
    temperature: float, dtype: torch.dtype, most: float, init: Path
) -> None:
    model, tokenizer = load_model(init), Tokenizer.load(init)
    engine = Engine(model, tokenizer, slots=8, max_length=96, dtype=dtype, frozen=True)
    prompt = tokenizer.encode("the cat sat on the mat and the dog")
    for number in range(8):
        engine.submit(Request(prompt, 20, number, temperature=temperature))
    while engine.busy:
        engine.step()
    gaps = []
    for done in engine.collect():
        ids = torch.tensor([[*done.prompt_ids, *done.ids]])
        mask = torch.arange(ids.shape[1] - 1)[None] >= len(prompt) - 1
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            logprobs, entropy, _ = ActorCritic(model, temperature)(ids[:, :-1], ids[:, 1:], mask)
        gaps.append((logprobs[mask] - torch.tensor(done.logprobs)).abs())
        assert (entropy[mask] > 0).all() and not entropy[~mask].any()
    gap = torch.cat(gaps)
    assert (gap.max() if dtype == torch.float32 else gap.mean()) < most


def test_settings_of_the_recipe_reach_the_row() -> None:
    settings, row, _ = rl.resolve(GRPOSettings(**{**SMALL, "algorithm": "gspo", "clip_high": 0.1, "beta": 0.0}))
    assert (row.policy_loss, row.clip_low, row.clip_high, row.group_size) == ("gspo", 3e-4, 0.1, 8)
    assert rl.resolve(settings)[1] == row


def test_dapo_brings_its_penalty_for_length() -> None:
    settings, row, rules = rl.resolve(GRPOSettings(**{**SMALL, "algorithm": "dapo", "max_new_tokens": 40}))
    assert (settings.rewards, settings.overlong_buffer) == (("verifier", "overlong=1"), 8)
    assert {rule.name for rule in rules} >= {"rewards", "overlong_buffer"}
    assert rl.resolve(settings) == (settings, row, [])
    own = GRPOSettings(**{**SMALL, "algorithm": "dapo", "rewards": ("verifier", "overlong=0"), "overlong_buffer": 3})
    settings, _, rules = rl.resolve(own)
    assert (settings.rewards, settings.overlong_buffer) == (("verifier", "overlong=0"), 3)
    assert not {rule.name for rule in rules} & {"rewards", "overlong_buffer"}
    assert rl.resolve(GRPOSettings(**SMALL))[0].rewards == ("verifier",)
