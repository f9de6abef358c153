"""From the pieces of a ticket to what goes over the wire: one JSON object, or server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cutaway.generation.engine import Completion
from cutaway.serving.errors import ApiError
from cutaway.serving.metrics import Metrics
from cutaway.serving.worker import Numbered, Ticket
from cutaway.tokenization.tokenizer import well_formed

Result = TypeVar("Result")


def encode(value: Any) -> bytes:
    """JSON in UTF-8. A model can write half of a surrogate pair in a tool call; it becomes U+FFFD."""
    return well_formed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)).encode()


def json_response(value: Any) -> Response:
    """An answer in one object."""
    return Response(encode(value), media_type="application/json")


@dataclass
class Usage:
    """Token counts of a ticket. The prompts of n samples are one prompt."""

    prompts: int
    n: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, number: int, completion: Completion) -> None:
        """Count what request `number` of the ticket has used."""
        if number % self.n == 0:
            self.prompt_tokens += len(completion.prompt_ids)
            self.cached_tokens += completion.reused
        self.completion_tokens += len(completion.ids)

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        total = self.prompt_tokens + self.completion_tokens
        usage: dict[str, Any] = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        details = {
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
        return usage | {"total_tokens": total} | details


@dataclass
class Watch:
    """The metrics of a ticket, noted whether it ends or is abandoned."""

    metrics: Metrics
    model: str
    ticket: Ticket
    tokens: int = 0

    async def pieces(self) -> AsyncIterator[Numbered]:
        """The ticket's pieces, counted."""
        async for number, piece in self.ticket.pieces():
            self.tokens += len(piece.ids)
            self.metrics.generated_tokens[self.model] += len(piece.ids)
            if piece.completion is not None:
                reason = piece.completion.finish_reason
                self.metrics.finished[self.model, reason] += 1
                self.metrics.prompt_tokens[self.model] += len(piece.completion.prompt_ids)
            yield number, piece

    def close(self) -> None:
        """Cancel what is still open, and note the times."""
        ticket, now = self.ticket, time.perf_counter()
        if ticket.open:
            self.metrics.finished[self.model, "cancelled"] += len(ticket.open)
        ticket.cancel()
        if ticket.first_token is not None:
            self.metrics.first_token.observe(ticket.first_token - ticket.submitted)
            self.metrics.duration.observe(now - ticket.submitted)
            if (steps := self.tokens / ticket.count - 1) > 0:
                self.metrics.per_token.observe((now - ticket.first_token) / steps)


class EventStream(StreamingResponse):
    """Server-sent events. `close` runs however the response ends, a client that went away included."""

    def __init__(self, events: AsyncIterator[Any], close: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(events), media_type="text/event-stream", headers=headers)
        self._close = close

    async def _lines(self, events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield b"data: " + encode(event) + b"\n\n"
        except ApiError as error:
            yield b"data: " + encode(error.body) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def unless_gone(request: HttpRequest, work: Awaitable[Result], close: Callable[[], None]) -> Result | None:
    """The result of `work`; None, and `work` is dropped, where the client goes away first. `close` runs in any case."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await doing if doing.done() else None
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)
        close()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def new_id(prefix: str) -> str:
    """A name that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex}"
