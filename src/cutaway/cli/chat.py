"""`cutaway chat`: talk to a model in the terminal, or get one answer on stdout."""

import contextlib
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cutaway.cli.common import parse
from cutaway.cli.fold import Fold, printable
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.generation.conversation import Conversation
    from cutaway.generation.engine import Completion, Engine, Request
    from cutaway.tools.toolbox import Toolbox

log = logging.getLogger("cutaway")

HELP = (
    "/system TEXT       set the system message and start afresh (without TEXT: none)\n"
    "/reset             start afresh\n"
    "/thinking on|off   /thought shows what was thought last\n"
    "/tools on|off|A,B  let the model call tools: all, none, or those named; without an argument, list them\n"
    "/adapter DIR|off   answer with this adapter, or with the model that the chat began with\n"
    "/history           show the conversation\n"
    "/save FILE         append it to FILE as one line of SFT data\n"
    "/exit"
)


@dataclass(frozen=True)
class ChatFlags:
    """Talk to a model. In the terminal, /help lists the commands, Ctrl-C stops an answer and Ctrl-D leaves."""

    run: tyro.conf.Positional[str]
    """Run directory, or any model directory of the Llama or Qwen3 kind."""
    prompt: str | None = None
    """Answer this once on stdout, and nothing else."""
    system: str | None = None
    """System message."""
    thinking: bool = False
    """Open every answer with a thinking block."""
    tools: bool = False
    """Let the model call the built-in tools: calculator, dates, units."""
    temperature: float | None = None
    """0 takes the most likely token, below 1 sharpens; this and the next three default to generation_config.json."""
    top_p: float | None = None
    """Sample from the fewest tokens that reach this probability; 1 turns it off."""
    top_k: int | None = None
    """Sample from the k most likely tokens; 0 turns it off."""
    min_p: float | None = None
    """Sample from tokens at least this share as likely as the most likely one; 0 turns it off."""
    seed: int | None = None
    """The same seed gives the same answers; default: a new one every time."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens; default 512."""
    bf16: bool = False
    """Compute in bfloat16."""
    rope_scaling: str = ""
    """Stretch the context beyond the trained length, such as yarn:4 for four times; default: as config.json has it."""


def main(argv: Sequence[str]) -> int:
    """Load the model and talk."""
    flags = parse(ChatFlags, argv, prog="cutaway chat")
    conversation, request = _start(flags)
    if flags.prompt is not None:
        print(printable(_one_answer(conversation, request, flags.prompt)))
        return 0
    # Arrow keys and history at the prompt, where Python has them.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    _Chat(conversation, request, flags).talk()
    return 0


