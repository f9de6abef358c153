"""`data get` against a hub on loopback: whole, cut and damaged files, mirrors, and every way in which a hub says no."""

import json
import os
import random
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from cutaway.cli import main as cli
from cutaway.data import hub as hub_module
from cutaway.data.describe import check_files
from cutaway.data.hub import MINIMIND_FILES, get
from cutaway.errors import UserError
from fake_hub import FakeHub, running_hub

BIG = random.Random(3).randbytes(300_000)
SMALL = b'{"text": "small"}\n'
REPO = "datasets/jingyaogong/minimind_dataset"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with MiniMind's repository, no waits, and a cache of connections that does not outlive the test."""
    with running_hub() as running:
        running.files[REPO] = {"pretrain_t2t_mini.jsonl": BIG, "lora_identity.jsonl": SMALL, "README.md": b"card"}
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_module, "WAITS_S", (0.0, 0.0, 0.0))
        monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost where a connection breaks off
        yield running


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_named_set_arrives_whole_and_is_not_fetched_twice(hub: FakeHub, tmp_path: Path) -> None:
    (path,) = get("pretrain_t2t_mini", tmp_path)
    assert path == tmp_path / "pretrain_t2t_mini.jsonl" and path.read_bytes() == BIG
    before = hub.counts()
    assert get("pretrain_t2t_mini", tmp_path) == [path]
    assert hub.counts()["GET"] == before["GET"]
    (small,) = get("lora_identity", tmp_path)
    assert small.read_bytes() == SMALL
    assert left_over(tmp_path) == ["lora_identity.jsonl", "pretrain_t2t_mini.jsonl"]


def test_the_token_goes_to_the_hub_and_not_to_the_store(hub: FakeHub, tmp_path: Path) -> None:
    get("pretrain_t2t_mini", tmp_path)
    sent = {path.split("/")[1]: headers.get("authorization") for _, path, headers in hub.requests}
    assert sent == {"datasets": f"Bearer {hub.token}", "storage": None}


