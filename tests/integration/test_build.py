"""`cutaway build` from a hub on loopback whose connections break off, and what it refuses."""

import dataclasses
import json
import logging
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from life_helpers import COMMON, SHAPE, TEXT
from run_helpers import Town

from cutaway.cli import main as cli
from cutaway.cli.build import DEFAULTS, BuildFlags, _given
from cutaway.cli.common import parse
from cutaway.data import hub as hub_module
from cutaway.errors import UserError
from cutaway.evals.evaluate import EvalSettings
from cutaway.evals.results import load_results
from cutaway.life import build
from cutaway.life.journal import open_journal
from cutaway.playground.identity import identity_records, shuffled
from cutaway.recipe.base import TokenizerSettings
from cutaway.recipe.files import load_recipe, save_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from fake_hub import FakeHub, running_hub

REPO = "datasets/jingyaogong/minimind_dataset"


@pytest.fixture
def hub(town: Town, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with MiniMind's five sets, each of some records of the town."""
    identity = shuffled(list(identity_records("{{name}}", "{{author}}", ("en",))), 0)[:20]
    sums = [{"conversations": [{"role": "user", "content": f"{a} + {a}?"}], "gt": str(2 * a)} for a in range(24)]
    with running_hub() as running:
        running.files[REPO] = {
            "pretrain_t2t_mini.jsonl": town.pretrain_data.read_bytes(),
            "sft_t2t_mini.jsonl": town.sft_data.read_bytes(),
            "dpo.jsonl": pairs.read_bytes(),
            "lora_identity.jsonl": "".join(json.dumps(one) + "\n" for one in identity).encode(),
            "agent_rl_math.jsonl": "".join(json.dumps(one) + "\n" for one in sums).encode(),
        }
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_module, "WAITS_S", (0.0, 0.0, 0.0))
        monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        yield running


def tiny_recipe(path: Path) -> Path:
    """A recipe of a few steps a stage."""
    recipe = Recipe("tiny", TokenizerSettings(400), SHAPE)
    for stage in build.PUBLISHED:
        own = {**TEXT, "steps": 3, "save_every": 1, "keep_checkpoints": 9}
        if stage == "grpo":
            own = {**COMMON, "steps": 2, "save_every": 2, "max_new_tokens": 4, "prompts_per_rollout": 4}
            own |= {"row_length": 128, "holdout_prompts": 4}
        recipe = dataclasses.replace(recipe, **{stage: dataclasses.replace(getattr(recipe, stage), **own)})
    save_recipe(recipe, path, RunSettings(), {})
    return path


def arguments(tmp_path: Path, *more: str) -> list[str]:
    recipe = tiny_recipe(tmp_path / "tiny.toml")
    files = ["build", "--recipe", str(recipe), "--out", str(tmp_path / "life"), "--gpu", "rtx4090", "--limit", "2"]
    return [*files, "--name", 'The "Owl"', "--author", "us", *more]


