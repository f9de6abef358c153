"""Rewards: each component by hand, their sum, and what happens when one of them fails."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from cutaway.errors import UserError
from cutaway.rl.environment import Episode
from cutaway.rl.meter import Meter
from cutaway.rl.playing import Players, note
from cutaway.rl.prompts import Prompt
from cutaway.rl.rewards import Rewards, split_weight
from cutaway.rl.source import RolloutSource
from cutaway.stages import rl
from cutaway.tools.toolbox import ToolResult
from cutaway.training.distributed import Ranks
from cutaway.verifiers.table import VERIFIERS
from cutaway.verifiers.verdict import Verdict

ALONE = Ranks(0, 1, torch.device("cpu"))
RIGHT = {"name": "numeric", "args": {"expected": 4}}


def episode(text: str, ids: tuple[int, ...] = (1, 2, 3), ending: Any = "answered", **more: Any) -> Episode:
    record = {"conversations": [{"role": "user", "content": "2+2?"}], "verifier": RIGHT, **more}
    found = Episode(Prompt("x", record, [9, 9]), seed=0)
    found.ids, found.own = [9, 9, *ids], [False] * 2 + [True] * len(ids)
    found.said, found.ending = [{"role": "assistant", "content": text}], ending
    return found


def make(*wanted: str, **more: Any) -> Rewards:
    return Rewards(wanted, new_tokens=10, overlong_buffer=4, **more)


def test_a_weighted_sum_with_every_component_apart() -> None:
    rewards = make("verifier", "format=0.5", "length=0.1")
    scored = rewards.score([episode("4"), episode("5"), episode("4", ending="truncated")])
    assert scored.parts == {
        "verifier": [1.0, 0.0, 1.0],
        "format": [1.0, 1.0, 0.0],
        "length": [-0.3] * 3,
    }
    assert scored.totals == pytest.approx([1.47, 0.47, 0.97])
    assert scored.solved == [True, False, True]
    assert (scored.unjudged, scored.raised) == (0, 0)


def test_an_outcome_is_what_the_verifier_says_where_it_counts() -> None:
    """Dynamic sampling must not keep a group for its lengths alone."""
    episodes = [episode("4", ids=tuple(range(n))) for n in (6, 8)] + [episode("5")]
    assert make("verifier=2", "overlong").score(episodes).outcomes == [2.0, 2.0, 0.0]
    assert make("overlong").score(episodes).outcomes == [0.0, -0.5, 0.0]
    assert make("verifier=0", "overlong").score(episodes).outcomes == [0.0, -0.5, 0.0]


def test_components_by_hand() -> None:
    lengths = [tuple(range(n)) for n in (6, 7, 8, 10, 12)]
    overlong = make("overlong").score([episode("", ids=ids) for ids in lengths])
    assert overlong.totals == [0.0, -0.25, -0.5, -1.0, -1.0]
    # 1 2 1 2 1 2: runs 1212 2121 1212, one of three seen before.
    repeated = make("repetition").score([episode("", ids=(1, 2, 1, 2, 1, 2)), episode("", ids=(1, 2))])
    assert repeated.totals == pytest.approx([-1 / 3, 0.0])
    called = episode("4")
    called.results = [ToolResult("12", True), ToolResult("Error", False)]
    assert make("tools").score([called, episode("4")]).totals == [0.5, 0.0]
    tags = make("format").score([episode("4 </think>"), episode("<tool_call>{}"), episode("4", ending="turns")])
    assert tags.totals == [0.0] * 3
    partly = episode("[1, 2]", verifier={"name": "format_json", "args": {"keys": ["a"]}})
    assert make("partial").score([partly]).totals == [0.5]


def test_a_verifier_that_raises_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    def broken(answer: str) -> Verdict:
        raise RuntimeError("no luck")

    table = {**VERIFIERS, "broken": broken}
    rewards = make("verifier", verifiers=table)
    scored = rewards.score([episode("4"), episode("4", verifier={"name": "broken"})])
    assert scored.totals[0] == 1 and math.isnan(scored.totals[1])
    assert (scored.unjudged, scored.raised) == (1, 1)
    assert "x: no reward (verifier: verifier broken raised RuntimeError: no luck)" in caplog.text


def test_a_zero_is_something_to_judge_by_and_nothing_is_not() -> None:
    episodes = [episode("It is 0.", verifier=None, gt=0), episode("It is 1.", verifier=None, gt=0)]
    scored = make("verifier").score(episodes)
    assert (scored.totals, scored.solved, scored.unjudged) == ([1.0, 0.0], [True, False], 0)
    scored = make("length").score([episode("4", verifier=None, gt=gt) for gt in (None, "", [])])
    assert (scored.solved, scored.unjudged, scored.raised) == ([None] * 3, 0, 0)


def test_what_was_not_judged_counts_as_neither_right_nor_wrong() -> None:
    def broken(answer: str) -> Verdict:
        raise RuntimeError("no luck")

    episodes = [episode("4"), episode("5"), episode("4", verifier={"name": "broken"}, level=2), episode("", ids=(1,))]
    episodes[2].prompt = Prompt("y", episodes[2].record, [9, 9], level="2")
    for wanted, success in (("verifier", 1 / 3), ("length", 1 / 3)):
        meter = Meter(ALONE)
        note(meter, episodes, make(wanted, verifiers={**VERIFIERS, "broken": broken}).score(episodes), 1.0)
        line = meter.report()
        assert line["success"] == pytest.approx(success) and "success_level_2" not in line
        # It was written all the same, and an answer with nothing in it is counted.
        assert line["response_length"] == 2.5 and line["empty"] == 0.25
        assert line["unjudged"] == (0.25 if wanted == "verifier" else 0)


def test_a_held_out_prompt_that_could_not_be_judged_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(engine: Any, tokenizer: Any, episodes: Sequence[Episode], *_: Any) -> None:
        for one in episodes:
            one.said = [{"role": "assistant", "content": "4"}]

    raising = {"verifier": {"name": "exact", "args": {"nothing": 1}}}
    heldout = [Prompt(str(i), {"gt": 4 + i % 2, **(raising if i > 1 else {})}, [1], str(i)) for i in range(4)]
    players, source = object.__new__(Players), object.__new__(RolloutSource)
    names = ("engine", "tokenizer", "limits", "toolbox_of")
    vars(players).update(dict.fromkeys(names, MagicMock()), network=SimpleNamespace(ranks=ALONE))
    source.idle_s = 0.0
    monkeypatch.setattr(rl, "play", answered)
    assert rl.make_evaluation(players, heldout, source)() == {
        "success": 0.5,
        "success_level_0": 1,
        "success_level_1": 0,
    }
    assert rl.make_evaluation(players, heldout[2:], source)() == {}


def test_a_function_of_ones_own_may_fail_in_every_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "def good(episodes):\n    return [float(len(e.text)) for e in episodes]\n"
        "def some(episodes):\n    return [float('nan'), 2.0, float('inf')]\n"
        "def few(episodes):\n    return [1.0]\n"
        "def bad(episodes):\n    raise KeyError('x')\n"
    )
    episodes = [episode("a"), episode("bb"), episode("ccc")]
    assert make(f"{file}:good=2").score(episodes).totals == [2.0, 4.0, 6.0]
    scored = make(f"{file}:some", "verifier=0").score(episodes)
    assert [math.isnan(value) for value in scored.totals] == [True, False, True]
    assert scored.unjudged == 2
    for name in ("few", "bad"):
        assert make(f"{file}:{name}").score(episodes).unjudged == 3
    assert "reward few raised ValueError: 1 rewards for 3 answers" in caplog.text
    assert "reward bad raised KeyError" in caplog.text


def test_a_scorer_sees_the_whole_dialogue() -> None:
    seen: list[Any] = []

    def score(dialogues: Any) -> list[float]:
        seen.extend(dialogues)
        return [0.25] * len(dialogues)

    scored = make("judge=2", scorers={"judge": score}).score([episode("4")])
    assert scored.totals == [0.5]
    assert [turn["content"] for turn in seen[0]] == ["2+2?", "4"]


def test_mistakes_in_the_setting() -> None:
    assert split_weight("verifier=0.5") == ("verifier", 0.5)
    assert split_weight("a=b") == ("a=b", 1.0)
    for wanted, message in (
        (("nothing",), "no reward 'nothing'"),
        ((), "rewards is empty"),
        (("length=nan",), "number"),
        (("verifier", "length", "verifier=2"), "two named verifier"),
        (("reward_model",), "needs --reward-model DIR"),
        (("judge=2",), "needs --judge-url URL"),
    ):
        with pytest.raises(UserError, match=message):
            make(*wanted)
    with pytest.raises(UserError, match="no file"):
        make("missing.py:fn")


def test_two_functions_of_one_name_would_be_logged_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def fn(e):\n    return [1.0] * len(e)\n\n\nlength = fn\n")
    with pytest.raises(UserError, match="two named fn"):
        make(f"{tmp_path}/a.py:fn", f"{tmp_path}/b.py:fn=2")
    with pytest.raises(UserError, match="two named length"):
        make(f"{tmp_path}/a.py:length")
