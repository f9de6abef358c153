"""The application: routes, and what stands around them.

For the page (`serving/page/`, served at `/` as it lies there: `index.html`, and whatever that names by relative paths):

- Nothing inline and nothing from elsewhere: the Content-Security-Policy (`guard.SECURITY_HEADERS`) allows scripts,
  styles, fonts and requests of this server only, no `eval`, no inline script, no `style` attribute in HTML.
- `GET /v1/models`: `data[i]` is OpenAI's card with `parent` (the base of an adapter or null) and
  `cutaway: {"chat", "thinking", "tools": bool, "context": int, "max_new_tokens": int, "sampling": {"temperature",
  "top_p", "top_k", "min_p", ...}}`. `chat` false: only `/v1/completions` serves it. `sampling` are its defaults.
- `POST /v1/chat/completions` with `stream: true`, `stream_options: {"include_usage": true}`, `logprobs: true` and
  `top_logprobs: N` (at most 20). A chunk's `choices[0].delta` has any of `reasoning_content`, `content` and
  `tool_calls` (`[{"index", "id", "type", "function": {"name", "arguments"}}]`, always whole calls, arguments a JSON
  string); `choices[0].logprobs.content` is `[{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob",
  "bytes"}]}]` of every token sampled in that step, tags and reasoning included, the ending token left out. Characters
  may span tokens: join `bytes`. The chunk before the last has `finish_reason` (`stop`, `length`, `tool_calls`), the
  last has `choices: []` and `usage` (`prompt_tokens`, `completion_tokens`, `completion_tokens_details.
  reasoning_tokens`); then `data: [DONE]`. `chat_template_kwargs: {"open_thinking": true}` opens a thinking block,
  false closes it, absent leaves it to the model. A failure within a stream is an event `{"error": {...}}`.
- To stop an answer, abort the request.
- A tool loop: send `tools`; run the calls; append the assistant's message with `tool_calls` as it came and one
  `{"role": "tool", "tool_call_id", "content"}` for each; ask again. `reasoning_content` may be sent back too.
- `GET /cutaway/tools`: `{"tools": [{"type": "function", "function": {"name", "description", "parameters"}}]}`, ready to
  be sent as `tools`. `POST /cutaway/tools/run` with `{"name", "arguments"}` (JSON string or object): `{"name", "text",
  "ok"}`; `text` is the content of the tool's message whether ok or not.
- With an API key, `/v1` and `/cutaway` answer 401 until `Authorization: Bearer KEY` is sent; the page itself is open.
- Errors are `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import contextlib
import datetime
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from cutaway import __version__
from cutaway.serving import chat, completions
from cutaway.serving.errors import ApiError
from cutaway.serving.guard import Guard
from cutaway.serving.metrics import Metrics
from cutaway.serving.models import Models, ServedModel
from cutaway.serving.respond import EventStream, Watch, json_response, unless_gone
from cutaway.serving.schemas import ChatRequest, CompletionRequest, ToolRun
from cutaway.serving.worker import EngineThread, stopped
from cutaway.tools.standard import standard_toolbox
from cutaway.tools.toolbox import Toolbox

log = logging.getLogger("cutaway")

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class ServerSettings:
    """How a server behaves, whatever it serves."""

    api_keys: Sequence[str] = ()
    """Any of these opens it; none: it is open to whoever reaches it."""
    hosts: Sequence[str] | None = None
    """Host names it answers to; None: all."""
    cors_origins: Sequence[str] = ()
    """Origins of other pages that may call it; none by default."""
    max_waiting: int = 128
    """Requests that may wait for a slot; more get 429."""
    max_body: int = 4_000_000
    """Largest body, in bytes; a larger one gets 413."""


def make_app(models: Models, settings: ServerSettings = ServerSettings()) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the engine thread (`app.state.thread`)."""
    thread, metrics = EngineThread(models.engines, settings.max_waiting), Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.stop)

    app = FastAPI(title="Cutaway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.thread, app.state.metrics = thread, metrics
    _add_answers(app, models, thread, metrics)
    _add_state(app, models, thread, metrics)
    _add_tools(app)
    _add_errors(app)
    # The last one added is the outermost: what is refused is counted too, and a page may read why.
    app.add_middleware(Guard, api_keys=settings.api_keys, hosts=settings.hosts, max_body=settings.max_body)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(_Counted, metrics=metrics)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


def _add_answers(app: FastAPI, models: Models, thread: EngineThread, metrics: Metrics) -> None:
    async def answer(http: Request, model: ServedModel, kind: Any, body: Any, prepared: Any) -> Response:
        requests = prepared if isinstance(prepared, list) else prepared.requests
        watch = Watch(metrics, model.name, await thread.submit(model.name, requests))
        made = kind(model, body, prepared, watch)
        if body.stream:
            return EventStream(made.chunks(), watch.close)
        whole = await unless_gone(http, made.whole(), watch.close)
        # 499 is what proxies note for a client that went away; nobody reads it.
        return Response(status_code=499) if whole is None else json_response(whole)

    @app.post("/v1/chat/completions", responses=ERRORS)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        model = models.find(body.model)
        prepared = await asyncio.to_thread(chat.prepare, model, body)
        return await answer(http, model, chat.ChatAnswer, body, prepared)

    @app.post("/v1/completions", responses=ERRORS)
    async def text_completions(body: CompletionRequest, http: Request) -> Response:
        model = models.find(body.model)
        prepared = await asyncio.to_thread(completions.prepare, model, body)
        return await answer(http, model, completions.CompletionAnswer, body, prepared)


def _add_state(app: FastAPI, models: Models, thread: EngineThread, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [model.card() for model in models]})

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def one_model(name: str) -> Response:
        return json_response(models.find(name).card())

    @app.get("/health", responses={503: {"description": "the engine has stopped"}})
    async def health() -> Response:
        if not thread.alive:
            return stopped().response()
        return json_response({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        slots = {name: engine.cache.slots for name, engine in models.engines.items()}
        running = {name: min(count, slots[name]) for name, count in thread.open.items()}
        waiting = {name: max(count - slots[name], 0) for name, count in thread.open.items()}
        held = {name: sum(model == name for model, _ in thread.routes) for name in slots}
        size = {name: engine.cache.num_bytes() for name, engine in models.engines.items()}
        gauges = {
            "cutaway_slots": ("Requests that can run at a time.", slots),
            "cutaway_requests_running": ("Requests in a slot.", running),
            "cutaway_requests_waiting": ("Requests that wait for a slot.", waiting),
            "cutaway_engine_requests": ("Requests that the engine holds.", held),
            "cutaway_kv_cache_bytes": ("Memory of the key-value cache.", size),
        }
        return Response(metrics.text(gauges), media_type="text/plain; version=0.0.4")


def _add_tools(app: FastAPI) -> None:
    boxes: dict[datetime.date, Toolbox] = {}

    def toolbox() -> Toolbox:
        """The standard tools with today's date; one box a day, since a box counts its overdue calls."""
        today = datetime.date.today()
        if today not in boxes:
            boxes.clear()
            boxes[today] = standard_toolbox(today)
        return boxes[today]

    @app.get("/cutaway/tools")
    async def list_tools() -> Response:
        return json_response({"tools": toolbox().schemas()})

    @app.post("/cutaway/tools/run", responses=ERRORS)
    async def run_tool(body: ToolRun) -> Response:
        if body.name not in toolbox():
            raise ApiError(404, f"no tool {body.name[:60]!r}", param="name")
        result = await asyncio.to_thread(toolbox().call, body.name, body.arguments)
        return json_response({"name": body.name, "text": result.text, "ok": result.ok})


def _add_errors(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        methods = {method for route in app.routes if getattr(route, "path", "") == request.url.path
                   for method in getattr(route, "methods", None) or ()}  # fmt: skip
        if methods and request.method not in methods:
            # The page at / takes every path, so the router cannot tell.
            allowed = ", ".join(sorted(methods))
            return ApiError(405, f"{request.method} is not possible here", headers={"Allow": allowed}).response()
        status = 404 if error.status_code == 405 else error.status_code
        message = f"there is nothing at {request.url.path[:200]}" if status == 404 else str(error.detail)
        return ApiError(status, message, code="not_found" if status == 404 else None).response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json").response()
        return ApiError(422, f"{place or 'body'}: {first['msg']}", param=place or None, code=first["type"]).response()

    async def failed(request: Request, error: Exception) -> Response:
        return ApiError(500, "the server failed; its log has the reason").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


class _Counted:
    """ASGI middleware: counts answers by path and status. Paths that are no route share a name."""

    PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/cutaway/tools", "/cutaway/tools/run"})

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.PATHS else "other"
                self._metrics.requests[path, str(message["status"])] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


_ERROR = {
    "description": "an error",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 413, 422, 429), _ERROR)
"""What a route may answer besides its success, for the OpenAPI description."""
