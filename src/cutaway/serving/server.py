"""Running the application: sockets, signals and the end."""

import logging
import socket

import uvicorn
from fastapi import FastAPI

from cutaway.errors import UserError

log = logging.getLogger("cutaway")


def serve(app: FastAPI, host: str, port: int, grace_seconds: int) -> None:
    """Serve until SIGINT or SIGTERM; running answers then get `grace_seconds` to end. UserError for a port in use."""
    listener = bind(host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace_seconds, server_header=False
    )
    where = f"[{host}]" if ":" in host else host
    log.info("serving on http://%s:%d (page), http://%s:%d/v1 (API)", *(where, listener.getsockname()[1]) * 2)
    uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener
