import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.evals.behaviour import (
    LANGUAGES,
    Behaviour,
    answers_in_language,
    judge,
    max_repeats,
    script_share,
    summarise,
    units,
)
from cutaway.evals.intervals import wilson
from cutaway.model.weights import save_model
from generation_helpers import tiny_model, tiny_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh-Hans", "今天天气很好。", True),
        ("zh-Hant", "今天天气很好。", True),
        ("zh-Hans", "The weather is nice.", False),
        ("zh-Hans", "我喜欢用 Python 写各种各样的程序。", True),
        ("en", "The weather is nice, as 你好 says.", True),
        ("en", "今天天氣很好。", False),
        ("en", "Погода сегодня хорошая.", False),
        ("zh-Hant", "きょうはいいてんきですね", False),
        ("zh-Hans", "3 + 5 = 8", True),
        ("en", "", False),
        ("en", "。。。 🙂", False),
        ("en", "café naïve", True),
    ],
)
def test_language_of_an_answer(language: str, text: str, expected: bool) -> None:
    assert answers_in_language(language, text) is expected


def test_script_is_reported_apart() -> None:
    assert script_share("zh-Hans", "说话") == 1 and script_share("zh-Hant", "说话") == 0
    assert script_share("zh-Hant", "說話 说话") == 0.5
    assert script_share("zh-Hans", "你好") is None and script_share("en", "說話") is None


def test_repeats_are_counted_in_characters_and_words() -> None:
    assert units("Don't 说HELLO_1 ok😀") == ["don", "'", "t", "说", "hello", "_", "1", "ok", "😀"]
    assert max_repeats("the cat sat on The cat sat on the cat sat on") == 3
    assert max_repeats("我喜欢你" * 5) == 5 and max_repeats("我喜欢你" * 4) == 4
    assert max_repeats("。" * 20) == 17
    assert max_repeats("a b c") == 0


@given(st.text("ab 天。", max_size=40))
def test_repeats_against_a_plain_count(text: str) -> None:
    found = units(text)
    assert "".join(found) == "".join(text.split())
    grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    assert max_repeats(text) == max([grams.count(gram) for gram in grams], default=0)


def test_wilson_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    for successes, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_judging_and_summing_up() -> None:
    good = judge("zh-Hans", "说话", "stop")
    assert good == Behaviour(True, True, 0, 1.0)
    bad = judge("en", "天。" * 12, "length")
    assert (bad.in_language, bad.ended, bad.without_loops) == (False, False, False)
    table = summarise([good, good, bad])
    assert {name: one.share for name, one in table.items()} == dict.fromkeys(table, pytest.approx(2 / 3))
    assert table["ended"].total == 3 and table["ended"].low < 2 / 3 < table["ended"].high


def test_the_prompts_are_what_the_benchmark_says() -> None:
    prompts = [json.loads(line) for line in (BENCHMARKS / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(one["language"] for one in prompts) == {"zh-Hans": 35, "zh-Hant": 30, "en": 35}
    assert len({one["prompt"] for one in prompts}) == 100
    for one in prompts:
        assert set(one) <= {"language", "prompt", "answer"} and one.get("answer", "en") in LANGUAGES
        assert answers_in_language(one["language"], one["prompt"])
        assert script_share(one["language"], one["prompt"]) in (1.0, None), one


def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    model = tiny_model()
    save_model(model, run, model.config)
    tiny_tokenizer().save(run)
    monkeypatch.setattr(sys, "argv", ["behaviour.py"])
    main: Any = runpy.run_path(str(BENCHMARKS / "behaviour.py"))["main"]
    main.__globals__["MAX_NEW_TOKENS"] = 6
    assert main([str(run), "--limit", "2", "--seeds", "2", "--temperature", "0.5", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "zh-Hant" in printed and "temperature 0.5" in printed and "not met" in printed
    report = json.loads((out / "behaviour.json").read_text())
    assert report["table"]["all"]["ended"]["total"] == 12 and report["sampling"]["temperature"] == 0.5
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({one["seed"] for one in samples}) == 12
    assert [one["prompt"] for one in samples[:2]] == [samples[0]["prompt"]] * 2
    assert main([str(tmp_path / "nothing")]) == 2
