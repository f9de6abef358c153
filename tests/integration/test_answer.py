"""`cutaway data answer` against a loopback server that answers well, slowly, wrongly or not at all."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli import main as cli
from cutaway.data.formats import read_records
from cutaway.errors import UserError
from cutaway.stages.answer import FAILURES_IN_A_ROW, Teacher, answer_files
from http_helpers import Reply, StandIn, stand_in


def good(path: str, body: Any) -> tuple[int, Any]:
    if path != "/v1/chat/completions":
        return 404, {}
    text = f"answer to {body['messages'][-1]['content']}"
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(good) as one:
        yield one


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    turns = [[{"role": "user", "content": f"question {number}"}] for number in range(12)]
    turns[3] = [{"role": "system", "content": "be brief"}, *turns[3], {"role": "assistant", "content": "an old answer"}]
    path.write_text("".join(json.dumps({"conversations": talk}) + "\n" for talk in turns), encoding="utf-8")
    return path


def quick(server: StandIn, **more: Any) -> Teacher:
    return Teacher(server.url + "/v1", "master", **({"seconds": 5.0, "tries": 1, "at_once": 3} | more))


def test_answers_are_a_file_to_train_on(server: StandIn, questions: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--out", str(out), "--endpoint", server.url + "/v1", "--model", "master", "--system", "You teach."]
    assert cli.main(["data", "answer", str(questions), *flags, "--api-key", "secret"]) == 0
    assert f"{out}: 12 answers written" in capsys.readouterr().out
    records = [record.value for record in read_records([out], "sft")]
    assert [record["conversations"][-1]["content"] for record in records] == [
        f"answer to question {number}" for number in range(12)
    ]
    assert all(record["teacher"] == "master" for record in records)
    assert [turn["role"] for turn in records[3]["conversations"]] == ["system", "user", "assistant"]
    asked = {call.body["messages"][-1]["content"]: call.body for call in server.asked}
    assert [turn["content"] for turn in asked["question 3"]["messages"]] == ["be brief", "question 3"]
    assert asked["question 4"]["messages"][0] == {"role": "system", "content": "You teach."}
    assert {call.key for call in server.asked} == {"Bearer secret"}


def test_what_is_there_is_not_asked_again(server: StandIn, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    report = answer_files([str(questions)], out, quick(server, limit=5))
    assert (report.written, len(server.asked)) == (5, 5)
    whole = out.read_bytes()
    out.write_bytes(whole[:-7])  # killed while it wrote the fifth
    report = answer_files([str(questions)], out, quick(server))
    assert (report.there, report.written) == (4, 8)
    records = [record.value for record in read_records([out], "sft")]
    assert len({record["conversations"][-1]["content"] for record in records}) == 12
    assert out.read_bytes().startswith(whole)


def test_thoughts_are_kept(server: StandIn, questions: Path, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "yes", "reasoning_content": "well, well"}
    server.reply = lambda path, body: (200, {"choices": [{"message": message}]})
    answer_files([str(questions)], tmp_path / "out.jsonl", quick(server, limit=1))
    (record,) = (record.value for record in read_records([tmp_path / "out.jsonl"], "sft"))
    assert record["conversations"][-1]["reasoning_content"] == "well, well"


WRONG: dict[str, tuple[Reply, str]] = {
    "with HTTP 500": (lambda path, body: (500, {"error": "out of memory"}), "HTTP 500"),
    "with HTTP 400": (lambda path, body: (400, {"error": "too long"}), "too long"),
    "with something else than an answer": (lambda path, body: (200, {"hello": 1}), "no chat completion"),
    "with an empty answer": (lambda path, body: (200, {"choices": [{"message": {"content": " "}}]}), "empty"),
    "with an answer longer than max_tokens": (
        lambda path, body: (200, {"choices": [{"message": {"content": "and"}, "finish_reason": "length"}]}),
        "longer than max_tokens",
    ),
    "without an answer": (lambda path, body: (200, b"<html>"), "no answer"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_answer_is_a_counted_skip_and_asked_again_later(
    words: str, server: StandIn, questions: Path, tmp_path: Path
) -> None:
    wrong, _ = WRONG[words]

    def reply(path: str, body: Any) -> tuple[int, Any]:
        return (wrong if body["messages"][-1]["content"].endswith((" 2", " 5")) else good)(path, body)

    server.reply = reply
    out = tmp_path / "out.jsonl"
    report = answer_files([str(questions)], out, quick(server))
    assert report.written == 10 and dict(report.skipped) == {words: 2}
    assert str(report) == f"10 answers written; 2 skipped: 2 {words}"
    server.reply = good
    report = answer_files([str(questions)], out, quick(server))
    assert (report.there, report.written, dict(report.skipped)) == (10, 2, {})


def test_a_slow_teacher_is_waited_for_so_long(server: StandIn, questions: Path, tmp_path: Path) -> None:
    ended = threading.Event()

    def slow(path: str, body: Any) -> tuple[int, Any]:
        if body["messages"][-1]["content"].endswith(" 7"):
            ended.wait(60)
        return good(path, body)

    server.reply = slow
    report = answer_files([str(questions)], tmp_path / "out.jsonl", quick(server, seconds=2.0))
    ended.set()
    assert report.written == 11 and dict(report.skipped) == {"without an answer": 1}


def test_a_busy_teacher_is_asked_again(server: StandIn, questions: Path, tmp_path: Path) -> None:
    failed: set[str] = set()

    def busy(path: str, body: Any) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        if text in failed:
            return good(path, body)
        failed.add(text)
        return 429, {"error": "too many requests"}

    server.reply = busy
    report = answer_files([str(questions)], tmp_path / "out.jsonl", quick(server, tries=2, at_once=12))
    assert report.written == 12 and len(server.asked) == 24


def test_a_teacher_that_goes_away_ends_the_run_and_loses_nothing(
    server: StandIn, questions: Path, tmp_path: Path
) -> None:

    def reply(path: str, body: Any) -> tuple[int, Any]:
        return good(path, body) if body["messages"][-1]["content"].endswith((" 0", " 1")) else (503, {})

    server.reply = reply
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"HTTP 503: .*2 answers written; 7 skipped.*the same command goes on"):
        answer_files([str(questions)], out, quick(server))
    assert len(list(read_records([out], "sft"))) == 2 and FAILURES_IN_A_ROW == 8
    server.reply = good
    assert answer_files([str(questions)], out, quick(server)).written == 10


def test_mistakes_are_one_line(server: StandIn, questions: Path, tmp_path: Path, capfd: Any) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "mine"}\n', encoding="utf-8")
    out = ["--out", str(tmp_path / "out.jsonl")]
    there = ["--endpoint", server.url + "/v1", "--model", "master"]
    gone = ["--endpoint", "http://127.0.0.1:9/v1", "--model", "master", "--tries", "1"]
    cases = [
        ([str(questions), *out, *gone], "no answer"),
        ([str(questions), *out, "--endpoint", "127.0.0.1", "--model", "m"], "must begin with http"),
        ([str(questions), *out, *there, "--tries", "0"], "tries is 0"),
        ([str(questions), "--out", str(tmp_path / "out.json"), *there], "must end with .jsonl"),
        ([str(questions), "--out", str(other), *there], "not a file of answers"),
        ([str(other), *out, *there], "other.jsonl:1: "),
        ([*out, *there], "name at least one file"),
        ([str(questions), *out], "endpoint"),
    ]
    for arguments, says in cases:
        assert cli.main(["data", "answer", *arguments]) == 2, arguments
        assert says in capfd.readouterr().err.splitlines()[-1], arguments
    server.reply = lambda path, body: (401, {"error": "no such key"})
    assert cli.main(["data", "answer", str(questions), *out, *there]) == 2
    assert "HTTP 401" in capfd.readouterr().err.splitlines()[-1]
    assert other.read_text(encoding="utf-8") == '{"text": "mine"}\n'
