"""`cutaway serve`: what it loads and what it refuses; adapters on one base."""

import importlib.util
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import torch

from cutaway.cli.main import main
from cutaway.generation.generate import generate
from cutaway.generation.sampling import Sampling
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.weights import load_model, save_adapter, save_model
from cutaway.serving.app import make_app
from cutaway.serving.models import Models, load_served
from cutaway.tokenization.chat import render
from generation_helpers import tiny_model, tiny_tokenizer
from serving_helpers import live, wait_until


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_model(tiny_model(), folder, tiny_model().config)
    tiny_tokenizer().save(folder)
    (folder / "recipe.toml").write_text('[made]\nstage = "sft"\n')
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that say different things."""
    folders = {}
    for number, name in enumerate(("one", "two")):
        model = load_model(base)
        adapt(model, LoRAConfig(rank=4, dora=number == 1), seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        folders[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, folders[name], str(base))
        (folders[name] / "generation_config.json").write_text('{"temperature": 0.5}')
    return folders


def test_adapters_are_models_on_one_base(base: Path, adapters: dict[str, Path]) -> None:
    models = load_served(base, "base", torch.device("cpu"), slots=2, max_new_tokens=6, adapters=adapters)
    pointers = {p.data_ptr() for p in models[0].engine.source.parameters()}
    for model in models[1:]:
        shared = [p for name, p in model.engine.source.named_parameters() if ".lora_" not in name]
        assert shared and {p.data_ptr() for p in shared} == pointers
    ids = render([{"role": "user", "content": "hi"}], tiny_tokenizer(), add_generation_prompt=True).ids
    said = set()
    with live(make_app(Models(models))) as server:
        cards = httpx.get(server.url + "/v1/models").json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [("base", None), ("one", "base"), ("two", "base")]
        assert cards[1]["cutaway"]["sampling"]["temperature"] == 0.5
        for name, folder in {"base": base, **adapters}.items():
            answer = server.chat(model=name, temperature=0).json()["choices"][0]["message"]["content"]
            merged = generate(load_model(folder), [ids], tiny_tokenizer(), sampling=GREEDY, max_new_tokens=6)
            assert answer == merged[0].text
            said.add(answer)
    assert len(said) == 3


GREEDY = Sampling(temperature=0.0)


def test_in_bfloat16_the_weights_are_shared_too(base: Path, adapters: dict[str, Path]) -> None:
    kind = torch.bfloat16
    models = load_served(base, "base", torch.device("cpu"), slots=1, max_new_tokens=4, dtype=kind, adapters=adapters)
    pointers = {p.data_ptr() for p in models[0].engine.source.parameters()}
    for model in models[1:]:
        own = [p for name, p in model.engine.source.named_parameters() if ".lora_" not in name]
        assert all(p.dtype == kind and p.data_ptr() in pointers for p in own)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--port", "70000"], "--port"),
        (["--slots", "0"], "--slots"),
        (["--max-body-mb", "0"], "--max-body-mb"),
        (["--adapter", "x"], "NAME=DIR"),
        (["--adapter", "x=/nowhere"], "adapter_config.json"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
    ],
)
def test_mistakes_are_one_line(base: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str) -> None:
    assert main(["serve", str(base), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cutaway: error:") and reason in error


def test_without_the_extra_it_says_what_to_install(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", str(base)]) == 2
    assert "pip install 'cutaway[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_as_a_command_and_ends_on_a_signal(base: Path, cutaway_command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen([*cutaway_command, "serve", str(base), "--port", "0"], stdout=out, stderr=out)
    try:
        wait_until(lambda: "serving on" in log.read_text() or process.poll() is not None, 60)
        url = log.read_text().split("serving on ")[1].split()[0]
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=30)
        assert answer.json()["model"] == base.name and answer.json()["usage"]["completion_tokens"] >= 1
        assert httpx.get(url + "/v1/models", headers={"Host": "evil.example"}).status_code == 403
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
