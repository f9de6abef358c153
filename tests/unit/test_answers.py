"""Generation tasks: what is asked, what counts as right, and where tool calls go wrong."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.evals.answers import (
    Answered,
    Task,
    answer,
    call_figures,
    pass_at_k,
    read_call_tasks,
    read_tasks,
    summarise_answers,
    visible,
)
from cutaway.generation.engine import Completion, Engine
from cutaway.generation.sampling import Sampling
from cutaway.tokenization.chat import render
from cutaway.verifiers.record import judge, verifier_of
from cutaway.verifiers.table import run_verifier
from data_helpers import write_jsonl
from generation_helpers import tiny_model, tiny_tokenizer


def rl(text: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"role": "user", "content": text}], **more}


def said(text: str, tokens: int = 3, reason: Any = "stop") -> Completion:
    return Completion(0, [1], [1] * tokens, [0.0] * tokens, text, reason)


def judged(tasks: list[Task], *answers: list[str]) -> Answered:
    verdicts = [
        [run_verifier(task.verifier, visible(text)) for text in own] for task, own in zip(tasks, answers, strict=True)
    ]
    return Answered("t", tasks, [[said(text) for text in own] for own in answers], verdicts, 0)


def test_the_verifier_follows_from_gt() -> None:
    assert verifier_of("18/25") == {"name": "numeric", "args": {"expected": "18/25"}}
    assert verifier_of(3) == {"name": "numeric", "args": {"expected": "3"}}
    assert verifier_of("Paris") == {"name": "contains", "args": {"expected": "Paris"}}
    assert verifier_of(0) == verifier_of([0]) == {"name": "numeric", "args": {"expected": "0"}}
    assert verifier_of(["a", 2]) == {"name": "contains_all", "args": {"expected": ["a", "2"]}}
    with pytest.raises(UserError, match="neither 'gt' nor 'verifier'"):
        verifier_of("")


@pytest.mark.parametrize(
    ("gt", "text", "score"),
    [
        (["9472"], "答案是 9,472", 1.0),
        (["28°C", "7.21"], "It is 28°C.", 0.5),
        (["28°C", "7.21"], "It is 28°C, and a dollar buys 7.210.", 1.0),
        ([12.0, "1234567"], "12 與 1,234,567", 1.0),
        (["12", "13"], "12 and 13.5", 0.5),
    ],
)
def test_a_list_means_all_of_it_with_numbers_compared_as_numbers(gt: Any, text: str, score: float) -> None:
    """As MiniMind's records of RL mean it, whose reward is the share that was found."""
    verdict = judge({"gt": gt}, [{"role": "assistant", "content": text}])
    assert (verdict.score, verdict.ok) == (score, score == 1)


def test_tasks_of_a_file(tmp_path: Path) -> None:
    records = [
        rl("1 + 1?", gt="2", grade=3),
        rl("Say yes.", verifier={"name": "exact", "args": {"expected": "yes"}}, grade=0),
        {
            "conversations": [*rl("Hi, {{name}}.")["conversations"], {"role": "assistant", "content": "x"}],
            "gt": "{{name}}",
        },
    ]
    tasks = read_tasks(write_jsonl(tmp_path / "t.jsonl", records), names={"name": "Ada"})
    assert [task.verifier["name"] for task in tasks] == ["numeric", "exact", "contains"]
    assert [task.subject for task in tasks] == ["3", "0", ""]
    assert tasks[2].messages == [{"role": "user", "content": "Hi, Ada."}]
    assert tasks[2].verifier["args"] == {"expected": "Ada"}


MISTAKES = {
    "nothing to judge by": (rl("q"), "neither 'gt' nor 'verifier'"),
    "unknown verifier": (rl("q", verifier={"name": "magic"}), "no verifier 'magic'"),
    "wrong arguments": (rl("q", verifier={"name": "exact", "args": {"wanted": "a"}}), "verifier exact: args"),
    "unfilled name": (rl("q", gt="{{name}}"), "{{name}} stands in it: say what it is with --name"),
    "no user": ({"conversations": [{"role": "system", "content": "s"}], "gt": "1"}, "no user turn to answer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_task_is_one_line_with_its_place(mistake: str, tmp_path: Path) -> None:
    record, reason = MISTAKES[mistake]
    path = write_jsonl(tmp_path / "t.jsonl", [rl("q", gt="1"), record])
    with pytest.raises(UserError) as caught:
        read_tasks(path)
    assert str(caught.value).startswith(f"{path}:2: ") and reason in str(caught.value)
    assert len(read_tasks(path, skip_bad=1)) == 1
    path = write_jsonl(path, [rl("q", gt="1"), record, {"question": "no conversation"}])  # counted together
    with pytest.raises(UserError, match=r"bad record 2, --skip-bad 1 allows no more"):
        read_tasks(path, skip_bad=1)


def test_the_engine_answers_in_the_order_of_the_tasks() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=2)
    tasks = [
        Task([{"role": "user", "content": text}], {"name": "length", "args": {"minimum": 1}}, i)
        for i, text in enumerate(["the cat", "the dog and the cat on the mat", "你好"])
    ]
    greedy = answer(engine, "t", tasks, Sampling(temperature=0.0), max_new_tokens=5)
    for task, own in zip(tasks, greedy.answers, strict=True):
        assert own[0].prompt_ids == render(task.messages, tiny_tokenizer(), add_generation_prompt=True).ids
    drawn = answer(engine, "t", tasks, Sampling(temperature=2.0), samples=3, max_new_tokens=5)
    assert [len(own) for own in drawn.answers] == [3, 3, 3] == [len(own) for own in drawn.verdicts]
    assert len({tuple(one.ids) for own in drawn.answers for one in own}) == 9
    again = answer(engine, "t", tasks, Sampling(temperature=2.0), samples=3, max_new_tokens=5)
    assert [[one.ids for one in own] for own in again.answers] == [[one.ids for one in own] for own in drawn.answers]
    plain = answer(engine, "t", tasks, Sampling(temperature=0.0), chat=False, max_new_tokens=2)
    assert plain.answers[0][0].prompt_ids == [tiny_tokenizer().eos_id, *tiny_tokenizer().encode("the cat")]


def test_a_prompt_that_does_not_fit_counts_as_failed() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), max_length=60)
    task = Task([{"role": "user", "content": "the cat sat " * 60}], {"name": "length", "args": {}}, 0)
    short = Task([{"role": "user", "content": "cat"}], {"name": "length", "args": {}}, 1)
    table = summarise_answers(answer(engine, "t", [task, short], Sampling(temperature=0.0)))
    assert table["too_long"] == 1 and table["pass"]["1"]["value"] == 0.5