@pytest.mark.parametrize("name", MINIMIND_FILES)
def test_every_set_of_minimind_has_its_name(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[REPO][f"{name}.jsonl"] = SMALL
    assert get(name, tmp_path)[0].read_bytes() == SMALL


def test_a_cut_connection_goes_on_where_it_broke_off(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after = [50_000, 70_000]
    (path,) = get("pretrain_t2t_mini", tmp_path)
    assert path.read_bytes() == BIG
    assert hub.ranges() == ["bytes=50000-", "bytes=120000-"]


def test_a_killed_download_goes_on_in_the_next_process(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after = [90_000] + [0] * 40  # the server then gives nothing more, until the client gives up
    with pytest.raises(UserError, match=r"cannot be reached|broke off before the end"):
        get("pretrain_t2t_mini", tmp_path)
    (partial,) = left_over(tmp_path)
    assert partial.endswith(".incomplete") and (tmp_path / partial).read_bytes() == BIG[:90_000]
    hub.cut_after.clear()
    hub.requests.clear()
    assert get("pretrain_t2t_mini", tmp_path)[0].read_bytes() == BIG
    assert hub.ranges() == ["bytes=90000-"]
    assert left_over(tmp_path) == ["pretrain_t2t_mini.jsonl"]


def test_a_server_without_ranges_begins_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after, hub.ignores_range = [50_000], True
    assert get("pretrain_t2t_mini", tmp_path)[0].read_bytes() == BIG


@pytest.mark.parametrize("name", ["pretrain_t2t_mini", "lora_identity"])
def test_a_wrong_checksum_is_one_line_and_leaves_nothing(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.corrupt = True
    with pytest.raises(UserError, match=rf"{name}\.jsonl: damaged on the way \(the SHA-(256|1) differs\)"):
        get(name, tmp_path)
    assert left_over(tmp_path) == []


def test_a_file_of_that_name_is_never_overwritten(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "lora_identity.jsonl").write_bytes(b"mine")
    with pytest.raises(UserError, match="is there but not the file on the hub"):
        get("lora_identity", tmp_path)
    assert (tmp_path / "lora_identity.jsonl").read_bytes() == b"mine"


def test_an_answer_of_500_is_asked_again_and_then_reported(hub: FakeHub, tmp_path: Path) -> None:
    hub.answers = [500, 503]
    assert get("lora_identity", tmp_path)[0].read_bytes() == SMALL
    hub.answers = [500] * 50
    with pytest.raises(
        UserError, match=r"^jingyaogong/minimind_dataset: dpo\.jsonl: the hub answered 500, try again later$"
    ):
        get("dpo", tmp_path)
    hub.answers = [200] + [500] * 50  # the metadata is there, the content is not
    with pytest.raises(UserError, match="the hub answered 500"):
        get("pretrain_t2t_mini", tmp_path)


REFUSALS = {
    "no such file": ("jingyaogong/minimind_dataset:none.jsonl", [], "none.jsonl: no such file at http"),
    "no such repository": ("nobody/nothing", [], "nobody/nothing: no such repository"),
    "no pattern": ("jingyaogong/minimind_dataset:*.zip", [], "holds no file like *.zip"),
    "forbidden": ("dpo", [403], "answered 403"),
    "missing, as a mirror may say it": ("dpo", [404], "answered 404, nothing is there"),
    "unknown name": ("minimnd", [], "no data set 'minimnd'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line(hub: FakeHub, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted, hub.answers, message = REFUSALS[name]
    assert cli.main(["data", "get", wanted, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert left_over(tmp_path) == []


def test_no_network_is_one_line(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=rf"the hub at http://127\.0\.0\.1:{port} cannot be reached"):
        get("dpo", tmp_path)


def test_offline_mode_is_one_line_and_asks_nobody(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        get("dpo", tmp_path)
    assert not hub.requests


def test_a_full_disk_is_one_line(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_module, "http_get", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        get("lora_identity", tmp_path)


def test_any_repository_whole_or_by_pattern(hub: FakeHub, tmp_path: Path) -> None:
    files = {"a/x.jsonl": SMALL, "a/y.jsonl": BIG, "README.md": b"card", ".gitattributes": b"x"}
    hub.files["datasets/some-one/set.1"] = files
    assert [path.relative_to(tmp_path).as_posix() for path in get("some-one/set.1", tmp_path)] == [
        "a/x.jsonl",
        "a/y.jsonl",
    ]
    assert get("some-one/set.1:a/y*", tmp_path / "b") == [tmp_path / "b" / "a" / "y.jsonl"]
    assert get("some-one/set.1:README.md", tmp_path)[0].read_bytes() == b"card"


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside the folder"):
        hub_module._fetch(hub_module.RemoteFile("a/../../out.jsonl", "http://nowhere", {}, 1, ""), tmp_path)


def test_modelscope(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    hub.files["datasets/gongjy/minimind_dataset"] = {"dpo.jsonl": BIG}
    hub.cut_after = [10**6, 40_000]  # the first answer with content is the list of files
    (path,) = get("dpo", tmp_path, "modelscope")
    assert path.read_bytes() == BIG
    assert not any("authorization" in headers for _, _, headers in hub.requests)
    with pytest.raises(UserError, match=r"gongjy/minimind_dataset: holds no file rlaif\.jsonl"):
        get("rlaif", tmp_path, "modelscope")
    path.unlink()
    hub.corrupt = True
    with pytest.raises(UserError, match="the SHA-256 differs"):
        get("dpo", tmp_path, "modelscope")


def test_an_evaluation_set_becomes_one_file_of_multiple_choice_records(hub: FakeHub, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    choices = {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}
    row = {"id": "1", "question": "Which of them is the second?", "choices": choices, "answerKey": "2"}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 3), tmp_path / "rows.parquet")
    path = "ARC-Easy/test-00000-of-00001.parquet"
    hub.files["datasets/allenai/ai2_arc"] = {path: (tmp_path / "rows.parquet").read_bytes()}
    done = command(hub, "arc_easy", "--out", str(tmp_path), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 3 and records[0].items() >= {"choices": ["x", "y", "z"], "answer": 1}.items()
    assert check_files([tmp_path / "arc_easy.jsonl"]).kind == "multiple_choice"


def command(hub: FakeHub, *arguments: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """`cutaway data get` in a process of its own, with the hub as a mirror."""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "hf")}
    words = [sys.executable, "-m", "cutaway", "data", "get", *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_as_a_command_with_a_mirror(hub: FakeHub, tmp_path: Path) -> None:
    done = command(hub, "lora_identity", "--out", str(tmp_path), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'lora_identity.jsonl'}\n"
    assert "cc-by-nc-2.0" in done.stderr
