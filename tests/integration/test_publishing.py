"""Model card, `cutaway push` against a hub on loopback, and trackers that fail."""

import contextlib
import json
import logging
import re
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from run_helpers import Town, cutaway
from safetensors.torch import load_file

from cutaway.cli import main as cli
from cutaway.errors import UserError
from cutaway.exporting.publish import push
from cutaway.recipe.base import ModelSettings
from cutaway.recipe.files import load_run, save_recipe
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import PretrainSettings
from cutaway.stages import pretrain
from cutaway.training import trackers
from cutaway.training.card import MARK, card, write_card
from cutaway.training.trackers import Tracker, open_tracker
from fake_hub import FakeHub, running_hub

RECIPE = Recipe(
    name="tiny",
    model=ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    pretrain=PretrainSettings(
        steps=4, row_length=64, batch_tokens=256, micro_batch_tokens=256, holdout_tokens=300, compile="off", workers=1
    ),
)


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cutaway"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("cutaway"), "handlers", [])


@pytest.fixture(scope="module")
def run(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("publishing") / "first-run"
    return pretrain.run(RECIPE, RunSettings(data=(str(town.pretrain_data),), init=str(town.tokenizer), out=str(out)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS, which this hub speaks
        yield running


def test_every_run_has_a_card_that_the_hub_can_read(run: Path, town: Town) -> None:
    text = (run / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["cutaway", "pretrain", "tiny"],
    }
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = next(row for row in reversed(metrics) if "heldout_bpb" in row)
    assert f"| held-out bits per byte | {last['heldout_bpb']:,.4g} |" in text
    assert f"`{town.pretrain_data.name}`" in text and str(town.root) not in text
    assert "AutoModelForCausalLM.from_pretrained(where)" in text
    compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), "card", "exec")
    assert "Not stated. It follows from the licences of the data files" in text


def test_a_card_of_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    assert "has not reached its first log line" in card(tmp_path)


def test_a_card_names_base_and_minimind_licence_and_leaves_own_text_alone(run: Path, tmp_path: Path) -> None:
    files = RunSettings(data=("D/lora_medical.jsonl.xz",), out="x", init="owner/base")
    save_recipe(RECIPE, tmp_path / "recipe.toml", files, {"stage": "lora", "parameters": 1000, "cutaway": "0"})
    adapter = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    write_card(tmp_path, "cc-by-nc-4.0")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["library_name"], data["license"]) == ("owner/base", "peft", "cc-by-nc-4.0")
    assert "AutoPeftModelForCausalLM" in text and "cc-by-nc-2.0" in text
    own = text.replace(MARK, "my own words")
    (tmp_path / "README.md").write_text(own, encoding="utf-8")
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == own