def test_only_what_the_user_sees_is_judged() -> None:
    assert visible("<think>\nis it 4?\n</think>\n\nIt is 5.") == "It is 5."
    assert visible("<think>\nis it 4?") == "" and visible("plain") == "plain"


@pytest.mark.parametrize(("right", "samples", "k"), [(0, 4, 1), (1, 4, 2), (3, 7, 4), (7, 7, 7), (2, 5, 5)])
def test_pass_at_k_counts_subsets(right: int, samples: int, k: int) -> None:
    subsets = list(combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(right, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_as_many_answers() -> None:
    with pytest.raises(UserError, match="pass@3 needs at least 3 answers"):
        pass_at_k(1, 2, 3)


def test_figures_of_a_task() -> None:
    tasks = [Task([{"role": "user", "content": str(i)}], verifier_of(str(i)), i, "ab"[i % 2]) for i in range(4)]
    table = summarise_answers(judged(tasks, ["0", "9"], ["1", "1"], ["9", "9"], ["9", "3"]), (1, 2))
    assert table["pass"]["1"]["value"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert table["pass"]["2"]["value"] == pytest.approx(3 / 4)
    assert {name: one["share"] for name, one in table["subjects"].items()} == {"a": 0.5, "b": 0.5}
    assert table["reading"]["mean_tokens"] == 3 and table["reading"]["ended"]["share"] == 1
    assert table["reading"]["different"] == pytest.approx(4 / 8) and "calls" not in table


def test_loops_and_lengths_are_counted() -> None:
    task = Task([{"role": "user", "content": "q"}], verifier_of("1"), 0)
    answers = [[said("round and round we go " * 6, 30, "length")], [said("", 1)]]
    verdicts = [[run_verifier(task.verifier, one[0].text)] for one in answers]
    table = summarise_answers(Answered("t", [task, task], answers, verdicts, 0))["reading"]
    assert table["without_loops"]["share"] == 0.5 == table["ended"]["share"] == table["empty"]["share"]
    assert (table["longest"], table["median_tokens"]) == (30, 15.5)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_every_assistant_turn_of_a_tool_conversation_is_asked_for(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "", "tools": json.dumps([TOOL])},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([{"name": "add", "arguments": {"a": 1}}])},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3."},
    ]
    path = write_jsonl(tmp_path / "c.jsonl", [{"conversations": turns[1:2] + turns[4:]}, {"conversations": turns}])
    tasks = read_call_tasks(path)
    assert [len(task.messages) for task in tasks] == [2, 4]
    assert [task.verifier["args"]["calls"] for task in tasks] == [[{"name": "add", "arguments": {"a": 1}}], []]
    assert tasks[0].conversation == tasks[1].conversation and tasks[0].line == 2
    with pytest.raises(UserError, match="no conversation there offers tools"):
        read_call_tasks(write_jsonl(tmp_path / "n.jsonl", [{"conversations": turns[1:2] + turns[4:]}]))


def test_where_calls_go_wrong() -> None:
    wanted = [{"name": "add", "arguments": {"a": 1}}, {"name": "mul", "arguments": {"b": 2}}]
    tasks = [
        Task([{"role": "user", "content": str(i)}], {"name": "tool_calls", "args": {"calls": calls}}, i // 2)
        for i, calls in enumerate([wanted, [], wanted, wanted, wanted, []])
    ]
    good = call("add", a=1) + "\n" + call("mul", b=2)
    swapped = call("mul", b=2) + call("add", a=1)
    shares = call_figures(
        judged(tasks, [good], ["no need"], [swapped], [call("add", a=7) + call("mul", b=2)], ["no idea"], [good])
    )
    table = {name: (one["share"], one["total"]) for name, one in shares.items()}
    assert table == {
        "called": (0.75, 4),
        "silent": (0.5, 2),
        "names": (0.5, 4),
        "arguments": (0.25, 4),
        "any_order": (0.5, 4),
        "conversations": (pytest.approx(1 / 3), 3),
    }
    assert math.isclose(summarise_answers(judged(tasks[:1], [good]))["calls"]["arguments"]["share"], 1)
