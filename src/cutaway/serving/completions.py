"""`/v1/completions`: text goes on."""

import time
from collections.abc import AsyncIterator
from typing import Any

from cutaway.generation.engine import Piece, Request
from cutaway.generation.generate import document_prompt
from cutaway.generation.stop import TextStream
from cutaway.serving.errors import ApiError, unsupported
from cutaway.serving.logprobs import completion_logprobs
from cutaway.serving.models import ServedModel
from cutaway.serving.respond import Usage, Watch, new_id
from cutaway.serving.sampling import engine_requests
from cutaway.serving.schemas import CompletionRequest

MAX_TOKENS = 16
"""Length where the request names none, as OpenAI's API has it."""


def prepare(model: ServedModel, body: CompletionRequest) -> list[Request]:
    """The engine's requests. ApiError for what cannot be served."""
    if body.echo:
        raise unsupported("echo", "echo")
    if body.suffix:
        raise unsupported("suffix", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of other than n", "best_of")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    prompts = _prompts(model, body.prompt)
    more = {} if body.logprobs is None else {"top_logprobs": body.logprobs}
    return engine_requests(model, body, prompts, body.max_tokens or MAX_TOKENS, **more)


def _prompts(model: ServedModel, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Text is the beginning of a document, ids are taken as they are."""
    listed: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
    if not listed:
        raise ApiError(400, "the prompt is empty", param="prompt")
    return [document_prompt(item, model.tokenizer) if isinstance(item, str) else item for item in listed]


class CompletionAnswer:
    """The texts for one request."""

    def __init__(self, model: ServedModel, body: CompletionRequest, requests: list[Request], watch: Watch) -> None:
        self._model, self._body, self._watch = model, body, watch
        count, n = len(requests), body.n or 1
        self._texts = [""] * count
        # A token's place is among all that was sampled: the text may be behind, since a stop string may cut it.
        self._streams, self._offsets = [TextStream(model.tokenizer) for _ in requests], [0] * count
        self._reasons: list[str | None] = [None] * count
        self._logprobs: list[dict[str, list[Any]]] = [{} for _ in requests]
        self._usage = Usage(count // n, n)
        self._head = {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": model.name
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The `text_completion` object."""
        async for number, _, logprobs in self._steps():
            for key, values in (logprobs or {}).items():
                self._logprobs[number].setdefault(key, []).extend(values)
        choices = [
            {"index": i, "text": text, "logprobs": self._logprobs[i] or None, "finish_reason": self._reasons[i]}
            for i, text in enumerate(self._texts)
        ]
        return self._head | {"choices": choices, "usage": self._usage.to_dict()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The same in parts, the counts in a last one if they are asked for."""
        options = self._body.stream_options
        counted = options is not None and options.include_usage
        async for number, text, logprobs in self._steps():
            reason = self._reasons[number]
            if text or logprobs or reason:
                choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
                yield self._head | {"choices": [choice]} | ({"usage": None} if counted else {})
        if counted:
            yield self._head | {"choices": [], "usage": self._usage.to_dict()}

    async def _steps(self) -> AsyncIterator[tuple[int, str, dict[str, list[Any]] | None]]:
        async for number, piece in self._watch.pieces():
            logprobs = self._entries(number, piece)
            self._texts[number] += piece.text
            if piece.completion is not None:
                self._reasons[number] = "stop" if piece.completion.finish_reason == "stop" else "length"
                self._usage.add(number, piece.completion)
            yield number, piece.text, logprobs

    def _entries(self, number: int, piece: Piece) -> dict[str, list[Any]] | None:
        if self._body.logprobs is None:
            return None
        offset = self._offsets[number]
        self._offsets[number] += sum(len(self._streams[number].push(token)) for token in piece.ids)
        return completion_logprobs(self._model.engine, piece, offset)
