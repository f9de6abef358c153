"""DPO and its relatives, and the reward model: what they compute, what they keep, how they go on, users' mistakes."""

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import SMALL_RUN, Town, blank_model, rows_of, same_end

from cutaway.cli import main as cli
from cutaway.data.pairs import at_the_end, pair_batches, read_pairs
from cutaway.errors import UserError
from cutaway.generation.scoring import Scorer
from cutaway.model.reward import load_reward_model
from cutaway.model.weights import load_model, read_safetensors, save_model
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import DPOSettings, RewardSettings
from cutaway.stages import dpo, reference, reward
from cutaway.stages.pairwise import per_answer
from cutaway.tokenization.chat import render
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.checkpoint import Checkpoints
from cutaway.training.network import Network
from training_helpers import ALONE

DPO_KEYS = {"margin", "accuracy", "chosen_logprob", "rejected_logprob", "kl"}


def dpo_recipe(**changes: Any) -> Recipe:
    return Recipe(name="tiny", dpo=DPOSettings(**(SMALL_RUN | {"steps": 6, "adam_lr": 0.003} | changes)))


def reward_recipe(**changes: Any) -> Recipe:
    return Recipe(name="tiny", reward=RewardSettings(**(SMALL_RUN | {"steps": 6, "adam_lr": 0.003} | changes)))


def files(pairs: Path, init: Path, out: Path, **more: Any) -> RunSettings:
    return RunSettings(data=(str(pairs),), init=str(init), out=str(out), **more)


