"""The command line: fast help, and one clear line with exit code 2 for every mistake."""

import errno
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli import main as cli
from cutaway.cli.common import parse_stage
from cutaway.errors import Stopped, UserError
from cutaway.recipe.files import load_recipe, save_recipe
from cutaway.recipe.recipe import RunSettings


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with good and bad training files."""
    (tmp_path / "good.jsonl").write_text('{"text": "hello"}\n' * 3, encoding="utf-8")
    (tmp_path / "corrupt.jsonl").write_text('{"text": "hello"}\n{broken\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "wrong.toml").write_text("[pretrain]\nlearning_speed = 3\n", encoding="utf-8")
    (tmp_path / "type.toml").write_text('[model]\nhidden_size = "wide"\n', encoding="utf-8")
    (tmp_path / "binary.toml").write_bytes(b"\x7fELF\xff\xfe")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def test_help_lists_every_command_and_is_fast(cutaway_command: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*cutaway_command, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, cutaway.cli.main as m; m.main([]); print(sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


MISTAKES = {
    "unknown command": (["prtrain"], "no command 'prtrain'"),
    "unknown action": (["data", "chck"], "no action 'chck'"),
    "unknown flag": (["pretrain", "--hidden-siz", "3"], "unknown flag --hidden-siz, did you mean --hidden-size?"),
    "flag of another stage": (["sft", "--hidden-size", "3"], "unknown flag --hidden-size"),
    "stray argument": (["sft", "what"], "unexpected argument 'what'"),
    "no number": (["pretrain", "--hidden-size", "wide"], "--hidden-size is 'wide', must be a whole number"),
    "no whole number": (["pretrain", "--batch-tokens=1.5"], "--batch-tokens is '1.5', must be a whole number"),
    "no choice": (["pretrain", "--optimizer", "sgd"], "--optimizer is 'sgd', must be one of 'auto', 'muon', 'adamw'"),
    "no value": (["pretrain", "--out"], "--out needs a value"),
    "two horizons": (["sft", "--steps", "3", "--epochs", "1"], "--steps and --epochs both set the horizon"),
    "a list twice": (["sft", "--data", "a", "--data=b", "--out", "{tmp}/run"], "--data stands there twice"),
    "nothing": (["pretrain"], "--out is missing"),
    "no data": (["pretrain", "--out", "{tmp}/run"], "--data is missing"),
    "no recipe": (["pretrain", "--recipe", "nana"], "no recipe 'nana'"),
    "unknown key": (["pretrain", "--recipe", "{tmp}/wrong.toml"], "unknown key 'learning_speed'"),
    "wrong type": (["pretrain", "--recipe", "{tmp}/type.toml"], "hidden_size is 'wide'"),
    "nothing to resume": (["sft", "--resume", "--out", "{tmp}/none"], "holds no recipe.toml"),
    "required flags": (["tokenizer", "train"], "--data, --out are missing"),
    "small vocabulary": (
        ["tokenizer", "train", "--data", "{tmp}/good.jsonl", "--out", "{tmp}/t", "--vocab-size", "9"],
        "vocab_size is 9",
    ),
    "missing file": (["data", "check", "{tmp}/none.jsonl"], "none.jsonl: no such file"),
    "corrupt line": (["data", "check", "{tmp}/corrupt.jsonl"], "corrupt.jsonl:2: invalid JSON"),
    "corrupt line in training": (
        ["tokenizer", "train", "--data", "{tmp}/corrupt.jsonl", "--out", "{tmp}/t"],
        "corrupt.jsonl:2: invalid JSON",
    ),
    "empty file": (["data", "stats", "{tmp}/empty.jsonl"], "empty.jsonl: the file is empty"),
    "no run": (["plot", "{tmp}/none"], "no metrics.jsonl there"),
    "no time": (["quickstart", "--budget-minutes", "0.1"], "--budget-minutes is 0.1"),
    "no language": (["playground", "--out", "{tmp}/p", "--lang", "fr"], "no language 'fr'"),
    "no size": (["playground", "--out", "{tmp}/p", "--size-mb", "0"], "--size-mb is 0.0"),
    "a file to write into": (["playground", "--out", "{tmp}/good.jsonl"], "is a file, name a directory"),
    "binary recipe": (["pretrain", "--recipe", "{tmp}/binary.toml"], "not a text file that can be read"),
    "tokenizer over a model": (
        ["tokenizer", "train", "--data", "{tmp}/good.jsonl", "--out", "{tmp}/model"],
        "holds a model, whose tokenizer must stay",
    ),
    "no picture": (["plot", "{tmp}/none", "--out", "{tmp}"], "no metrics.jsonl there"),
    "no seconds": (["doctor", "--seconds", "-1"], "--seconds is -1.0"),
    "no model": (["chat", "{tmp}", "--prompt", "hi"], "config.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, expected = MISTAKES[name]
    assert cli.main([argument.replace("{tmp}", str(files)) for argument in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cutaway: error: ")
    assert expected in lines[0]


def test_flags_lie_over_the_recipe(tmp_path: Path) -> None:
    argv = ["--recipe", "mini", "--data", "a.jsonl", "b.jsonl", "--out", str(tmp_path)]
    argv += ["--batch-tokens", "8192", "--hidden-size", "128", "--no-qk-norm", "--minutes", "2"]
    recipe, run = parse_stage("pretrain", argv)
    assert run == RunSettings(data=("a.jsonl", "b.jsonl"), out=str(tmp_path))
    assert (recipe.pretrain.batch_tokens, recipe.model.hidden_size, recipe.model.qk_norm) == (8192, 128, False)
    assert recipe.model.num_hidden_layers == load_recipe("mini").model.num_hidden_layers


def test_a_horizon_replaces_that_of_the_recipe(tmp_path: Path) -> None:
    assert load_recipe("nano").sft.minutes is not None
    recipe, _ = parse_stage("sft", ["--data", "a.jsonl", "--out", str(tmp_path), "--steps", "7"])
    assert (recipe.sft.steps, recipe.sft.minutes, recipe.sft.tokens, recipe.sft.epochs) == (7, None, None, None)


def test_resume_starts_from_the_run_and_cannot_change_its_shape(tmp_path: Path) -> None:
    recipe, run = parse_stage("pretrain", ["--data", "a.jsonl", "--out", str(tmp_path), "--hidden-size", "96"])
    save_recipe(recipe, tmp_path / "recipe.toml", run, {})
    argv = ["--resume", "--out", str(tmp_path)]
    resumed, again = parse_stage("pretrain", [*argv, "--log-every", "5"])
    assert resumed.model == recipe.model
    assert resumed.pretrain.log_every == 5
    assert again.resume
    assert again.data == ("a.jsonl",)
    with pytest.raises(UserError, match="has hidden-size 96, --resume cannot change it to 64"):
        parse_stage("pretrain", [*argv, "--hidden-size", "64"])
    with pytest.raises(UserError, match="leave --recipe away"):
        parse_stage("pretrain", [*argv, "--recipe", "mini"])


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert not stop.value.code
    for words in ("--batch-tokens", "--hidden-size", "--resume", "--recipe", "Width of one head"):
        assert words in text


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
        (Stopped("stopped by SIGTERM after step 3", 143), 143, "after step 3"),
        (UserError("two\nlines"), 2, "two lines"),
    ],
)
def test_what_ends_a_command(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_command(monkeypatch, error)
    assert cli.main(["fake"]) == code
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_command(monkeypatch, ZeroDivisionError("oh"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def _fake_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    module: Any = types.ModuleType("fake_command")
    module.main = fail
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_command", ""))


def test_a_reader_that_goes_away_is_no_error(cutaway_command: list[str], files: Path) -> None:
    command = f"{' '.join(cutaway_command)} data stats {files / 'good.jsonl'} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_data_check_and_stats(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(files / "good.jsonl")
    assert cli.main(["data", "check", good]) == 0
    assert "pretrain, 3 good records, 0 bad" in capsys.readouterr().out
    assert cli.main(["data", "stats", good, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["records"], table["duplicates"]) == (3, 2)


@pytest.mark.long
def test_plot_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [{"step": 0, "tokens": 0, "heldout_bpb": 3.0}]
        rows += [{"step": n, "tokens": 9 * n, "loss": 5 / n, "lr": 0.1, "grad_norm": 1, "own": 2} for n in range(1, 60)]
        text = "\n".join(map(json.dumps, rows)) + '\n{"step": 60, "lo'
        (tmp_path / name / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert cli.main(["plot", str(tmp_path / "a")]) == 0
    assert cli.main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both.png")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a" / "curves.png"), str(tmp_path / "both.png")]
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_doctor_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--seconds", "0.02"]) == 0
    out = capsys.readouterr().out
    assert "TFLOP/s" in out
    assert all(line.split()[0] for line in out.splitlines())
