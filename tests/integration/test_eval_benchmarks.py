"""The scripts behind the manual's tables, on sets and models small enough for a test."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutaway.evals.results import load_results
from cutaway.model.weights import save_model
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGES = ("evaluation.md", "zh-Hant/evaluation.md")


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import one another, as they may where Python starts one of them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    """A benchmark's `main`; its globals are those of the script."""
    return runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"]


def manual(folder: Path, mark: str) -> Path:
    """Two pages with something old between the marks."""
    (folder / "docs" / "zh-Hant").mkdir(parents=True)
    for page in PAGES:
        text = f"before\n<!-- {mark} -->\nearlier words\n<!-- end of {mark} -->\nafter\n"
        (folder / "docs" / page).write_text(text, encoding="utf-8")
    return folder / "docs"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "run", tiny_model().config)
    tiny_tokenizer().save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sets of a few questions, over several subjects."""
    folder = tmp_path / "data"
    folder.mkdir()
    items = [
        {
            "subject": f"s{i % 8}",
            "question": f"the {i} cat sat on the mat and saw {i} dogs and {i} birds, so what did it sit on?",
            "choices": ["mat", "dog", "cat", "on"],
            "answer": i % 4,
        }
        for i in range(32)
    ]
    for name in ("cmmlu", "piqa"):
        write_jsonl(folder / f"eval_{name}.jsonl", items)
    write_jsonl(folder / "pretrain_extra.jsonl", [{"text": "the cat sat on the mat"}, {"text": "今天天氣很好"}])
    user = [{"role": "user", "content": "the cat"}]
    write_jsonl(folder / "sft_mix.jsonl", [{"conversations": [*user, {"role": "assistant", "content": "sat"}]}])
    write_jsonl(folder / "eval_cmath.jsonl", [{"conversations": user, "gt": "3"}])
    for path in list(folder.iterdir()):
        subprocess.run(["xz", str(path)], check=True)
    return folder


@pytest.mark.skipif(shutil.which("xz") is None, reason="xz packs the sets")
def test_every_set_that_is_there_is_scored(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    docs = manual(tmp_path, "scores")
    arguments = [str(run), str(other), "--data", str(data), "--limit", "4", "--docs", str(docs)]
    main = script("score_all")
    assert main(arguments) == 0
    printed = capsys.readouterr()
    names = ["cmath.answers", "cmmlu.letter-0shot", "piqa.text-0shot", "pretrain_extra.bpb", "sft_mix.bpb"]
    assert sorted(load_results(run)) == names == sorted(load_results(other))
    assert all(name in printed.out for name in names) and "no difference shown" in printed.out
    assert "eval_mmlu.jsonl.xz: not there, left out" in printed.err
    for page in PAGES:
        text = (docs / page).read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- scores -->\n") and text.endswith("<!-- end of scores -->\nafter\n")
        assert "earlier words" not in text and "cmmlu.letter-0shot" in text and "images/evaluation.png" in text
    assert (docs / "images" / "evaluation.png").stat().st_size > 1000


@pytest.mark.skipif(shutil.which("xz") is None, reason="xz packs the sets")
def test_the_ablation_keeps_its_splits_apart(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script("format_alignment")
    trained: dict[str, list[str]] = {}

    def no_training(arguments: Any, file: Path, out: Path) -> None:
        trained[out.name] = file.read_text(encoding="utf-8").splitlines()
        shutil.copytree(run, out)

    main.__globals__["train"] = no_training
    docs = manual(tmp_path, "alignment")
    assert main([str(run), "--data", str(data), "--work", str(tmp_path / "work"), "--docs", str(docs)]) == 0
    printed = capsys.readouterr().out
    assert set(trained) == {"aligned", "shuffled", "leaked"}
    assert set(trained["aligned"]).isdisjoint(trained["leaked"])
    assert len(trained["aligned"]) + len(trained["leaked"]) == 32
    prompts = [[line.split("assistant")[0] for line in trained[name]] for name in ("aligned", "shuffled")]
    assert prompts[0] == prompts[1] and trained["aligned"] != trained["shuffled"]
    assert "Trained on: s" in printed and printed.count("+0.0") >= 3
    assert f"{len(trained['leaked'])} of {len(trained['leaked'])}" in printed
    for page in PAGES:
        text = (docs / page).read_text(encoding="utf-8")
        assert "earlier words" not in text and text.endswith("after\n")
        assert "Trained on: s" in text and "| leaked " in text


def test_the_parity_script_names_its_sets() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "against_lm_eval.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--shots" in done.stdout and "lm-eval" in done.stdout
