import copy
import json
import sys
from pathlib import Path

import pytest
import torch

from cutaway.cli import chat
from cutaway.cli.main import main
from cutaway.generation.conversation import Conversation, answer_prompt
from cutaway.generation.defaults import CHAT
from cutaway.generation.engine import Engine, Request
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.weights import save_adapter, save_model
from cutaway.tokenization.chat import render
from cutaway.tokenization.messages import Message
from cutaway.tools.standard import standard_toolbox
from generation_helpers import tiny_model, tiny_tokenizer

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of an untrained model, said to be fine-tuned."""
    folder = tmp_path / "run"
    save_model(tiny_model(), folder, tiny_model().config)
    tiny_tokenizer().save(folder)
    (folder / "recipe.toml").write_text('[made]\nstage = "sft"\n')
    return folder


@pytest.fixture
def talk(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed):  # type: ignore[no-untyped-def]
    """Give the chat these lines as input; get what it printed."""

    def say(*lines: str, flags: tuple[str, ...] = ()) -> str:
        typed = iter(lines)

        def read(prompt: str = "") -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        assert main(["chat", str(run), "--seed", "3", "--max-new-tokens", "6", *flags]) == 0
        return capsys.readouterr().out

    return say


def expected(prompt_ids: list[int], seed: int = 3, tokens: int = 6) -> str:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=1)
    engine.submit(Request(prompt_ids, tokens, seed, **vars(CHAT)))
    while engine.busy:
        engine.step()
    return engine.collect()[0].text


def test_with_a_prompt_one_answer_is_all_that_is_printed(run: Path, capsys: Printed) -> None:
    arguments = ["chat", str(run), "--prompt", "the cat", "--seed", "3", "--max-new-tokens", "6"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    ids = render([{"role": "user", "content": "the cat"}], tiny_tokenizer(), add_generation_prompt=True).ids
    assert first.out == expected(ids) + "\n" and first.err == ""
    assert main([*arguments, "--temperature", "0"]) == 0
    assert capsys.readouterr().out != first.out
    assert main([*arguments, "--system", "Be brief.", "--thinking", "--bf16"]) == 0


def test_a_pretrained_model_continues_text_and_says_so(
    run: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(chat.log, "info", lambda message, *values: notes.append(message % values))
    (run / "recipe.toml").write_text('[made]\nstage = "pretrain"\n')
    assert main(["chat", str(run), "--prompt", "the cat", "--seed", "3", "--max-new-tokens", "6"]) == 0
    ids = [tiny_tokenizer().eos_id, *tiny_tokenizer().encode("the cat")]
    assert capsys.readouterr().out == expected(ids) + "\n"
    assert len(notes) == 1 and "not fine-tuned" in notes[0] and "\n" not in notes[0]


def test_history_save_and_reset(talk, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    saved = tmp_path / "saved.jsonl"
    out = talk("the cat", "/system Be brief.", "你好", "the dog", f"/save {saved}", "/reset", f"/save {saved}", "/exit")
    assert out.count("tokens/s]") == 3 and "cut off at 6 tokens" in out and "nothing was said yet" in out
    (line,) = saved.read_text(encoding="utf-8").splitlines()
    turns: list[Message] = json.loads(line)["conversations"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    # The last answer is the one that the whole history gives, with the seed of the third turn.
    assert turns[-1]["content"] == expected(answer_prompt(turns[:-1], tiny_tokenizer()), seed=5)


def test_save_names_the_tools(talk, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    saved = tmp_path / "saved.jsonl"
    out = talk("/tools calculator", "the cat", "/history", f"/save {saved}")
    first, asked, _ = json.loads(saved.read_text(encoding="utf-8"))["conversations"]
    assert first == {"role": "system", "content": "", "tools": standard_toolbox().only(["calculator"]).schemas()}
    assert asked == {"role": "user", "content": "the cat"} and "system: calculator\n" in out


def test_thinking_opens_the_answer_and_is_kept_apart(talk, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    saved = tmp_path / "saved.jsonl"
    talk("/thinking on", "the cat", "/thinking off", "the dog", f"/save {saved}")
    turns = json.loads(saved.read_text(encoding="utf-8"))["conversations"]
    assert "reasoning_content" in turns[1] and turns[3]["reasoning_content"] == ""


def test_unknown_commands_and_empty_lines_do_no_harm(talk) -> None:  # type: ignore[no-untyped-def]
    out = talk("", "  ", "/dance", "/thinking maybe", "/save", "/help")
    assert "no command /dance" in out and "on or off" in out and "file name" in out and "/reset" in out


def test_a_full_context_is_one_clear_line(talk, run: Path, capsys: Printed) -> None:  # type: ignore[no-untyped-def]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30}))
    out = talk("a", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "a")
    assert "the context is full" in out
    assert talk("the cat", "the cat", flags=("--max-new-tokens", "500")).count("/reset starts afresh") >= 1
    assert main(["chat", str(run), "--prompt", "x y " * 40]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the context is full" in error


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(talk, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    steps = iter(range(100))
    step = Engine.step

    def interrupted(self: Engine):  # type: ignore[no-untyped-def]
        if next(steps) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    saved = tmp_path / "saved.jsonl"
    out = talk("the cat", f"/save {saved}", "the dog")
    assert out.count("interrupted") == 1 and out.count("tokens/s]") == 2
    turns = json.loads(saved.read_text(encoding="utf-8"))["conversations"]
    assert len(turns) == 2 and turns[1]["content"] in out


class Dictated:
    """A constraint that leaves no choice."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = list(ids)

    def allowed(self) -> torch.Tensor:
        return torch.arange(tiny_tokenizer().vocab_size) == self.ids[0]

    def accept(self, token: int) -> None:
        del self.ids[0]


