"""`/v1/chat/completions`: messages to a prompt, and the answer as a message, whole or in chunks."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from cutaway.errors import UserError
from cutaway.generation.conversation import answer_prompt
from cutaway.generation.engine import Piece, Request
from cutaway.serving.answer import AnswerReader, Delta
from cutaway.serving.errors import ApiError, unsupported
from cutaway.serving.form import form_of_answer, shown_tools
from cutaway.serving.logprobs import chat_logprobs
from cutaway.serving.models import ServedModel
from cutaway.serving.respond import Usage, Watch, new_id
from cutaway.serving.sampling import engine_requests
from cutaway.serving.schemas import ChatMessage, ChatRequest
from cutaway.tokenization.messages import Message, normalise
from cutaway.tokenization.tokenizer import well_formed


@dataclass(frozen=True)
class Prepared:
    """A chat request as the engine takes it."""

    requests: list[Request]
    thinks: bool | None
    """What the prompt leaves of the thinking block: open, closed, or neither."""
    tools: bool
    """Whether tool calls are read back."""


def prepare(model: ServedModel, body: ChatRequest) -> Prepared:
    """Render, tokenise and check. ApiError for what cannot be served."""
    _refuse_unserved(model, body)
    tools = shown_tools(model, body)
    thinking = _thinking(body)
    if thinking is not None and not model.thinking:
        raise unsupported(f"thinking of the model {model.name}", "chat_template_kwargs")
    try:
        turns = normalise([_message(message) for message in _in_order(body.messages)], tools=tools)
        prompt = answer_prompt(turns, model.tokenizer, thinking)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    thinks = _opened(model, prompt, thinking)
    length = body.max_completion_tokens or body.max_tokens or model.max_new_tokens
    more: dict[str, Any] = {"top_logprobs": body.top_logprobs or 0} if body.logprobs else {}
    more["constraint"] = form_of_answer(model, body, tools, thinks is True)
    return Prepared(engine_requests(model, body, [prompt], length, **more), thinks, bool(tools))


def _refuse_unserved(model: ServedModel, body: ChatRequest) -> None:
    if not model.chat:
        raise ApiError(
            400,
            f"{model.name} was not fine-tuned on conversations: use /v1/completions",
            code="not_a_chat_model",
            param="model",
        )
    for name in ("audio", "prediction", "web_search_options", "functions", "function_call"):
        if getattr(body, name):
            raise unsupported(name, name)
    if "audio" in (body.modalities or ()):
        raise unsupported("audio", "modalities")
    if body.store:
        raise unsupported("store", "store")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")


def _thinking(body: ChatRequest) -> bool | None:
    settings = body.chat_template_kwargs
    named = (settings.enable_thinking, settings.open_thinking) if settings is not None else ()
    for value in named:
        if value is not None:
            return value
    return None if body.reasoning_effort is None else body.reasoning_effort not in ("none", "minimal")


def _in_order(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The results of tools in the order of their calls, by which alone a model tells them apart; one without an id
    answers the call at its place. ApiError 400 for an id that no call just before has."""
    ordered: list[ChatMessage] = []
    for are_results, group in groupby(messages, lambda message: message.role == "tool"):
        turns = list(group)
        if are_results:
            calls = [call.id for call in (ordered[-1].tool_calls or ())] if ordered else []
            placed = [(_place(result, calls, number), result) for number, result in enumerate(turns)]
            turns = [result for _, result in sorted(placed, key=lambda pair: pair[0])]
        ordered += turns
    return ordered


def _place(result: ChatMessage, calls: Sequence[str | None], number: int) -> int:
    if not result.tool_call_id:
        return number
    if result.tool_call_id not in calls:
        raise ApiError(400, f"tool_call_id {result.tool_call_id[:64]!r}: no call before has this id", param="messages")
    return calls.index(result.tool_call_id)


def _message(message: ChatMessage) -> Message:
    turn: Message = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, list):
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise ApiError(400, f"this model reads text, not {part.type[:50]!r}", param="messages")
        turn["content"] = "\n".join(part.text or "" for part in message.content)
    else:
        turn["content"] = message.content
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [call.function.model_dump() for call in message.tool_calls]
    return turn


