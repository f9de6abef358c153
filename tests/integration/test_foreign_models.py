"""Checkpoints of SmolLM2, TinyLlama, Qwen3 and MiniMind-3: loading, chat, fine-tuning by their own templates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import SIZES, finish

from cutaway.cli.main import main
from cutaway.errors import UserError
from cutaway.model.weights import load_model
from cutaway.tokenization.foreign import answered_ids, foreign_to_fit, render_foreign
from cutaway.tokenization.tokenizer import Tokenizer
from foreign_models import NAMES, TEMPLATES, make_foreign

USER = {"role": "user", "content": "hello world"}
ANSWER = {"role": "assistant", "content": "the sun is a star 好"}
THOUGHT = ANSWER | {"reasoning_content": "how are you"}
SHORT = [argument if argument != "500" else "20" for argument in SIZES]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make_foreign(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sft.jsonl"
    lines = [[USER | {"content": f"hello {n}"}, ANSWER | {"content": f"the sun {n} 好"}] for n in range(60)]
    path.write_text("".join(json.dumps({"conversations": turns}) + "\n" for turns in lines), encoding="utf-8")
    return path


def test_it_loads_and_answers(
    model: tuple[str, Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name, folder = model
    loaded = load_model(folder)
    assert loaded.config.num_experts == (4 if name == "minimind3-moe" else 0)
    unknown = [record.message for record in caplog.records if "not known here" in record.message]
    assert not unknown
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template == TEMPLATES[name] and not tokenizer.is_native
    for text in ("hello world", " 你好 123 é\n", "\U00020000 x"):
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text.strip()
    assert main(["chat", str(folder), "--prompt", "hello", "--max-new-tokens", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def said(name: str, tokenizer: Tokenizer, conversation: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The text as a whole, and the stretches that are trained."""
    rendered = render_foreign(conversation, tokenizer)
    stretches: list[list[int]] = []
    for i, (index, trained) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        if trained:
            if i == 0 or not rendered.mask[i - 1]:
                stretches.append([])
            stretches[-1].append(index)
    return tokenizer.decode(rendered.ids), [tokenizer.decode(ids) for ids in stretches]


def test_what_is_trained(model: tuple[str, Path]) -> None:
    name, folder = model
    tokenizer = Tokenizer.load(folder)
    end = "</s>" if name == "tinyllama" else "<|im_end|>"
    text, trained = said(name, tokenizer, [USER, ANSWER])
    assert ANSWER["content"] + end in text
    # Qwen3's prompt leaves the thinking block to the model, MiniMind's writes the empty one itself.
    block = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert trained == [block + ANSWER["content"] + end]
    if "minimind3" in name or name == "qwen3":
        opened = "" if "minimind3" in name else "<think>\n"
        assert said(name, tokenizer, [USER, THOUGHT])[1] == [
            f"{opened}how are you\n</think>\n\n{ANSWER['content']}{end}"
        ]
    if name == "qwen3":
        with pytest.raises(UserError, match=r"with turn 3 \(assistant\) it rewrites the turns before"):
            render_foreign([USER, ANSWER, USER, ANSWER], tokenizer)
    else:
        assert len(said(name, tokenizer, [USER, ANSWER, USER, ANSWER])[1]) == 2


def test_ids_are_those_of_the_whole_text_and_of_the_prompt(model: tuple[str, Path]) -> None:
    """What is trained on is what the model is given when it chats, and what other libraries would encode."""
    name, folder = model
    tokenizer = Tokenizer.load(folder)
    whole = render_foreign([USER, ANSWER], tokenizer).ids
    prompt = render_foreign([USER], tokenizer, add_generation_prompt=True).ids
    assert whole[: len(prompt)] == prompt
    assert whole == tokenizer.encode_markup(tokenizer.decode(whole)) or name == "tinyllama"
    short = foreign_to_fit([USER, ANSWER], tokenizer, len(whole))
    assert short is not None and short.mask[-1] and short.ids == whole[: len(short.ids)]
    assert foreign_to_fit([USER, ANSWER], tokenizer, len(prompt)) is None


@pytest.mark.slow
def test_sft(model: tuple[str, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = model
    out = tmp_path / "run"
    arguments = ["sft", "--data", str(questions), "--init", str(folder), "--out", str(out), "--steps", "3", *SHORT]
    finish([*arguments, "--scripts", "keep"], tmp_path / "log")
    before, after = load_model(folder), load_model(out)
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    tokenizer = Tokenizer.load(out)
    assert tokenizer.chat_template == TEMPLATES[name]
    assert tokenizer.encode_markup("<|im_start|>hello</s> 1") == Tokenizer.load(folder).encode_markup(
        "<|im_start|>hello</s> 1"
    )
    assert main(["chat", str(out), "--prompt", "hello", "--max-new-tokens", "4", "--seed", "1"]) == 0


def test_a_conversation_that_would_be_rewritten_is_a_bad_record(tmp_path: Path) -> None:
    folder = make_foreign("qwen3", tmp_path / "qwen3")
    data = tmp_path / "multi.jsonl"
    rows = [[USER, ANSWER]] * 30 + [[USER, ANSWER, USER, ANSWER]] + [[USER | {"content": "<|im_end|>"}, ANSWER]]
    data.write_text("".join(json.dumps({"conversations": turns}) + "\n" for turns in rows), encoding="utf-8")
    arguments = [
        "sft",
        "--data",
        str(data),
        "--init",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1",
        *SHORT,
    ]
    with pytest.raises(AssertionError) as failure:
        finish(arguments, tmp_path / "log")
    assert "multi.jsonl:31: this model's chat template cannot be trained on" in str(failure.value)
    finish([*arguments, "--skip-bad", "2"], tmp_path / "log")


def test_a_dialogue_is_scored_at_the_end_of_its_answer(model: tuple[str, Path]) -> None:
    """As the model's own template writes it, whatever that puts behind an answer."""
    tokenizer = Tokenizer.load(model[1])
    ids, rendered = answered_ids([USER, ANSWER], tokenizer), render_foreign([USER, ANSWER], tokenizer)
    assert ids == rendered.ids[: len(ids)] and rendered.mask[len(ids) - 1] and not any(rendered.mask[len(ids) :])


def test_tool_turns_need_the_own_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_foreign("qwen3", tmp_path / "qwen3")
    data = tmp_path / "agent.jsonl"
    data.write_text(json.dumps({"conversations": [USER], "gt": "1"}) + "\n", encoding="utf-8")
    arguments = ["agent", "--data", str(data), "--init", str(folder), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(arguments) == 2
    assert "its chat template is not Cutaway's" in capsys.readouterr().err


def test_no_template_is_one_line(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_foreign("smollm2", tmp_path / "smollm2")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    assert main(["sft", "--data", str(questions), "--init", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert "no chat template to write conversations by" in capsys.readouterr().err
