"""The thread that owns the engines, and how the event loop speaks to it.

torch works in one thread; asyncio, in another, only hands requests over and hands pieces out. Commands go to the thread
through a queue; the pieces of one step come back in one call of the event loop.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from cutaway.errors import UserError
from cutaway.generation.engine import Engine, Piece, Request
from cutaway.serving.errors import ApiError

log = logging.getLogger("cutaway")

Numbered = tuple[int, Piece]
"""Which request of the ticket, and what a step added to it."""


class Ticket:
    """Requests of one caller that go through the engine together. Made by `EngineThread.submit`."""

    def __init__(self, thread: "EngineThread", model: str, count: int) -> None:
        self._thread, self._model = thread, model
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Numbered | Exception] = asyncio.Queue()
        self.accepted: asyncio.Future[None] = self._loop.create_future()
        self.count = count
        self.open = set(range(count))
        """Requests that are not finished."""
        self.submitted = time.perf_counter()
        self.first_token: float | None = None
        """When the first token came, on the clock of `submitted`."""

    async def pieces(self) -> AsyncIterator[Numbered]:
        """What the steps add, until every request is finished. ApiError where the engine failed."""
        while self.open or not self._events.empty():
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        """Stop what is not finished. Does nothing the second time."""
        if self.open:
            self._thread.cancel(self)

    def _give(self, events: Sequence[Numbered]) -> None:
        now = time.perf_counter()
        for number, piece in events:
            if number not in self.open:
                continue
            self.first_token = self.first_token or now
            if piece.completion is not None:
                self.open.discard(number)
                self._thread.open[self._model] -= 1
            self._events.put_nowait((number, piece))

    def _fail(self, error: Exception) -> None:
        self._thread.open[self._model] -= len(self.open)
        self.open.clear()
        if not self.accepted.done():
            self.accepted.set_exception(error)
        else:
            self._events.put_nowait(error)


class EngineThread:
    """Steps every engine that has work. `submit` and `cancel` belong to the event loop's thread."""

    def __init__(self, engines: Mapping[str, Engine], max_waiting: int) -> None:
        self._engines = dict(engines)
        self.max_waiting = max_waiting
        """Requests that may wait for a slot of one engine; more are refused."""
        self.open = dict.fromkeys(engines, 0)
        """Requests of each model that are not finished."""
        self.steps = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._routes: dict[tuple[str, int], tuple[Ticket, int]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.alive = False
        """Whether requests are taken."""

    def start(self) -> None:
        """Begin to work."""
        self.alive = True
        self._thread.start()

    def stop(self) -> None:
        """End after the present step, and wait for that."""
        self._commands.put(None)
        self._thread.join()

    @property
    def routes(self) -> list[tuple[str, int]]:
        """Model and id of every request that the engines hold: none when nobody waits for anything."""
        return list(self._routes)

    async def submit(self, model: str, requests: Sequence[Request]) -> Ticket:
        """Queue requests, all or none. ApiError: 429 where too many wait, 400 where the engine refuses one,
        503 where it has stopped."""
        room = self._engines[model].cache.slots + self.max_waiting
        if len(requests) > room:
            raise ApiError(400, f"{len(requests)} answers are asked for, at most {room} can wait here", param="n")
        if self.open[model] + len(requests) > room:
            raise ApiError(
                429, "too many requests are waiting, try again later", code="queue_full", headers={"Retry-After": "1"}
            )
        ticket = Ticket(self, model, len(requests))
        self.open[model] += len(requests)
        self._commands.put(lambda: self._enter(ticket, model, requests))
        if not self.alive:
            # The thread may have looked into the queue for the last time: the request is refused here.
            self._obey(wait=False)
        try:
            await ticket.accepted
        except BaseException:
            ticket.cancel()
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop the unfinished requests of a ticket."""
        self.open[ticket._model] -= len(ticket.open)
        ticket.open.clear()
        self._commands.put(lambda: self._forget(ticket))

    def _run(self) -> None:
        try:
            while self._obey(wait=not any(engine.busy for engine in self._engines.values())):
                for model, engine in self._engines.items():
                    if engine.busy:
                        self._step(model, engine)
        except Exception:
            log.exception("the engine has stopped")
        finally:
            # Nobody may wait for a thread that is gone.
            self.alive = False
            for model in self._engines:
                self._fail_all(model, stopped())
            self._obey(wait=False)

    def _obey(self, wait: bool) -> bool:
        """Do the commands that have come; false when the thread is to end."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _enter(self, ticket: Ticket, model: str, requests: Sequence[Request]) -> None:
        engine, entered = self._engines[model], []
        try:
            if not self.alive:
                raise stopped()
            for number, request in enumerate(requests):
                entered.append(engine.submit(request))
                self._routes[model, entered[-1]] = (ticket, number)
        except Exception as error:
            for request_id in entered:
                engine.cancel(request_id)
                del self._routes[model, request_id]
            _tell(ticket, ticket._fail, _refusal(error))
            return
        _tell(ticket, _accept, ticket)

    def _forget(self, ticket: Ticket) -> None:
        for model, request_id in [key for key, (owner, _) in self._routes.items() if owner is ticket]:
            self._engines[model].cancel(request_id)
            del self._routes[model, request_id]

    def _step(self, model: str, engine: Engine) -> None:
        try:
            pieces = engine.step()
            engine.collect()
        except Exception as error:
            log.exception("the engine of %s failed", model)
            failed = self._fail_all(model, ApiError(500, f"the engine failed: {type(error).__name__}"))
            # Only now: after an error that stays with the device this fails, too, and the thread ends.
            for request_id in failed:
                engine.cancel(request_id)
            return
        self.steps += 1
        given: dict[Ticket, list[Numbered]] = {}
        for piece in pieces:
            route = self._routes.get((model, piece.id))
            if route is None:
                continue
            given.setdefault(route[0], []).append((route[1], piece))
            if piece.completion is not None:
                del self._routes[model, piece.id]
        for ticket, events in given.items():
            _tell(ticket, ticket._give, events)

    def _fail_all(self, model: str, error: ApiError) -> list[int]:
        """Tell all who wait for a model; gives back the ids that its engine still holds."""
        mine = {key: self._routes.pop(key)[0] for key in list(self._routes) if key[0] == model}
        for ticket in set(mine.values()):
            _tell(ticket, ticket._fail, error)
        return [request_id for _, request_id in mine]


def _accept(ticket: Ticket) -> None:
    if not ticket.accepted.done():
        ticket.accepted.set_result(None)


def stopped() -> ApiError:
    """For whoever asks an engine that is gone."""
    return ApiError(503, "the engine has stopped")


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, UserError):
        log.error("a request could not be entered", exc_info=error)
        return ApiError(500, f"the engine failed: {type(error).__name__}")
    code = "context_length_exceeded" if "context is full" in str(error) else None
    return ApiError(400, str(error), code=code)


def _tell(ticket: Ticket, function: Callable[..., None], *values: object) -> None:
    try:
        ticket._loop.call_soon_threadsafe(function, *values)
    except RuntimeError:  # the event loop has ended: nobody waits any more
        log.debug("an answer came after the end of its event loop")
