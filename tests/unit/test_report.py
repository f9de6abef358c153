"""Reports: what they say of a difference, that nothing in them is markup, and that they stand alone."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.cli import main as cli
from cutaway.evals.multiple_choice import Asking, Item, Scored, summarise
from cutaway.evals.picture import draw_choice
from cutaway.evals.report import difference_table, margin_table, read_runs, score_table
from cutaway.evals.results import Result, of_choice, save_result
from cutaway.model.weights import save_model
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer

EVIL = "<script>alert(1)</script> & | *x*"


def choice(right: float, seed: int, items: int = 300) -> Result:
    """A set of which a share is right, with subjects of unkind names."""
    draw = np.random.default_rng(seed)
    asked = [Item(f"q {i}", ("a", "b", "c", "d"), i % 4, EVIL if i % 2 else "plain") for i in range(items)]
    sums = []
    for i in range(items):
        values = draw.normal(size=4)
        values[i % 4] += 9 * (1 if i < right * items else -1)
        sums.append(values)
    lengths = {rule: [np.ones(4) for _ in range(items)] for rule in ("sum", "token", "character", "byte")}
    scored = Scored("quiz", asked, Asking("letter"), sums, lengths)
    return of_choice(scored, summarise(scored))


def make_run(path: Path, right: float, bits: float, metrics: bool = True) -> Path:
    save_model(tiny_model(), path, tiny_model().config)
    tiny_tokenizer().save(path)
    save_result(choice(right, 0), path)
    one = {"documents": 3, "bytes": 30, "bpb": bits, "low": bits - 0.1, "high": bits + 0.1}
    one |= {"nats_per_token": 1.0, "bytes_per_token": 2.0}
    summary: dict[str, Any] = {"kind": "text", "of": "text", **one, "dropped": 0, "languages": {}, "domains": {}}
    values = 10 * bits + np.array([0.0, 1.0, -1.0])
    save_result(Result("news", "bpb", summary, ["x", "y", "z"], values, np.full(3, 10.0)), path)
    if metrics:
        rows = [{"step": i, "tokens": 100 * i, "heldout_bpb": 3 - i / 10, "elapsed_s": 60.0 * i} for i in (1, 2, 3)]
        write_jsonl(path / "metrics.jsonl", rows)
        recipe = 'name = "nano"\n[made]\nstage = "sft"\nparameters = 3000000\nactive_parameters = 3000000\n'
        (path / "recipe.toml").write_text(recipe + "[sft]\nprice_per_hour = 2.0\n", encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "base", 0.26, 2.5, metrics=False), make_run(tmp_path / EVIL[:8], 0.60, 2.0)]


def test_what_differences_say(runs: list[Path]) -> None:
    read = read_runs(runs)
    table = difference_table(read)
    assert table is not None
    news, quiz = table.rows
    assert news[0] == "news.bpb" and news[3].startswith("-0.5") and news[-1] == "better"
    assert quiz[3] == "+34.0 points" and quiz[-2:] == ["McNemar", "better"]
    back = difference_table(list(reversed(read)))
    assert back is not None and [row[-1] for row in back.rows] == ["worse", "worse"]
    same = difference_table([read[0], read[0]])
    assert same is not None and [row[-1] for row in same.rows] == ["no difference shown"] * 2
    assert difference_table(read[:1]) is None
    three = difference_table([read[0], read[1], read[0]], "first")
    assert three is not None and [row[1].split(" → ")[0] for row in three.rows] == ["base"] * 4


def test_scores_and_margins(runs: list[Path]) -> None:
    read = read_runs(runs)
    rows = {row[0]: row[2:] for row in score_table(read).rows}
    assert {row[0]: row[1] for row in score_table(read).rows} == {"quiz.letter-0shot": "300", "news.bpb": "3"}
    assert rows["quiz.letter-0shot"][0] == "25.0" and rows["quiz.letter-0shot"][1].startswith("≈ 26.0 %")
    assert rows["quiz.letter-0shot"][2].startswith("60.0 %") and rows["news.bpb"][1] == "2.500 [2.400, 2.600]"
    margins = margin_table(read)
    assert margins is not None and margins.rows[0][1].startswith("-") and margins.rows[0][3].startswith("+")


class Reader(html.parser.HTMLParser):
    """Tags, and everything that names a resource."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_report_stands_alone_and_escapes(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"conversations": [{"role": "user", "content": f"the cat {EVIL}"}]}])
    out = tmp_path / "out"
    assert cli.main(["report", *map(str, runs), "--out", str(out), "--prompts", str(prompts)]) == 0
    assert capsys.readouterr().out.split() == [str(out / f"report.{kind}") for kind in ("html", "md", "png")]
    page = (out / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and reader.sources and all(s.startswith("data:") for s in reader.sources)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; | *x*" in page
    assert "Differences" in page and "Margin of the right answer" in page and "Runs and their cost" in page
    assert "0.10" in page  # three minutes at 2 an hour
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "the cat \\<script\\>" in text and "report.png" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save_model(tiny_model(), run, tiny_model().config)
    tiny_tokenizer().save(run)
    assert cli.main(["report", str(run), "--no-answers", "--out", str(tmp_path / "o")]) == 2
    assert "nothing to report: score the runs first" in capsys.readouterr().err
    assert cli.main(["report", str(run), "--out", str(tmp_path / "o")]) == 0
    assert cli.main(["report"]) == 2 and cli.main(["report", str(tmp_path / "none")]) == 2
    (run / "evals").mkdir()
    (run / "evals" / "x.json").write_text(json.dumps({"format": 99}), encoding="utf-8")
    assert cli.main(["report", str(run)]) == 2
    assert "not a result of `cutaway eval`" in capsys.readouterr().err


def test_the_picture_of_a_set(tmp_path: Path) -> None:
    draw_choice(choice(0.5, 1), tmp_path / "set.png")
    assert (tmp_path / "set.png").stat().st_size > 10_000
