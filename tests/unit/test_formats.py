import gzip
import json
import logging
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from cutaway.data import formats
from cutaway.data.describe import check_files, describe_files
from cutaway.data.formats import read_records
from cutaway.errors import UserError
from data_helpers import tiny_tokenizer, write_jsonl

TEXTS = [{"text": "one"}, {"text": "二"}, {"text": "three\nlines\n"}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in TEXTS).encode()
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def write(path: Path, data: bytes) -> Path:
    """Compress `data` as the suffix says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.xz", "jsonl.zst"])
def test_all_compressions_read_alike(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data.{suffix}", LINES)
    assert list(read_records([path], "pretrain")) == [(str(path), n, v) for n, v in enumerate(TEXTS, 1)]


def test_parquet_reads_alike_and_nulls_are_absent_keys(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    calls = {"role": "assistant", "content": "hello", "reasoning_content": "hm"}
    records = [{"conversations": [USER, ASSISTANT]}, {"conversations": [USER, calls]}]
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert [(record.line, record.value) for record in read_records([path], "sft")] == list(enumerate(records, 1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="truncated or corrupt file, readable up to line 0"):
        list(read_records([path], "sft"))


@pytest.mark.parametrize("module, suffix", [("zstandard", "jsonl.zst"), ("pyarrow", "parquet")])
def test_a_missing_extra_is_named(tmp_path: Path, module: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'cutaway\["):
        list(read_records([path], "pretrain"))


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.xz", "jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_a_damaged_archive_names_file_and_line(tmp_path: Path, suffix: str, damage: str) -> None:
    many = b"".join(b'{"text": "%032x"}\n' % (n * 0x9E3779B97F4A7C15F39CC060) for n in range(20000))
    path = write(tmp_path / f"data.{suffix}", many)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[-len(data) // 4 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"data\.{suffix}: truncated or corrupt file, readable up to line \d+:"):
        list(read_records([path], "pretrain", skip_bad=10**9))


@pytest.mark.parametrize("frames", [1, 3])
def test_zstd_frames_follow_each_other(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "data.jsonl.zst"
    path.write_bytes(pytest.importorskip("zstandard").compress(LINES) * frames)
    assert len(list(read_records([path], "pretrain"))) == 3 * frames


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "the file is empty"),
        ("blank.jsonl", b"\n \n", "holds no records"),
        ("empty.jsonl.xz", lzma.compress(b""), "holds no records"),
        ("text.txt", b"hello", r"must end with one of \.jsonl, "),
    ],
)
def test_files_without_data(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
        list(read_records([tmp_path / name], "pretrain"))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UserError, match="this is a directory"):
        list(read_records([tmp_path / "d.jsonl"], "pretrain"))


CALL = {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {}}]'}
GOOD: list[tuple[Any, Any]] = [
    ("pretrain", {"text": "x", "source": 3}),
    ("sft", {"conversations": [USER, CALL, {"role": "tool", "content": "1"}, ASSISTANT]}),
    ("sft", {"conversations": [{"role": "system", "content": "", "tools": "[]"}, USER, ASSISTANT]}),
    ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "no"}]}),
    ("rl", {"conversations": [USER], "gt": "3", "verifier": {"name": "numeric", "args": {}}}),
    ("rl", {"conversations": [USER, ASSISTANT], "gt": ["1", "2"]}),
    ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": 1}),
]


@pytest.mark.parametrize("kind, value", GOOD)
def test_good_records(tmp_path: Path, kind: Any, value: Any) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [value])
    assert [record.value for record in read_records([path], kind)] == [value]


@pytest.mark.parametrize(
    "kind, line, reason",
    [
        ("pretrain", b'{"text": "x"', "invalid JSON at column"),
        ("pretrain", b"[" * 100000, "nested too deeply"),
        ("pretrain", b'{"text": "\xff"}', "invalid UTF-8 at byte 11"),
        ("pretrain", b'{"text": "\\ud800"}', "surrogate"),
        ("pretrain", b'"text"', "must be a JSON object, this is a string"),
        ("pretrain", b"{}", "'text' must be a string, is missing"),
        ("pretrain", b'{"text": 3}', "'text' must be a string, is a number"),
        ("pretrain", b'{"text": " \\n"}', "'text' is empty"),
        ("sft", b'{"text": "x"}', "'conversations' is missing"),
        ("sft", b'{"conversations": []}', "at least one turn, is empty"),
        ("sft", b'{"conversations": "x"}', "at least one turn, is a string"),
        ("sft", b'{"conversations": [3]}', "turn 0"),
        ("sft", b'{"conversations": [{"role": "bot", "content": "x"}]}', "role is 'bot', must be one of"),
        ("sft", b'{"conversations": [{"role": "user", "content": 3}]}', "content must be a string"),
        ("sft", b'{"conversations": [{"role": "user", "content": "x"}]}', "no assistant turn"),
        ("sft", b'{"conversations": [{"role": "assistant", "content": ""}]}', "every assistant turn is empty"),
        ("sft", b'{"conversations": [{"role": "assistant", "content": "", "tool_calls": "["}]}', "tool_calls"),
        ("preference", b'{"chosen": [{"role": "user", "content": "x"}]}', "'chosen' must end with an assistant turn"),
        (
            "preference",
            b'{"chosen": [{"role": "assistant", "content": "x"}], "rejected": [{"role": "assistant", "content": "y"}]}',
            "start with different turns",
        ),
        ("rl", b'{"conversations": [{"role": "system", "content": "x"}]}', "no user turn"),
        ("rl", b'{"conversations": [{"role": "user", "content": "x"}], "verifier": "exact"}', "'verifier' must be"),
        ("rl", b'{"conversations": [{"role": "user", "content": "x"}], "gt": {}}', "'gt' must be"),
        ("multiple_choice", b'{"question": "?", "choices": ["a"], "answer": 0}', "two or more strings"),
        ("multiple_choice", b'{"question": "?", "choices": ["a", "b"], "answer": 2}', "index from 0 to 1, is 2"),
        ("multiple_choice", b'{"question": "?", "choices": ["a", "b"], "answer": true}', "index from 0 to 1, is True"),
    ],
)
def test_bad_records_name_file_line_and_reason(tmp_path: Path, kind: Any, line: bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps(next(value for name, value in GOOD if name == kind)).encode()
    path.write_bytes(good + b"\n\n" + line + b"\n" + good)
    with pytest.raises(UserError) as caught:
        list(read_records([path], kind))
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and reason in message and "\n" not in message
    assert [record.line for record in read_records([path], kind, skip_bad=1)] == [1, 4]


def test_skip_bad_counts_over_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", LINES + b"oops\n") for name in "ab"]
    with caplog.at_level(logging.WARNING, "cutaway"):
        assert len(list(read_records(paths, "pretrain", skip_bad=2))) == 6
    assert [message.split(": ")[0] for message in caplog.messages] == [f"{path}:4" for path in paths]
    with pytest.raises(UserError, match=r"b\.jsonl:4: invalid JSON.*bad record 2, --skip-bad 1 allows no more"):
        list(read_records(paths, "pretrain", skip_bad=1))


def test_a_line_beyond_the_limit_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / "data.jsonl.xz", b'{"text": "' + b"a" * 2**22 + b'"}\n' + LINES)
    with pytest.raises(UserError, match=r"data\.jsonl\.xz:1: the line is longer than 1 MB"):
        list(read_records([path], "pretrain"))
    assert [record.line for record in read_records([path], "pretrain", skip_bad=1)] == [2, 3, 4]


def test_byte_order_mark_windows_ends_and_no_last_newline(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n").rstrip())
    assert [record.value for record in read_records([path], "pretrain")] == TEXTS


@pytest.mark.parametrize("kind, value", GOOD)
def test_check_finds_the_kind_and_lists_all_bad_records(tmp_path: Path, kind: str, value: Any) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"unknown": 1}, value, {"unknown": 1}])
    report = check_files([path, tmp_path / "missing.jsonl"])
    expected = kind if kind != "rl" or "gt" in value else "rl"
    assert (report.kind, report.records, report.bad_count) == (expected, 1, 3)
    assert report.bad[0].startswith(f"{path}:1: no known kind") and report.bad[2].endswith("no such file")


def test_check_lists_only_so_many(tmp_path: Path) -> None:
    report = check_files([write_jsonl(tmp_path / "data.jsonl", [{"text": ""}] * 300)], "pretrain")
    assert report.bad_count == 300 and len(report.bad) == 100


def test_stats_of_text(tmp_path: Path) -> None:
    records = [{"text": "abcd這个"}, {"text": "ab"}, {"text": "ab"}, {"text": ""}]
    stats = describe_files([write_jsonl(tmp_path / "data.jsonl", records)], tokenizer=tiny_tokenizer())
    assert (stats.kind, stats.records, stats.bad, stats.duplicates) == ("pretrain", 3, 1, 1)
    assert (stats.characters, stats.bytes) == (10, 14)
    assert stats.scripts["latin"] == 0.8 and stats.scripts["hans"] == stats.scripts["hant"] == 0.1
    assert stats.length_percentiles["p0"] == 2 and stats.length_percentiles["p100"] == 6
    assert stats.tokens == sum(len(tiny_tokenizer().encode(record["text"])) + 2 for record in records[:3])


def test_stats_of_conversations(tmp_path: Path) -> None:
    thinking = ASSISTANT | {"reasoning_content": "hm"}
    records = [{"conversations": turns} for turns in ([USER, CALL, ASSISTANT], [USER, thinking], [USER, ASSISTANT])]
    stats = describe_files([write_jsonl(tmp_path / "data.jsonl", records)], tokenizer=tiny_tokenizer())
    assert stats.roles == {"user": 3, "assistant": 4} and stats.mean_turns == 2.33
    assert (stats.tools_share, stats.thinking_share) == (0.3333, 0.3333)
    assert stats.tokens is not None and stats.tokens > 30 and "roles" in stats.to_dict()


def test_stats_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no valid record of kind sft"):
        describe_files([write_jsonl(tmp_path / "data.jsonl", TEXTS)], "sft")