def _start(flags: ChatFlags) -> "tuple[Conversation, Request]":
    from cutaway.generation.conversation import Conversation, knows_chat
    from cutaway.generation.defaults import MAX_NEW_TOKENS, load_sampling
    from cutaway.generation.engine import Request

    folder = Path(flags.run)
    given = {name: getattr(flags, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    settings = vars(load_sampling(folder)) | {name: value for name, value in given.items() if value is not None}
    seed = random.SystemRandom().getrandbits(48) if flags.seed is None else flags.seed
    length = MAX_NEW_TOKENS if flags.max_new_tokens is None else flags.max_new_tokens
    request = Request((), length, seed, **settings)
    engine = _engine(folder, flags)
    chat = knows_chat(folder, engine.tokenizer)
    if not chat:
        log.info("%s was not fine-tuned on conversations: it continues your text instead of answering", folder)
    toolbox = _toolbox() if flags.tools else None
    return Conversation(engine, chat, flags.system, True if flags.thinking else None, toolbox), request


def _engine(folder: Path, flags: ChatFlags) -> "Engine":
    import torch

    from cutaway.generation.engine import Engine
    from cutaway.model.weights import load_model
    from cutaway.tokenization.tokenizer import Tokenizer
    from cutaway.training.precision import pick_device

    model, tokenizer = load_model(folder, pick_device(), flags.rope_scaling).eval(), Tokenizer.load(folder)
    return Engine(model, tokenizer, slots=1, dtype=torch.bfloat16 if flags.bf16 else None, frozen=True)


def _toolbox() -> "Toolbox":
    import datetime

    from cutaway.tools.standard import standard_toolbox

    return standard_toolbox(today=datetime.date.today())


def _one_answer(conversation: "Conversation", request: "Request", prompt: str) -> str:
    from cutaway.generation.engine import Piece

    completion = None
    for piece in conversation.ask(prompt, request):
        completion = piece.completion if isinstance(piece, Piece) else completion
    assert completion is not None
    if completion.finish_reason == "context":
        log.info(_full(conversation))
    answer = conversation.messages[-1] if conversation.messages else {}
    # Tool calls, and an answer that is all thinking, are shown as they were written.
    if conversation.chat and answer.get("content") and not answer.get("tool_calls"):
        return str(answer["content"])
    return completion.text


class _Chat:
    """The loop at the prompt, and what its commands change."""

    def __init__(self, conversation: "Conversation", request: "Request", flags: ChatFlags) -> None:
        self.conversation, self.request, self.flags = conversation, request, flags
        self.first_engine = conversation.engine
        self.asked = 0

    def talk(self) -> None:
        """Read and answer until the user leaves."""
        while True:
            try:
                text = input("> " if sys.stdin.isatty() else "")
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if not text.strip():
                continue
            try:
                if text.startswith("/"):
                    if not self.command(text):
                        return
                    continue
                self.answer(text)
                self.asked += 1
            except UserError as error:
                print(error)

    def answer(self, text: str) -> None:
        """Print the answer to a turn as it comes."""
        from cutaway.generation.conversation import ToolUse

        conversation = self.conversation
        opened = conversation.chat and conversation.thinking is True and conversation.engine.tokenizer.is_native
        fold = Fold(conversation.engine.tokenizer, opened)
        started = time.perf_counter()
        completion: Completion | None = None
        answer = conversation.ask(text, replace(self.request, seed=self.request.seed + self.asked))
        interrupted = False
        try:
            for piece in answer:
                if isinstance(piece, ToolUse):
                    fold.used(piece)
                    if opened:
                        fold = Fold(conversation.engine.tokenizer, opened, count=fold.count)
                else:
                    fold.show(piece)
                    completion = piece.completion
        except KeyboardInterrupt:
            answer.close()
            interrupted = True
        fold.finish()
        seconds = time.perf_counter() - started
        print(f"\n[{fold.count} tokens, {fold.count / seconds:.0f} tokens/s]")
        if interrupted or completion is None:
            print("interrupted")
        elif completion.finish_reason == "length":
            print(f"cut off at {self.request.max_new_tokens} tokens: --max-new-tokens allows more")
        elif completion.finish_reason == "context":
            print(_full(conversation))
        elif conversation.toolbox is not None and conversation.messages[-1].get("tool_calls"):
            print("the model went on calling tools and was stopped")

    def command(self, line: str) -> bool:
        """Do what a line with a slash says; false ends the chat. UserError where it says nothing known."""
        conversation = self.conversation
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/exit" | "/quit":
                return False
            case "/help":
                print(HELP)
            case "/reset":
                conversation.messages.clear()
            case "/system":
                conversation.system = argument or None
                conversation.messages.clear()
            case "/thinking":
                if argument not in ("on", "off"):
                    raise UserError("/thinking needs on or off")
                conversation.thinking = argument == "on"
            case "/thought":
                thoughts = [
                    turn["reasoning_content"] for turn in conversation.messages if turn.get("reasoning_content")
                ]
                print(printable(thoughts[-1]) if thoughts else "nothing was thought yet")
            case "/tools":
                self.choose_tools(argument)
            case "/adapter":
                self.choose_adapter(argument)
            case "/history":
                for turn in conversation.transcript():
                    tools = ", ".join(tool["function"]["name"] for tool in turn.get("tools", ()))
                    print(printable(f"{turn['role']}: {turn['content'] or turn.get('tool_calls') or tools}"))
            case "/save":
                _save(conversation, argument)
            case _:
                raise UserError(f"no command {name} (/help lists them)")
        return True

    def choose_tools(self, argument: str) -> None:
        """`on`, `off`, names with commas, or nothing, which lists them."""
        conversation, every = self.conversation, _toolbox()
        if not argument:
            allowed = conversation.toolbox or ()
            for tool in every:
                print(f"{'+' if tool.name in allowed else '-'} {tool.name}: {tool.description.splitlines()[0]}")
            return
        if argument == "on" and not conversation.chat:
            raise UserError("this model only continues text: it cannot call tools")
        names = [part.strip() for part in argument.split(",") if part.strip()]
        conversation.toolbox = {"on": every, "off": None}[argument] if argument in ("on", "off") else every.only(names)

    def choose_adapter(self, argument: str) -> None:
        """An adapter's directory, or `off`. The conversation goes on."""
        if not argument:
            raise UserError("/adapter needs a directory, or off")
        if argument == "off":
            self.conversation.engine = self.first_engine
            return
        from cutaway.model.weights import is_adapter

        if not is_adapter(Path(argument)):
            raise UserError(f"{argument}: no adapter there (adapter_config.json is missing)")
        engine = _engine(Path(argument), self.flags)
        if engine.tokenizer.fingerprint != self.first_engine.tokenizer.fingerprint:
            raise UserError(f"{argument}: an adapter of a model with another vocabulary")
        self.conversation.engine = engine


def _full(conversation: "Conversation") -> str:
    return f"the context of {conversation.engine.max_length} tokens is full: /reset starts afresh"


def _save(conversation: "Conversation", file: str) -> None:
    if not file:
        raise UserError("/save needs a file name")
    if not conversation.messages:
        raise UserError("nothing was said yet")
    record = {"conversations": conversation.transcript()}
    try:
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"could not write {file}: {error.strerror}") from None
    print(f"appended to {file}")