@pytest.mark.slow
def test_build_survives_cut_connections_and_its_report_is_complete(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "life"
    hub.cut_after = [20_000] + [0] * 60  # the server then gives nothing more, until the client gives up
    assert cli.main(arguments(tmp_path, "--yes")) == 2
    assert "cannot be reached" in (error := capsys.readouterr().err) or "broke off" in error
    hub.cut_after = [5_000, 2_000]

    def stop(*_: object) -> None:
        raise UserError("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(build, "save_result", stop)  # after fine-tuning has begun
        assert cli.main(arguments(tmp_path)) == 2
    assert cli.main(arguments(tmp_path)) == 0  # it was agreed to before
    for stage in build.PUBLISHED:
        assert load_results(out / stage).keys() == {"identity.answers", "refusal.answers", "format.answers"}
    page = (out / "report.html").read_text(encoding="utf-8")
    for stage in build.PUBLISHED:
        assert f"<b>{stage}</b>" in page
    assert "What each stage was there for" in page and (out / "report.png").stat().st_size > 10_000
    assert (out / "model.gguf").stat().st_size > 10_000
    records = [json.loads(line) for line in (out / "data" / build.LORA_FILE).read_text().splitlines()]
    assert sum('The "Owl"' in one["conversations"][-1]["content"] for one in records) == 20 * build.PASSES
    assert len(records) > 20 * build.PASSES
    requests = hub.counts()
    assert cli.main(arguments(tmp_path)) == 0
    assert hub.counts() == requests
    assert cli.main(arguments(tmp_path, "--seed", "4")) == 2
    assert "holds a life with --seed 0" in capsys.readouterr().err


def test_a_bad_item_of_a_task_is_told_before_the_training(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"question": "q", "choices": ["a", "a"], "answer": 0}
    (tmp_path / "items.jsonl").write_text(f"{json.dumps(bad)}\n{json.dumps(bad | {'choices': ['a', 'b']})}\n")
    own = ["--pretrain", str(town.pretrain_data), "--sft", str(town.sft_data), "--tasks", str(tmp_path / "items.jsonl")]
    assert cli.main(arguments(tmp_path, *own)) == 2
    assert "items.jsonl:1: the right choice 'a' stands there twice" in capsys.readouterr().err
    assert cli.main(arguments(tmp_path, *own, "--skip-bad", "1")) == 2
    assert "say --yes to begin" in capsys.readouterr().err


def test_the_plan_comes_first_and_is_asked_about(
    town: Town,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "cutaway")
    own = ["--pretrain", str(town.pretrain_data), "--sft", str(town.sft_data)]
    assert cli.main(arguments(tmp_path, *own)) == 2
    assert "say --yes to begin" in capsys.readouterr().err
    assert re.search(r"together: \d+:\d\d, \d+\.\d\d USD; scores and grpo come on top", caplog.text)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert cli.main(arguments(tmp_path, *own)) == 0
    assert not (tmp_path / "life").exists()


def test_a_mistake_in_a_late_stage_is_told_before_the_first(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--pretrain", str(town.pretrain_data), "--sft", str(town.sft_data)]
    recipe = load_recipe(str(tiny_recipe(tmp_path / "tiny.toml")))
    for stage, wrong, message in (
        ("grpo", {"scripts": "hans"}, "grpo: scripts means nothing to an RL stage"),
        ("dpo", {"beta": -1.0}, "dpo: beta is -1.0"),
        ("lora", {"log_every": 0}, "lora: log_every is 0"),
    ):
        bad = dataclasses.replace(recipe, **{stage: dataclasses.replace(getattr(recipe, stage), **wrong)})
        save_recipe(bad, tmp_path / "bad.toml", RunSettings(), {})
        assert cli.main([*arguments(tmp_path, *own, "--yes"), "--recipe", str(tmp_path / "bad.toml")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "life").exists()


def test_what_a_build_began_with_is_kept(town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scored under another name, or on other tasks, later stages could not be compared with earlier ones."""
    own = ["--pretrain", str(town.pretrain_data), "--sft", str(town.sft_data)]
    flags = parse(BuildFlags, arguments(tmp_path, *own, "--tasks", "identity", "format")[1:], prog="")
    open_journal(tmp_path / "life", _given(flags), DEFAULTS)
    for more, before in (
        (("--author", "them"), "--author us"),
        (("--tasks", "identity"), "--tasks identity format"),
        (("--limit", "3"), "--limit 2"),
    ):
        assert cli.main(arguments(tmp_path, *own, *more)) == 2
        assert f"holds a life with {before}" in capsys.readouterr().err


def test_bad_records_that_the_recipe_tolerates_are_passed_over(town: Town, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("{}\n" + town.pretrain_data.read_text(encoding="utf-8"))
    recipe = load_recipe(str(tiny_recipe(tmp_path / "tiny.toml")))
    names = {"pretrain": (str(text),), "sft": (str(text),), "lora": (), "dpo": (), "grpo": ()}
    for bad in (0, 1):
        own = dataclasses.replace(recipe, pretrain=dataclasses.replace(recipe.pretrain, skip_bad=bad))
        life = build.build_life(tmp_path / "life", own, 0, 0.0, build.Sources(names))  # type: ignore[arg-type]
        vocabulary = build.build_parts(life, build.Sources(names), (), EvalSettings())[1]  # type: ignore[arg-type]
        assert f"--skip-bad {bad}" in vocabulary.command
        if bad:
            vocabulary.work()
        else:
            with pytest.raises(UserError, match=r"text\.jsonl:1: "):
                vocabulary.work()
    assert (tmp_path / "life" / "tokenizer" / "tokenizer.json").is_file()


MISTAKES = {
    "no text": (["--pretrain"], "--pretrain and --sft need at least one set each"),
    "no file": (["--dpo", "none.jsonl"], "none.jsonl: no such file"),
    "no name": (["--sft", "sft_t2t_mni"], "sft_t2t_mni: unknown kind of file"),
    "no task": (["--tasks", "cevil"], "no task 'cevil'"),
    "no price": (["--price-per-hour", "-1"], "--price-per-hour is -1.0"),
    "no limit": (["--limit", "0"], "--limit is 0"),
    "bad items": (["--skip-bad", "-1"], "--skip-bad is -1"),
    "no recipe": (["--recipe", "mnini"], "no recipe 'mnini'"),
    "no card": (["--gpu", "rtx9"], "gpu is 'rtx9'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, message = MISTAKES[name]
    assert cli.main(["build", "--out", str(tmp_path / "life"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0, error
    assert not (tmp_path / "life").exists()


def test_where_sets_are_and_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "x"}\n')
    own = str(tmp_path / "own.jsonl")
    names = {
        "pretrain": (own, "nobody/set:folder/x.jsonl"),
        "sft": ("sft_t2t_mini",),
        "lora": (),
        "dpo": (),
        "grpo": ("dpo",),
    }
    sources = build.Sources(names)  # type: ignore[arg-type]
    life = build.build_life(tmp_path / "life", load_recipe("mini"), 7, 0.5, sources)
    assert [step.stage for step in life.steps] == ["pretrain", "sft", "grpo"]
    assert life.steps[0].data == (own, str(tmp_path / "life" / "data" / "folder" / "x.jsonl"))
    assert life.steps[2].settings == {"price_per_hour": 0.5, "steps": build.RL_STEPS}
    with_lora = build.Sources({**names, "lora": (own,)})  # type: ignore[dict-item]
    assert build.build_life(tmp_path, load_recipe("mini"), 7, 0.0, with_lora).steps[2].settings == {"epochs": 1.0}
    assert build.size_of(sources, "sft") == 1.7e9
    assert build.size_of(sources, "pretrain") is None
    small = build.Sources({**names, "lora": ("lora_identity",)})  # type: ignore[dict-item]
    assert build.size_of(small, "lora") == 23e3 * build.PASSES * (1 + build.REPLAY * build.LONGER)
