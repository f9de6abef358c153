"""A loopback HTTP server in place of an inference server: it keeps what it was asked and answers as a test says."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str, Any], tuple[int, Any]]
"""From path and body to the HTTP status and what is sent: JSON, or bytes as they are."""


@dataclass(frozen=True)
class Asked:
    """One call."""

    path: str
    body: Any
    key: str | None
    """Of the header `Authorization`."""


class StandIn(ThreadingHTTPServer):
    """The server; `reply` may be exchanged while it runs."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.asked.append(Asked(self.path, body, self.headers.get("Authorization")))
        code, answer = self.server.reply(self.path, body)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # whoever asked may not have waited
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def stand_in(reply: Reply) -> Iterator[StandIn]:
    """A server that runs as long as the block does."""
    server = StandIn(reply)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
