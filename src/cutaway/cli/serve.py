"""`cutaway serve`: an OpenAI-compatible API on one or more models, and the chat page."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

log = logging.getLogger("cutaway")


@dataclass(frozen=True)
class ServeFlags:
    """Serve a model over an API that OpenAI's clients speak, with a chat page at /. Ctrl-C ends it."""

    run: tyro.conf.Positional[str]
    """Run directory, or any model directory of the Llama or Qwen3 kind."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine, and then an API key should be set."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = None
    """Requests must bear this key; default: the environment's CUTAWAY_API_KEY, which other users cannot see."""
    name: str | None = None
    """Name of the model in the API; default: the name of the directory."""
    adapter: tuple[str, ...] = ()
    """Adapters on the model, as NAME=DIR: each is a model of its own in the API, and all share the base's weights."""
    slots: int = 16
    """Requests that run at a time, of each model."""
    max_waiting: int = 128
    """Requests that may wait for a slot; more get 429."""
    max_new_tokens: int = 512
    """Longest answer where a request names no length."""
    max_body_mb: float = 4.0
    """Largest request, in megabytes; a larger one gets 413."""
    cors_origin: tuple[str, ...] = ()
    """Origins of other pages that may call the API, such as https://example.org."""
    grace_seconds: int = 30
    """Time that running answers get to end after Ctrl-C or SIGTERM."""
    bf16: bool = False
    """Compute in bfloat16."""


def main(argv: Sequence[str]) -> int:
    """Load the models and serve until a signal comes."""
    flags = parse(ServeFlags, argv, prog="cutaway serve")
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"cutaway serve needs {' and '.join(missing)}: pip install 'cutaway[serve]'")
    _check(flags)
    import torch

    from cutaway.serving.app import ServerSettings, make_app
    from cutaway.serving.guard import LOOPBACK
    from cutaway.serving.models import Models, load_served
    from cutaway.serving.server import serve
    from cutaway.training.precision import pick_device

    dtype = torch.bfloat16 if flags.bf16 else None
    folder = Path(flags.run)
    name = flags.name or folder.resolve().name
    models = load_served(
        folder,
        name,
        pick_device(),
        slots=flags.slots,
        max_new_tokens=flags.max_new_tokens,
        dtype=dtype,
        adapters=_adapters(flags.adapter),
    )
    key = flags.api_key or os.environ.get("CUTAWAY_API_KEY")
    local = flags.host in ("127.0.0.1", "localhost", "::1")
    if not local and not key:
        log.warning("anybody who reaches %s can use this server: --api-key asks for a key", flags.host)
    settings = ServerSettings(
        api_keys=[key] if key else [],
        hosts=LOOPBACK if local else None,
        cors_origins=flags.cors_origin,
        max_waiting=flags.max_waiting,
        max_body=int(flags.max_body_mb * 1e6),
    )
    serve(make_app(Models(models), settings), flags.host, flags.port, flags.grace_seconds)
    return 0


def _check(flags: ServeFlags) -> None:
    """UserError for an impossible value."""
    for name, low, high in (
        ("port", 0, 65535),
        ("slots", 1, 4096),
        ("max_waiting", 0, 10**6),
        ("max_new_tokens", 1, 10**9),
    ):
        if not low <= getattr(flags, name) <= high:
            raise UserError(f"cutaway serve: --{name.replace('_', '-')} must be from {low} to {high}")
    if not 0 < flags.max_body_mb <= 1000:
        raise UserError("cutaway serve: --max-body-mb must be above 0 and at most 1000")


def _adapters(given: Sequence[str]) -> dict[str, Path]:
    """Directories by name. UserError for what is not NAME=DIR, and for a name given twice."""
    found: dict[str, Path] = {}
    for item in given:
        name, equals, directory = item.partition("=")
        if not (name and equals and directory) or name in found:
            raise UserError(f"cutaway serve: --adapter is {item!r}, must be NAME=DIR with a name of its own")
        found[name] = Path(directory)
    return found
