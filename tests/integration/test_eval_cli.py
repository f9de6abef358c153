"""`cutaway eval`: tables, files, built-in tasks, sets from a hub on this machine, and one line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cutaway.cli import main as cli
from cutaway.errors import UserError
from cutaway.evals import sets
from cutaway.evals.evaluate import BUILTIN
from cutaway.evals.results import Result, compare, load_results, save_result
from cutaway.evals.tables import Table, to_html, to_markdown
from cutaway.model.weights import save_model
from data_helpers import write_jsonl
from fake_hub import running_hub
from generation_helpers import tiny_model, tiny_tokenizer

ITEMS = [
    {
        "subject": "ab"[i % 2],
        "question": f"Where is cat {i}?",
        "choices": ["the mat", "the dog", "there"],
        "answer": i % 3,
    }
    for i in range(12)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A model directory."""
    save_model(tiny_model(), tmp_path / "run", tiny_model().config)
    tiny_tokenizer().save(tmp_path / "run")
    return tmp_path / "run"


def test_every_kind_of_file_in_one_call(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "on the mat"}]
    files = {
        "eval_arc_easy": ITEMS,
        "eval_fewshot": [{**ITEMS[0], "question": "An example?", "subject": "a"}],
        "text": [{"text": "the cat sat"}, {"text": "今天天氣很好"}],
        "chat": [{"conversations": turns}],
        "sums": [{"conversations": turns[:1], "gt": "3"}],
    }
    paths = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in files.items()}
    tasks = [paths[name] for name in ("eval_arc_easy", "text", "chat", "sums")]
    arguments = ["eval", str(run), "--task", *tasks, "--shots", "1", "--max-new-tokens", "4"]
    assert cli.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    printed = capsys.readouterr().out
    assert "arc_easy.text-1shot" in printed and "not distinguishable from guessing" in printed
    assert [path.name for path in (run / "evals").glob("*.png")] == ["arc_easy.text-1shot.png"]
    assert "33.3 %" in printed and "by subject" in printed and "zh-Hant" in printed and "right (pass@1)" in printed
    assert sorted(load_results(run)) == ["arc_easy.text-1shot", "chat.bpb", "sums.answers", "text.bpb"]
    table = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [one["task"] for one in table["results"]] == ["arc_easy", "text", "chat", "sums"]
    assert len(table["results"][0]["items"]["values"]) == 12


@pytest.mark.parametrize("task", BUILTIN)
def test_built_in_tasks(task: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--name", "Cat", "--author", "Dog"]
    assert cli.main(["eval", str(run), "--task", task, "--max-new-tokens", "2", "--no-save", *names]) == 0
    assert "right (pass@1)" in capsys.readouterr().out and not load_results(run)


def test_pass_at_k_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "s.jsonl", [{"conversations": [{"role": "user", "content": "q"}], "gt": "3"}])
    arguments = ["eval", str(run), "--task", str(path), "--samples", "3", "--k", "1", "3", "--max-new-tokens", "3"]
    assert cli.main(arguments) == 0
    assert "right (pass@3)" in capsys.readouterr().out
    assert list(load_results(run)) == ["s.answers-3samples"]