def test_ctrl_c_keeps_thoughts_and_answer_apart() -> None:
    tokenizer = tiny_tokenizer()
    thought, said = tokenizer.encode("so\n"), tokenizer.encode("\n\nYes鷹")
    written = [*thought, tokenizer.control_id("</think>"), *said, tokenizer.im_end_id]
    # Within the thoughts, and within the last character.
    for stopped, expected in ((2, ("so", "")), (len(written) - 2, ("so", "Yes"))):
        conversation = Conversation(Engine(tiny_model(), tokenizer, slots=1), thinking=True)
        answer = conversation.ask("hi", Request((), 40, constraint=lambda: Dictated(written)))
        for _ in range(stopped):
            next(answer)
        answer.close()
        asked, stored = conversation.messages
        assert asked == {"role": "user", "content": "hi"}
        assert (stored["reasoning_content"], stored["content"]) == expected


def test_an_adapter_reads_as_far_as_the_model(talk, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = copy.deepcopy(tiny_model())
    adapt(model, LoRAConfig(rank=1))
    save_adapter(model, tmp_path / "adapter", str(run))
    tiny_tokenizer().save(tmp_path / "adapter")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30}))
    out = talk(f"/adapter {tmp_path / 'adapter'}", "x y " * 60, flags=("--rope-scaling", "yarn:4"))
    assert out.splitlines()[0] == "the context is full: the prompt has 258 tokens, the model holds 120"


def test_an_answer_cannot_steer_the_terminal(run: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_one_answer", lambda *_: "a\x1b[2J\x9b\tb\nc")
    for terminal, shown in ((True, "a\ufffd[2J\ufffd\tb\nc\n"), (False, "a\x1b[2J\x9b\tb\nc\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert main(["chat", str(run), "--prompt", "x"]) == 0
        assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--top-p", "2"], "top_p"),
        (["--temperature", "hot"], "cutaway chat"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--nonsense"], "cutaway chat"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run: Path, capsys: Printed, flags: list[str], reason: str) -> None:
    assert main(["chat", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and reason in error
