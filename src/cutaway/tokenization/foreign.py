"""Conversations in the format of another project's checkpoint, by its own Jinja template in a sandbox.

A template may rewrite earlier turns in the light of later ones (Qwen3's drops their thinking). Where it does, what was
generated is not what would be trained on, so training is refused here with the reason.
"""

import json
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cutaway.errors import UserError
from cutaway.tokenization.chat import Rendered
from cutaway.tokenization.messages import Message, normalise
from cutaway.tokenization.tokenizer import Tokenizer


def render_foreign(
    conversation: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = False,
    thinking: bool | None = None,
    tools: list[Any] | str | None = None,
) -> Rendered:
    """Token ids and loss mask by the checkpoint's own `chat_template`.

    An assistant turn is trained from the end of its generation prompt to its last visible character before the next
    turn. Markers are found in the text, so here a typed marker is refused, because it would become a control token.
    Raises UserError where a rendering is not a prefix of the rendering of one turn more.
    """
    turns = _safe_turns(conversation, tokenizer, tools)
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    ids: list[int] = []
    mask: list[bool] = []
    done = ""
    for count, turn in enumerate(turns, start=1):
        if count < len(turns) and turn["role"] == "system":
            continue  # some templates refuse a system turn by itself
        whole = _run(tokenizer, turns[:count], False, options)
        head = _run(tokenizer, turns[: count - 1], True, options) if turn["role"] == "assistant" else whole
        for part, trained in ((head, False), (whole, True)):
            if not part.startswith(done):
                raise UserError(_reason(count, turn["role"]))
            new = part[len(done) :]
            answer = new.rstrip() if trained else new
            for piece, flag in ((answer, trained), (new[len(answer) :], False)):
                encoded = tokenizer.encode_markup(piece)
                ids += encoded
                mask += [flag] * len(encoded)
            done = part
    if add_generation_prompt:
        prompt = _run(tokenizer, turns, True, options)
        if not prompt.startswith(done):
            raise UserError(_reason(len(turns), "generation prompt"))
        encoded = tokenizer.encode_markup(prompt[len(done) :])
        ids += encoded
        mask += [False] * len(encoded)
    return Rendered(ids, mask)


def prompt_foreign(
    conversation: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    thinking: bool | None = None,
    tools: list[Any] | str | None = None,
) -> list[int]:
    """Ids up to where the assistant answers, by the checkpoint's own template: for chat, which may be rewritten."""
    turns = _safe_turns(conversation, tokenizer, tools)
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    return tokenizer.encode_markup(_run(tokenizer, turns, True, options))


def _safe_turns(conversation: Sequence[Message], tokenizer: Tokenizer, tools: list[Any] | str | None) -> list[Message]:
    """Normalised turns, none of which holds a marker that the template's text would turn into a control token."""
    turns = normalise(conversation, tools=tools)
    for turn in turns:
        typed = next((token for token in tokenizer.control_ids if token in turn["content"]), None)
        if typed is not None:
            raise UserError(f"a message contains the control token {typed}, which this chat template would obey")
    return turns


def _reason(count: int, what: str) -> str:
    return (
        f"this model's chat template cannot be trained on: with turn {count - 1} ({what}) it rewrites the turns "
        "before, so that what was generated is no prefix of what follows; use a template that appends only"
    )


def _run(tokenizer: Tokenizer, messages: list[Message], prompt: bool, options: dict[str, Any]) -> str:
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template, so conversations cannot be rendered with it")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    names = {key: value for key in ("bos_token", "eos_token", "pad_token") if (value := tokenizer.named_token(key))}
    tools = next((turn["tools"] for turn in messages if turn.get("tools")), None)
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=messages, tools=tools, add_generation_prompt=prompt, **names, **options)
    except jinja2.TemplateError as error:
        raise UserError(f"this model's chat template refuses the conversation: {error}") from None


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    # Jinja's own filter escapes for HTML; Transformers replaces it like this.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)