def _opened(model: ServedModel, prompt: list[int], thinking: bool | None) -> bool | None:
    """Whether the prompt ends inside a thinking block. Templates from elsewhere may open one unasked."""
    opening = model.tokenizer.control_ids.get("<think>")
    tail = model.tokenizer.decode(prompt[-2:]).rstrip("\n")
    if opening is not None and opening in prompt[-2:] and tail.endswith("<think>"):
        return True
    return False if thinking is False else None


@dataclass
class _Choice:
    """One answer as it grows."""

    reader: AnswerReader
    calls: int = 0
    finish_reason: str | None = None
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def take(self, piece: Piece) -> Delta:
        """What a step adds to the message."""
        delta = self.reader.push(piece.ids, piece.text)
        if piece.completion is not None:
            last = self.reader.finish()
            delta.reasoning += last.reasoning
            delta.content += last.content
            delta.calls += last.calls
        self.calls += len(delta.calls)
        if piece.completion is not None:
            ended = "stop" if piece.completion.finish_reason == "stop" else "length"
            self.finish_reason = "tool_calls" if self.calls and ended == "stop" else ended
        return delta


class ChatAnswer:
    """The answers to one request."""

    def __init__(self, model: ServedModel, body: ChatRequest, prepared: Prepared, watch: Watch) -> None:
        self._model, self._body, self._watch = model, body, watch
        self._choices = [
            _Choice(AnswerReader(model.tokenizer, thinks=prepared.thinks, tools=prepared.tools))
            for _ in prepared.requests
        ]
        self._usage = Usage(1, len(self._choices))
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model.name}

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion` object."""
        async for number, piece, delta, calls in self._steps():
            choice = self._choices[number]
            choice.content.append(delta.content)
            choice.reasoning.append(delta.reasoning)
            choice.tool_calls += calls
            if self._body.logprobs:
                choice.logprobs += chat_logprobs(self._model.engine, piece)
        choices = [self._whole_choice(number, choice) for number, choice in enumerate(self._choices)]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage.to_dict()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The `chat.completion.chunk` objects, the counts in a last one if they are asked for."""
        for number in range(len(self._choices)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        async for number, piece, delta, calls in self._steps():
            choice = self._choices[number]
            entries = chat_logprobs(self._model.engine, piece) if self._body.logprobs else []
            if delta or entries:
                yield self._chunk(number, _parts(delta, calls, choice.calls), entries)
            if choice.finish_reason is not None:
                yield self._chunk(number, {}, finish_reason=choice.finish_reason)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage.to_dict()}

    async def _steps(self) -> AsyncIterator[tuple[int, Piece, Delta, list[dict[str, Any]]]]:
        async for number, piece in self._watch.pieces():
            choice = self._choices[number]
            delta = choice.take(piece)
            if piece.completion is not None:
                self._usage.add(number, piece.completion)
                self._usage.reasoning_tokens += choice.reader.reasoning_tokens
            yield number, piece, delta, [_call(call) for call in delta.calls]

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: list[dict[str, Any]] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        listed = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": listed, "finish_reason": finish_reason}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        options = self._body.stream_options
        return chunk | ({"usage": None} if options is not None and options.include_usage else {})

    def _whole_choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        content, reasoning = "".join(choice.content), "".join(choice.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if choice.tool_calls:
            message |= {"content": content or None, "tool_calls": choice.tool_calls}
        logprobs = {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}


def _parts(delta: Delta, calls: list[dict[str, Any]], made: int) -> dict[str, Any]:
    """A delta as the chunk has it; `made` counts the calls of the answer, those of this delta included."""
    parts: dict[str, Any] = {}
    if delta.reasoning:
        parts["reasoning_content"] = delta.reasoning
    if delta.content:
        parts["content"] = delta.content
    if calls:
        first = made - len(calls)
        parts["tool_calls"] = [{"index": first + i} | call for i, call in enumerate(calls)]
    return parts


def _call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = well_formed(json.dumps(call["arguments"], ensure_ascii=False))
    return {
        "id": new_id("call"),
        "type": "function",
        "function": {"name": well_formed(call["name"]), "arguments": arguments},
    }
