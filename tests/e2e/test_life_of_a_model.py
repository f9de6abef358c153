"""From text to chat as a user does it: one process a command, on a model that is too small to be good at anything."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cutaway.playground.write import PlaygroundSettings, write_training_sets

SHAPE = ["--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2", "--num-key-value-heads", "1"]
TRAIN = ["--row-length", "128", "--batch-tokens", "512", "--micro-batch-tokens", "512", "--compile", "off"]
TRAIN += ["--holdout-tokens", "500", "--sample-every", "0", "--eval-every", "4", "--workers", "1"]


@dataclass(frozen=True)
class Life:
    """The folders of a finished life."""

    root: Path
    command: list[str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder, on one thread: these matrices are too small for more."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        return subprocess.run(
            [*self.command, *arguments], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )

    def good(self, *arguments: str) -> str:
        """Run a command that must succeed, and give back its stdout."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mistake(self, *arguments: str) -> str:
        """Run a command that must end with exit code 2, and give back its last line."""
        done = self.run(*arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, cutaway_command: list[str]) -> Life:
    """tokenizer train, pretrain, sft."""
    root = tmp_path_factory.mktemp("life")
    write_training_sets(root / "data", PlaygroundSettings(size_mb=0.03))
    life = Life(root, cutaway_command)
    life.good("tokenizer", "train", "--data", "data/pretrain.jsonl", "--vocab-size", "400", "--out", "tokenizer")
    life.good(
        *("pretrain", "--data", "data/pretrain.jsonl", "--init", "tokenizer", "--out", "base", "--steps", "6"),
        *("--save-every", "3", *SHAPE, *TRAIN),
    )
    life.good("sft", "--data", "data/sft.jsonl", "--init", "base", "--out", "chat", "--steps", "4", *TRAIN)
    return life


@pytest.mark.parametrize("run", ["base", "chat"])
def test_a_run_directory_is_complete(life: Life, run: str) -> None:
    names = {path.name for path in (life.root / run).iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } <= names
    assert {"recipe.toml", "metrics.jsonl", "state", "curves.png"} <= names
    rows = [json.loads(line) for line in (life.root / run / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "elapsed_s"} <= set(logged[-1])
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert any("heldout_bpb" in row for row in rows)


def test_chat_answers_on_stdout_and_nothing_else(life: Life) -> None:
    arguments = ("chat", "chat", "--prompt", "你好！", "--seed", "3", "--max-new-tokens", "8")
    first, second = life.run(*arguments), life.run(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stderr == ""


def test_resume_goes_on_and_never_overwrites(life: Life) -> None:
    assert "already holds a run" in life.mistake(
        *("pretrain", "--data", "data/pretrain.jsonl", "--init", "tokenizer", "--out", "base", "--steps", "6"), *SHAPE
    )
    assert "cannot change it to 64" in life.mistake("pretrain", "--resume", "--out", "base", "--hidden-size", "64")
    before = (life.root / "base" / "metrics.jsonl").read_text().splitlines()
    life.good("pretrain", "--resume", "--out", "base", "--steps", "8")
    after = [json.loads(line) for line in (life.root / "base" / "metrics.jsonl").read_text().splitlines()]
    assert len(after) > len(before)
    assert after[-1]["step"] == 8
    steps = [row["step"] for row in after if "loss" in row]
    assert steps == sorted(set(steps))


def test_weights_of_another_shape_are_refused_in_one_line(life: Life) -> None:
    broken = life.root / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((life.root / "base" / name).read_bytes())
    config = json.loads((life.root / "base" / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    line = life.mistake("sft", "--data", "data/sft.jsonl", "--init", "broken", "--out", "never", "--steps", "1", *TRAIN)
    assert line.startswith("cutaway: error: ")
    assert "shape" in line


def test_a_corrupt_line_stops_training_unless_allowed(life: Life) -> None:
    good = (life.root / "data" / "sft.jsonl").read_text(encoding="utf-8")
    (life.root / "data" / "torn.jsonl").write_text(good + '{"conversations": [\n', encoding="utf-8")
    arguments = ("sft", "--data", "data/torn.jsonl", "--init", "base", "--out", "torn", "--steps", "1", *TRAIN)
    assert f"torn.jsonl:{good.count(chr(10)) + 1}: invalid JSON" in life.mistake(*arguments)
    life.good(*arguments, "--skip-bad", "1")
