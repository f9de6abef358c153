"""What every request passes first: the host's name, the API key, the size of the body; and the headers that go back."""

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serving.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
KEYED_PATHS = ("/v1", "/cutaway", "/metrics", "/openapi.json")
"""Where a key is asked for; the page itself and `/health` are open."""

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, api_keys: Sequence[str] = (), hosts: Sequence[str] | None = None, max_body: int
    ) -> None:
        """`hosts`: names under which the server may be called, None for any. A page elsewhere can make a name of its
        own point to this machine; its requests would then count as the server's own."""
        self._app, self._hosts, self._max_body = app, hosts, max_body
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the application where a request may not pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        try:
            self._check(scope)
            body = await self._read(receive)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send_with_headers)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, None where the client went away. ApiError 413 as soon as it is too large."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._max_body:
                raise _too_large(self._max_body)
        return b"".join(parts)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[: host.index("]") + 1] if "]" in host else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            raise ApiError(403, f"this server is not called {name[:100]!r}", code="unknown_host")
        path = scope["path"]
        guarded = any(path == root or path.startswith(root + "/") for root in KEYED_PATHS)
        if self._keys and guarded and scope["method"] != "OPTIONS":
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            fits = [hmac.compare_digest(given.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(fits):
                raise ApiError(
                    401,
                    "no valid API key: send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._max_body:
            raise _too_large(self._max_body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` as it was before the body was read."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return unread.pop() if unread else await receive()

    return again


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")
