"""Conversations in the format of another project's checkpoint, by its own Jinja template in a sandbox.

A template may rewrite earlier turns in the light of later ones (Qwen3's drops their thinking). Where it does, what was
generated is not what would be trained on, so training is refused here with the reason.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cutaway.errors import UserError
from cutaway.tokenization.chat import Rendered, render
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
    turn; the prompt of a turn that thinks is that with thinking on. Markers are found in the text, so here a typed
    marker is refused, because it would become a control token. Raises UserError where the text up to an answer, as the
    template writes it then, is not how the text with the answer begins.
    """
    turns = _safe_turns(conversation, tokenizer, tools)
    options = _options(thinking)
    pieces: list[tuple[str, bool]] = []
    done = ""
    for count, turn in enumerate(turns, start=1):
        if turn["role"] != "assistant":
            continue
        head = _run(tokenizer, turns[: count - 1], True, options | (_options(True) if _thinks(turn) else {}))
        whole = _run(tokenizer, turns[:count], False, options)
        if not (head.startswith(done) and whole.startswith(head)):
            raise UserError(_reason(count, "assistant"))
        answer = whole[len(head) :].rstrip()
        pieces += [(head[len(done) :], False), (answer, True), (whole[len(head) + len(answer) :], False)]
        done = whole
    if add_generation_prompt or not turns or turns[-1]["role"] != "assistant":
        text = _run(tokenizer, turns, add_generation_prompt, options)
        if not text.startswith(done):
            raise UserError(_reason(len(turns), "generation prompt" if add_generation_prompt else turns[-1]["role"]))
        pieces.append((text[len(done) :], False))
    return Rendered(*tokenizer.encode_pieces(pieces))


def render_as_trained(conversation: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Token ids and loss mask by the tokenizer's own format, whosever it is: what fine-tuning makes of it."""
    return (render if tokenizer.is_native else render_foreign)(conversation, tokenizer)


def answered_ids(conversation: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids up to the last token of the last answer, where a model that scores is read."""
    rendered = render_as_trained(conversation, tokenizer)
    return rendered.ids[: max(i for i, trained in enumerate(rendered.mask) if trained) + 1]


def foreign_to_fit(conversation: Sequence[Message], tokenizer: Tokenizer, max_tokens: int) -> Rendered | None:
    """The longest beginning of the conversation that fits into `max_tokens` and ends with an answer's last token.

    None if not even the first answer fits. UserError as in `render_foreign`.
    """
    whole = render_foreign(conversation, tokenizer)
    ends = [i for i in range(len(whole.ids)) if whole.mask[i] and not any(whole.mask[i + 1 : i + 2])]
    last = next((i for i in reversed(ends) if i < max_tokens), None)
    return None if last is None else Rendered(whole.ids[: last + 1], whole.mask[: last + 1])


def prompt_foreign(
    conversation: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    thinking: bool | None = None,
    tools: list[Any] | str | None = None,
) -> list[int]:
    """Ids up to where the assistant answers, by the checkpoint's own template: for chat, which may be rewritten."""
    turns = _safe_turns(conversation, tokenizer, tools)
    return tokenizer.encode_markup(_run(tokenizer, turns, True, _options(thinking)))


def _options(thinking: bool | None) -> dict[str, Any]:
    """The variables by which Qwen3's and MiniMind's templates are told whether to think."""
    return {} if thinking is None else {"enable_thinking": thinking, "open_thinking": thinking}


def _thinks(turn: Message) -> bool:
    return bool(turn.get("reasoning_content"))


def _safe_turns(conversation: Sequence[Message], tokenizer: Tokenizer, tools: list[Any] | str | None) -> list[Message]:
    """Normalised turns, none of which holds a marker that the template's text would turn into a control token."""
    turns = normalise(conversation, tools=tools)
    for turn in turns:
        said = turn["content"] + turn.get("reasoning_content", "")
        typed = next((token for token in tokenizer.control_ids if token in said), None)
        if typed is not None:
            raise UserError(f"a message contains the control token {typed}, which this chat template would obey")
    return turns


def _reason(count: int, what: str) -> str:
    return (
        f"this model's chat template cannot be trained on: with turn {count - 1} ({what}) it rewrites the turns "
        "before, so that what was generated is no prefix of what follows; cut the conversation before it, "
        "or use a template that appends only"
    )


def _run(tokenizer: Tokenizer, messages: list[Message], prompt: bool, options: dict[str, Any]) -> str:
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template, so conversations cannot be rendered with it")
    names = {key: value for key in ("bos_token", "eos_token", "pad_token") if (value := tokenizer.named_token(key))}
    tools = next((turn["tools"] for turn in messages if turn.get("tools")), None)
    try:
        template = _compiled(tokenizer.chat_template)
        return template.render(messages=messages, tools=tools, add_generation_prompt=prompt, **names, **options)
    except jinja2.TemplateError as error:
        raise UserError(f"this model's chat template refuses the conversation: {error}") from None


@cache
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    # Jinja's own filter escapes for HTML; Transformers replaces it like this.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)
