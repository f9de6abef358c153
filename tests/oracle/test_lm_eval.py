"""lm-eval 0.4.13 beside Cutaway: the same scores item by item, and its command on a run directory, offline."""

import functools
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.evals.multiple_choice import Asking, Item, read_items, score
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import save_model
from cutaway.recipe.base import TokenizerSettings
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tokenization.train import train_tokenizer
from model_helpers import random_model, tiny_config

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="the oracle extra is not installed")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "against_lm_eval.py"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "今天天氣很好", "今天天气很好"]
SETS = ("ceval", "mmlu", "arc_easy", "hellaswag", "piqa")


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 4, TokenizerSettings(vocab_size=300))


@functools.cache
def tiny_model() -> CausalLM:
    return random_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, max_position_embeddings=512, qk_norm=True))


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def make_items(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions of Chinese and English words; two to four choices, of which letters need the same number throughout."""
    draw = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

    items = []
    for number in range(count):
        choices = [
            f"{text(1, 4)} {letter}" for letter in "wxyz"[: 4 if name in ("ceval", "mmlu") else draw.choice((2, 4))]
        ]
        question = ("這是什麼？" if name == "ceval" else "") + text(3, 12) + f" {number}?"
        answer = draw.randrange(len(choices))
        items.append(
            {"subject": draw.choice(("one", "two")), "question": question, "choices": choices, "answer": answer}
        )
    return items


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and sets with worked examples."""
    folder = tmp_path_factory.mktemp("lm-eval")
    save_model(tiny_model(), folder / "run", tiny_model().config)
    tiny_tokenizer().save(folder / "run")
    for number, name in enumerate((*SETS, "arc_challenge")):
        write_jsonl(folder / f"eval_{name}.jsonl", make_items(name, 24, number))
    few = [one | {"set": name} for name in ("ceval", "mmlu") for one in make_items(name, 8, 99)]
    write_jsonl(folder / "eval_fewshot.jsonl", few)
    return folder


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("name", SETS)
def test_every_item_scores_the_same(
    name: str, shots: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    benchmark = runpy.run_path(str(BENCHMARK))
    items = read_items(folder / f"eval_{name}.jsonl")
    few = [one for one in read_items(folder / "eval_fewshot.jsonl") if one.set == name]
    pool: list[Item] = few or read_items(folder / "eval_arc_challenge.jsonl")
    row = benchmark["compare"](
        tiny_model(), tiny_tokenizer(), str(folder / "run"), name, items, pool, shots, tmp_path, batch_size=4
    )
    assert row["items"] == 24 and row["differing"] == 0 and row["accuracy"] == row["theirs"]
    assert row["largest"] < 1e-3


def test_the_lm_eval_command_reads_a_run_directory(folder: Path, tmp_path: Path) -> None:
    command = shutil.which("lm_eval", path=str(Path(sys.executable).parent)) or shutil.which("lm_eval")
    assert command is not None
    rows = [{key: one[key] for key in ("question", "choices", "answer")} for one in make_items("arc_easy", 10, 5)]
    data = write_jsonl(tmp_path / "mine.jsonl", rows)
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        encoding="utf-8",
    )
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder / 'run'},dtype=float32", "--tasks", "mine"]
    arguments += ["--include_path", str(tmp_path), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(written.read_text(encoding="utf-8"))["results"]["mine"]
    items = [Item(one["question"], tuple(one["choices"]), one["answer"]) for one in rows]
    ours = score(tiny_model(), tiny_tokenizer(), "mine", items, Asking("text"))
    assert theirs["acc,none"] == pytest.approx(np.mean(ours.correct("sum")))
    assert theirs["acc_norm,none"] == pytest.approx(np.mean(ours.correct("character")))