def test_push_uploads_the_model_and_no_state(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(run), "--repo", "someone/first", "--licence", "apache-2.0"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/someone/first\n"
    there = hub.files["models/someone/first"]
    assert hub.private["models/someone/first"]
    assert set(there) >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "recipe.toml",
        "metrics.jsonl",
    }
    assert not [name for name in there if "/" in name or "state" in name or "events" in name]
    assert there["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert b"license: apache-2.0" in there["README.md"]
    assert b"license: unknown" in (run / "README.md").read_bytes()
    everything = b"".join(content for name, content in there.items() if name != "model.safetensors")
    assert str(run.parent).encode() not in everything
    assert push(run, "someone/first") == f"{hub.url}/someone/first"  # again: the repository is there already
    push(run, "someone/second", public=True)
    assert not hub.private["models/someone/second"]


def test_what_went_up_loads(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(run, "someone/first")
    for name, content in hub.files["models/someone/first"].items():
        (tmp_path / name).write_bytes(content)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(run / "model.safetensors").keys()
    assert load_run(str(tmp_path / "recipe.toml")).out == "first"


def test_push_refusals_are_one_line(
    hub: FakeHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert cli.main(["push", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("cutaway: error: ") and error.count("\n") == 1
        return error

    assert "must be owner/name" in refused(str(run), "--repo", "first")
    assert "no run directory" in refused(str(tmp_path / "none"), "--repo", "someone/first")
    assert "holds no model" in refused(str(tmp_path), "--repo", "someone/first")
    assert "must be an identifier" in refused(str(run), "--repo", "someone/first", "--licence", "My own!")
    hub.answers = [500] * 50
    assert "someone/first: the hub answered 500" in refused(str(run), "--repo", "someone/first")
    hub.answers = []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "wants a valid token" in refused(str(run), "--repo", "someone/first")
    monkeypatch.setattr("cutaway.exporting.publish.get_token", lambda: None)
    assert "no token for the hub: set HF_TOKEN" in refused(str(run), "--repo", "someone/first")
    assert not hub.files


def test_trackers_are_off_by_default_and_imported_by_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PretrainSettings().track == "off"
    assert open_tracker("off", tmp_path, {}, resume=False) is None
    for name in ("wandb", "swanlab", "trackio"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(UserError, match=rf"--track {name} needs the track extra: pip install 'cutaway\[track\]'"):
            open_tracker(name, tmp_path, {}, resume=False)


def test_a_tracker_that_fails_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[tuple[dict[str, float], int]] = []

    def send(metrics: dict[str, float], step: int) -> None:
        sent.append((metrics, step))
        if step == 2:
            raise ConnectionError("gone")

    tracker = Tracker("wandb", send, lambda: sent.append(({}, -1)))
    for step in (1, 2, 3):
        tracker.write({"step": step, "loss": 1.5, "bad": float("nan"), "word": "x", "flag": None})
    tracker.close()
    assert sent == [({"loss": 1.5}, 1), ({"loss": 1.5}, 2)]
    assert len([record for record in caplog.records if "wandb failed (ConnectionError: gone)" in record.message]) == 1


def test_a_tracker_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(trackers, "_wandb", broken)
    with pytest.raises(UserError, match=r"--track wandb: it cannot start: no API key configured \(WANDB_MODE=offline"):
        open_tracker("wandb", tmp_path, {}, resume=False)


def test_a_resumed_run_keeps_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        trackers, "_trackio", lambda run, identity, settings: (seen.append(identity), (print, print))[1]
    )
    for resume in (False, True, False):
        open_tracker("trackio", tmp_path, {}, resume=resume)
    assert seen[0] == seen[1] != seen[2]


def read_wandb(run: Path, home: Path) -> list[dict[str, float]]:
    """The offline file: a header of 7 bytes, then pieces of records (checksum, length, kind: whole, first, middle,
    last) in blocks of 32 KiB, none of which begins in the last 6 bytes of a block: a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = [path for path in run.rglob("*.wandb") if not path.parent.is_symlink()]
    content, place, rows, data = path.read_bytes(), 7, [], b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = Record.FromString(data)
            data = b""
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows.append(items | {"step": items["_step"]})
    return rows


def read_trackio(run: Path, home: Path) -> list[dict[str, float]]:
    (path,) = home.rglob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    return [json.loads(metrics) | {"step": step} for step, metrics in rows]


def read_swanlab(run: Path, home: Path) -> list[dict[str, float]]:
    from google.protobuf.json_format import MessageToDict
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = run.rglob("*.swanlab")
    reader, rows = DataStoreReader(), []
    reader.open(str(path))
    for data in iter(reader.scan, None):
        record = Record()
        record.ParseFromString(data if isinstance(data, bytes) else data[0])
        if scalar := MessageToDict(record).get("scalar"):
            rows.append(
                {"step": float(scalar.get("step", 0)), scalar["key"]: float(scalar["value"].get("number", 0.0))}
            )
    return rows


READERS = {"wandb": read_wandb, "swanlab": read_swanlab, "trackio": read_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_what_a_tracker_was_sent_is_there_offline(
    name: str, town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    for key, value in {
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(key, value)
    # In a process of its own: Trackio reads its folder when it is imported, and all three leave threads behind.
    run = tmp_path / "run"
    done = cutaway(*town.pretrain(run, 4, "--track", name), timeout=600)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["loss"] for row in metrics if "loss" in row}
    there = {int(row["step"]): row["loss"] for row in READERS[name](run, tmp_path) if "loss" in row}
    assert len(losses) == 4 and there == pytest.approx(losses, rel=1e-5)