@pytest.fixture(scope="module")
def preferred(blank: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dpo") / "run"
    return dpo.run(dpo_recipe(overfit_one_batch=True), files(pairs, blank, out))


@pytest.fixture(scope="module")
def scored(blank: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reward") / "run"
    return reward.run(reward_recipe(overfit_one_batch=True), files(pairs, blank, out))


def test_dpo_starts_at_the_reference_and_leaves_it(preferred: Path) -> None:
    rows = rows_of(preferred)
    trained = [row for row in rows if "loss" in row]
    assert set(trained[0]) >= DPO_KEYS
    assert trained[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained[0]["margin"] == pytest.approx(0, abs=1e-5) and trained[0]["kl"] == pytest.approx(0, abs=1e-5)
    held = [row for row in rows if "heldout_loss" in row]
    assert {f"heldout_{key}" for key in DPO_KEYS} <= set(held[0])
    assert held[0]["heldout_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained[-1]["margin"] > 0 and trained[-1]["loss"] < trained[0]["loss"]
    assert load_model(preferred).config.architecture == "Qwen3ForCausalLM"


def test_packed_answers_have_the_log_probabilities_of_answers_alone(blank: Path, pairs: Path) -> None:
    tokenizer, model = Tokenizer.load(blank), load_model(blank)
    network = Network(model, ALONE, torch.float32)
    read = read_pairs([pairs], tokenizer, 128)[:9]
    for batch in pair_batches(read, range(9), 2, 128):
        found, tokens = per_answer(-network.token_losses(batch), batch)
        for place, number in enumerate(batch.index.tolist()):
            for side, answer in enumerate((read[number].chosen, read[number].rejected)):
                ids = torch.from_numpy(answer.ids).unsqueeze(0)
                logprobs = model(ids[:, :-1]).log_softmax(-1)[0].gather(1, ids[0, 1:, None]).squeeze(1)
                wanted = torch.from_numpy(answer.trained[1:] > 0)
                assert found[place, side].item() == pytest.approx(logprobs[wanted].sum().item(), abs=1e-4)
                assert tokens[place, side] == wanted.sum()


def test_the_reference_is_computed_once_and_a_damaged_file_again(
    blank: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUTAWAY_CACHE", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    network = Network(load_model(blank), ALONE, torch.float32)
    read = read_pairs([pairs], Tokenizer.load(blank), 128)
    with caplog.at_level(logging.INFO, "cutaway"):
        first = reference.cached_logprobs(network, read, 128)
    (file,) = tmp_path.glob("reference-*.safetensors")
    assert f"reference model: {file.stat().st_size:,} bytes" in caplog.text
    work, calls = reference._compute, []
    monkeypatch.setattr(reference, "_compute", lambda *arguments: calls.append(1) or work(*arguments))
    assert torch.equal(reference.cached_logprobs(network, read, 128), first) and not calls
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(reference.cached_logprobs(network, read, 128), first) and calls == [1]
    # Other weights, data or row length are another file.
    with torch.no_grad():
        network.model.head_weight[3, 3] += 1
    reference.cached_logprobs(network, read, 128)
    reference.cached_logprobs(network, read[:-1], 128)
    reference.cached_logprobs(network, read[:-1], 256)
    assert len(list(tmp_path.glob("reference-*.safetensors"))) == 4


def test_an_adapter_s_reference_is_its_base(blank: Path, pairs: Path, tmp_path: Path) -> None:
    runs = {}
    for kind in ("cached", "live"):
        out = tmp_path / kind
        runs[kind] = dpo.run(dpo_recipe(rank=4, reference=kind, steps=3), files(pairs, blank, out))
        assert not (out / "model.safetensors").exists()
        table = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        assert table["r"] == 4 and (out / table["base_model_name_or_path"]).samefile(blank)
    cached, live = (rows_of(runs[kind]) for kind in runs)
    for one, other in zip(cached, live, strict=True):
        for key in ("loss", "margin", "kl", "heldout_loss", "heldout_margin"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-4), key


@pytest.mark.parametrize("loss", ["kto", "simpo", "orpo"])
def test_relatives_train(loss: str, blank: Path, pairs: Path, tmp_path: Path) -> None:
    out = dpo.run(dpo_recipe(loss=loss, steps=5, overfit_one_batch=True), files(pairs, blank, tmp_path / "run"))
    trained = [row for row in rows_of(out) if "loss" in row]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert ("kl" in trained[0]) == (loss == "kto")
    assert all(math.isfinite(value) for row in trained for value in row.values())


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_routers_of_experts_are_kept_even(stage: str, town: Town, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "experts").mkdir()
    experts = blank_model(town, tmp_path / "experts", num_experts=4, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
    run = files(pairs, experts, tmp_path / "run")
    out = dpo.run(dpo_recipe(steps=1), run) if stage == "dpo" else reward.run(reward_recipe(steps=1), run)
    (row,) = [row for row in rows_of(out) if "loss" in row]
    assert row["load_balance"] >= 1 and row["router_z"] > 0
    # The loss of pairs is that of a coin before the first step.
    assert row["loss"] == pytest.approx(math.log(2) + 0.5 * row["load_balance"] + 0.25 * row["router_z"], abs=1e-4)
    assert 0 <= row["expert_load_min"] <= 1 <= row["expert_load_max"] <= 4
    held = [row for row in rows_of(out) if "heldout_loss" in row]
    assert held[0]["heldout_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_a_reward_model_orders_pairs(scored: Path) -> None:
    rows = rows_of(scored)
    trained = [row for row in rows if "loss" in row]
    assert trained[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained[-1]["loss"] < trained[0]["loss"]
    held = [row for row in rows if "heldout_loss" in row]
    assert held[0]["heldout_brier"] == pytest.approx(0.25, abs=1e-5)
    assert {"heldout_accuracy", "heldout_margin", "heldout_calibration_error"} <= set(held[-1])
    assert not any(key.startswith("heldout_gap") for key in held[-1])
    config = json.loads((scored / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForSequenceClassification"] and config["id2label"] == {"0": "reward"}
    with pytest.raises(UserError, match="is a reward model: it scores answers"):
        load_model(scored)


def test_a_scorer_gives_what_training_saw(scored: Path, blank: Path, pairs: Path) -> None:
    scorer = Scorer(scored)
    talks = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()[:7]]
    read = [at_the_end(pair) for pair in read_pairs([pairs], scorer.tokenizer, 510)]
    network = Network(load_reward_model(scored), ALONE, torch.float32)
    (batch, *_) = pair_batches(read, range(7), 7, 512)
    packed, _ = per_answer(network.forward(batch), batch)
    for side, name in enumerate(("chosen", "rejected")):
        scores = scorer.score([talk[name] for talk in talks])
        for place, number in enumerate(batch.index.tolist()):
            assert scores[number] == pytest.approx(packed[place, side].item(), abs=1e-4)
    # Not the trailing newline but the end of the turn is scored; of what is too long, the end.
    rendered = render(talks[0]["chosen"], scorer.tokenizer)
    assert scorer.score_ids([rendered.ids[:-1]])[0] == pytest.approx(scorer.score([talks[0]["chosen"]])[0], abs=1e-5)
    longest = scorer.model.config.max_position_embeddings
    long = [5] * 9 + [int(i) % 300 for i in range(longest)]
    assert scorer.score_ids([long])[0] == pytest.approx(scorer.score_ids([long[-longest:]])[0], abs=1e-6)
    with pytest.raises(UserError, match="not a reward model"):
        Scorer(blank)


STAGES: dict[str, tuple[Any, Recipe]] = {
    "dpo": (dpo, dpo_recipe()),
    "dpo_lora": (dpo, dpo_recipe(rank=4, dropout=0.1)),
    "kto": (dpo, dpo_recipe(loss="kto")),
    "reward": (reward, reward_recipe()),
}


@pytest.mark.parametrize("name", STAGES)
def test_resume_is_exact(name: str, blank: Path, pairs: Path, tmp_path: Path) -> None:
    stage, recipe = STAGES[name]
    whole = stage.run(recipe, files(pairs, blank, tmp_path / "whole"))
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000006")
    stage.run(recipe, files(pairs, blank, tmp_path / "run", resume=True))
    same_end(whole, tmp_path / "run", 6)
    assert Checkpoints(tmp_path / "run", 1).steps() == [3, 6]


def test_mistakes_are_one_line(
    blank: Path,
    wide: Path,
    pairs: Path,
    preferred: Path,
    scored: Path,
    town: Town,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("cutaway"), "handlers", [])
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "same"}]
    same, empty, long = (tmp_path / f"{name}.jsonl" for name in ("same", "empty", "long"))
    same.write_text(json.dumps({"chosen": turns, "rejected": turns}) + "\n", encoding="utf-8")
    nothing = [turns[0], {"role": "assistant", "content": " "}]
    empty.write_text(json.dumps({"chosen": turns, "rejected": nothing}) + "\n", encoding="utf-8")
    endless = [turns[0], {"role": "assistant", "content": "hello " * 400}]
    long.write_text(json.dumps({"chosen": endless, "rejected": turns}) + "\n", encoding="utf-8")
    common = ["--out", str(tmp_path / "out"), "--steps", "2", "--row-length", "128", "--batch-tokens", "256"]
    ready = [*common, "--init", str(blank), "--data"]
    adapted = tmp_path / "adapter"
    dpo.run(dpo_recipe(rank=2, steps=1), files(pairs, blank, adapted))
    moved = tmp_path / "moved"
    save_model(load_model(wide), moved, load_model(wide).config)
    cases = [
        (["dpo", *ready, str(same)], "no usable pair is left"),
        (["reward", *ready, str(empty)], "no usable pair is left"),
        (["dpo", *ready, str(long)], "no usable pair is left"),
        (["dpo", *ready, str(town.sft_data)], "sft.jsonl:1: "),
        (["dpo", *ready, str(pairs), "--beta", "-1"], "beta is -1.0, must be above 0"),
        (["dpo", *ready, str(pairs), "--label-smoothing", "0.7"], "label_smoothing is 0.7"),
        (["dpo", *ready, str(pairs), "--loss", "dpoo"], "--loss is 'dpoo', must be one of"),
        (["dpo", *ready, str(pairs), "--reference", "live"], "needs an adapter to switch off"),
        (["dpo", *ready, str(pairs), "--row-length", "1024"], "max_position_embeddings only"),
        (["dpo", *common, "--data", str(pairs)], "--init is missing"),
        (["dpo", *common, "--data", str(pairs), "--init", str(scored)], "is a reward model"),
        (["dpo", *common, "--data", str(pairs), "--init", str(adapted), "--rank", "2"], "merge it first"),
        (["reward", *ready, str(pairs), "--centre", "-1"], "centre is -1.0"),
        (["dpo", "--resume", "--out", str(preferred), "--loss", "ipo"], "cannot change it to ipo"),
        (["merge", str(adapted), "--base", str(moved), "--out", str(tmp_path / "m")], "an adapter for another base"),
    ]
    for arguments, says in cases:
        assert cli.main(arguments) == 2, arguments
        errors = capfd.readouterr().err.splitlines()
        assert errors[-1].startswith("cutaway: error: ") and says in errors[-1], (arguments, errors[-1])
        assert not (tmp_path / "out" / "state").exists()


def test_pairs_that_cannot_be_used_are_counted_and_the_rest_trained(
    blank: Path, pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    lines = pairs.read_text(encoding="utf-8").splitlines()
    one = json.loads(lines[0])
    lines += [json.dumps({"chosen": one["chosen"], "rejected": one["chosen"]}, ensure_ascii=False), "{torn"]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = dpo_recipe(steps=1, skip_bad=1)
    with caplog.at_level(logging.INFO, "cutaway"):
        out = dpo.run(recipe, files(mixed, blank, tmp_path / "run"))
    assert "1 pairs left out: chosen and rejected are the same" in caplog.text
    assert f"mixed.jsonl:{len(lines)}: " in caplog.text
    assert read_safetensors(out)
    separate = dataclasses.replace(files(pairs, blank, tmp_path / "held"), eval_data=(str(pairs),))
    out = dpo.run(dpo_recipe(steps=1), separate)
    assert any("heldout_accuracy" in row for row in rows_of(out))
