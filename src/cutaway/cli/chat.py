"""`cutaway chat`: talk to a model in the terminal, or get one answer on stdout."""

import contextlib
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.generation.conversation import Conversation
    from cutaway.generation.engine import Completion, Request

log = logging.getLogger("cutaway")

HELP = (
    "/system TEXT  set the system message and start afresh (without TEXT: none)\n"
    "/reset        start afresh\n"
    "/thinking on|off\n"
    "/save FILE    append the conversation to FILE as one line of SFT data\n"
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


def main(argv: Sequence[str]) -> int:
    """Load the model and talk."""
    flags = parse(ChatFlags, argv, prog="cutaway chat")
    conversation, request = _start(flags)
    if flags.prompt is not None:
        print(_one_answer(conversation, request, flags.prompt))
        return 0
    # Arrow keys and history at the prompt, where Python has them.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    _talk(conversation, request)
    return 0


def _start(flags: ChatFlags) -> "tuple[Conversation, Request]":
    import torch

    from cutaway.generation.conversation import Conversation, knows_chat
    from cutaway.generation.defaults import MAX_NEW_TOKENS, load_sampling
    from cutaway.generation.engine import Engine, Request
    from cutaway.model.weights import load_model
    from cutaway.tokenization.tokenizer import Tokenizer
    from cutaway.training.precision import pick_device

    folder = Path(flags.run)
    given = {name: getattr(flags, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    settings = vars(load_sampling(folder)) | {name: value for name, value in given.items() if value is not None}
    seed = random.SystemRandom().getrandbits(48) if flags.seed is None else flags.seed
    length = MAX_NEW_TOKENS if flags.max_new_tokens is None else flags.max_new_tokens
    request = Request((), length, seed, **settings)
    model = load_model(folder, pick_device()).eval()
    tokenizer = Tokenizer.load(folder)
    chat = knows_chat(folder, tokenizer)
    if not chat:
        log.info("%s was not fine-tuned on conversations: it continues your text instead of answering", folder)
    engine = Engine(model, tokenizer, slots=1, dtype=torch.bfloat16 if flags.bf16 else None)
    return Conversation(engine, chat, flags.system, True if flags.thinking else None), request


def _one_answer(conversation: "Conversation", request: "Request", prompt: str) -> str:
    completion = None
    for piece in conversation.ask(prompt, request):
        completion = piece.completion
    assert completion is not None
    if completion.finish_reason == "context":
        log.info(_full(conversation))
    answer = conversation.messages[-1] if conversation.messages else {}
    # Tool calls, and an answer that is all thinking, are shown as they were written.
    if conversation.chat and answer.get("content") and not answer.get("tool_calls"):
        return str(answer["content"])
    return completion.text


def _talk(conversation: "Conversation", request: "Request") -> None:
    from dataclasses import replace

    asked = 0
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
                if not _command(conversation, text):
                    return
                continue
            _print_answer(conversation, replace(request, seed=request.seed + asked), text)
            asked += 1
        except UserError as error:
            print(error)


def _print_answer(conversation: "Conversation", request: "Request", text: str) -> None:
    started, count = time.perf_counter(), 0
    completion: Completion | None = None
    answer = conversation.ask(text, request)
    try:
        for piece in answer:
            print(piece.text, end="", flush=True)
            count, completion = count + 1, piece.completion
    except KeyboardInterrupt:
        answer.close()
    seconds = time.perf_counter() - started
    print(f"\n[{count} tokens, {count / seconds:.0f} tokens/s]")
    if completion is None:
        print("interrupted")
    elif completion.finish_reason == "length":
        print(f"cut off at {request.max_new_tokens} tokens: --max-new-tokens allows more")
    elif completion.finish_reason == "context":
        print(_full(conversation))


def _full(conversation: "Conversation") -> str:
    return f"the context of {conversation.engine.max_length} tokens is full: /reset starts afresh"


def _command(conversation: "Conversation", line: str) -> bool:
    """Do what a line with a slash says; false ends the chat. UserError where it says nothing known."""
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
        case "/save":
            _save(conversation, argument)
        case _:
            raise UserError(f"no command {name} (/help lists them)")
    return True


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