MISTAKES = {
    "no task": ([], "--task is missing"),
    "unknown set": (["--task", "mmmlu"], "no task 'mmmlu': neither a file nor one of ceval, cmmlu"),
    "missing file": (["--task", "no.jsonl"], "no.jsonl: no such file"),
    "bad answer": (["--task", "bad.jsonl"], "bad.jsonl:2: 'answer' must be an index from 0 to 2, is 3"),
    "preference file": (["--task", "pairs.jsonl"], "preference records cannot be evaluated"),
    "no JSON": (["--task", "broken.jsonl"], "broken.jsonl:1: invalid JSON"),
    "wrong kind": (["--task", "good.jsonl", "--how", "calls"], "can be evaluated as choice, not as calls"),
    "no examples": (["--task", "good.jsonl", "--shots", "2"], "good.jsonl:1: no worked example for it"),
    "more tries than answers": (["--task", "good.jsonl", "--k", "2"], "--k must be 1 to 1"),
    "no name": (["--task", "identity"], "identity.jsonl:1: {{name}} stands in it: say what it is with --name"),
    "no items": (["--task", "good.jsonl", "--limit", "0"], "--limit is 0, must be 1 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "good.jsonl", ITEMS)
    write_jsonl(tmp_path / "bad.jsonl", [ITEMS[0], {**ITEMS[1], "answer": 3}])
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_jsonl(tmp_path / "pairs.jsonl", [{"chosen": turn, "rejected": turn}])
    (tmp_path / "broken.jsonl").write_text("{nothing\n", encoding="utf-8")
    arguments, said = MISTAKES[mistake]
    assert cli.main(["eval", str(run), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cutaway: error: ") and said in error


def test_named_sets_come_from_the_hub(run: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"q {i}", "choices": {"text": ["cat", "dog"], "label": ["1", "2"]}, "answerKey": "12"[i % 2]}
        for i in range(5)
    ]
    files = {}
    for split in ("ARC-Easy/test", "ARC-Easy/train", "ARC-Challenge/test"):
        more = [{**row, "question": f"{split} {row['question']}"} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(more), tmp_path / "rows.parquet")
        files[f"{split}-00000-of-00001.parquet"] = (tmp_path / "rows.parquet").read_bytes()
    with running_hub() as hub:
        hub.files["datasets/allenai/ai2_arc"] = files
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "cutaway", "eval", str(run), "--task", "arc_easy", "--shots", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        missing = subprocess.run(
            [*command[:-3], "mmlu"], env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    assert "arc_easy.text-2shot" in done.stdout and "5 items" in done.stdout
    assert not any("Challenge" in path for _, path, _ in hub.requests if "resolve" in path)
    assert missing.returncode == 2 and "cais/mmlu: no such repository" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1


ROWS: dict[str, dict[str, Any]] = {
    "ceval": {"id": 0, "question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C", "explanation": ""},
    "cmmlu": {"Question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "C"},
    "mmlu": {"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 2},
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"},
    "openbookqa": {
        "question_stem": "q",
        "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    },
    "piqa": {"goal": "q", "sol1": "a", "sol2": "c", "label": 1},
    "hellaswag": {
        "activity_label": "Roof",
        "ctx_a": "A man [x] climbs. [title] Look",
        "ctx_b": "he",
        "endings": ["a", "b", "[substeps] c"],
        "label": "2",
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_published_sets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [ROWS[name]])
    monkeypatch.setattr(sets, "_files", lambda own, split: [("folder", str(path))])
    (item,) = sets.load(name)
    assert item.choices[item.answer].strip() == "c" and item.set == name
    assert item.question == ("Roof: A man climbs.. Look He" if name == "hellaswag" else "q")
    write_jsonl(path, [{"nothing": 1}])
    with pytest.raises(UserError, match=rf"test\.jsonl:1: not a row of {name}: KeyError"):
        sets.load(name)


def test_names_and_styles() -> None:
    assert sets.set_name("D/eval_ceval.jsonl.xz") == "ceval" and sets.set_name("my.parquet") == "my"
    assert [sets.style_of(name) for name in ("ceval", "hellaswag", "piqa", "mine")] == [
        "letter",
        "bare",
        "text",
        "text",
    ]


def result(values: list[float], keys: list[str], weights: list[float] | None = None) -> Result:
    return Result(
        "t", "v", {"kind": "x"}, keys, np.array(values, dtype=np.float64), np.array(weights or [1.0] * len(values))
    )


def test_results_are_paired_by_item(tmp_path: Path) -> None:
    first, second = result([1, 0, 0, 1], list("abcd")), result([1, 1, 1], list("cbz"))
    found = compare(first, second)
    assert (found.items, found.difference, found.test, found.p) == (2, 1.0, "McNemar", 0.5)
    bits = compare(result([8.0, 2.0], list("ab"), [2.0, 1.0]), result([4.0, 2.0], list("ab"), [2.0, 1.0]))
    assert bits.test == "paired bootstrap" and bits.difference == pytest.approx(6 / 3 - 10 / 3)
    with pytest.raises(UserError, match="no item in common"):
        compare(first, result([1], ["y"]))
    save_result(first, tmp_path)
    again = load_results(tmp_path)["t.v"]
    assert again.keys == first.keys and again.value == 0.5
    (tmp_path / "evals" / "x.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="not a result of `cutaway eval`"):
        load_results(tmp_path)


def test_tables_are_escaped() -> None:
    table = Table("a <b>", ["x|y", "天"], [["<script>", "1"]], "n & m")
    assert to_markdown(table).splitlines()[2:] == [
        "| x\\|y     |  天 |",
        "| -------- | --: |",
        "| <script> |   1 |",
        "",
        "n & m",
    ]
    assert "&lt;script&gt;" in to_html(table) and "n &amp; m" in to_html(table) and "a &lt;b&gt;" in to_html(table)
