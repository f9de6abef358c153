"""One HTTP call to an inference server: JSON there, JSON back, every failure one line."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from cutaway.errors import UserError


class ServerError(UserError):
    """A call that failed; `code` is the server's HTTP status, 0 where no answer came at all."""

    def __init__(self, message: str, code: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.wait_s = code, wait_s


def post_json(url: str, body: dict[str, Any], *, api_key: str | None, seconds: float) -> Any:
    """What the server answers, None for an empty answer; `seconds` is the longest wait. Raises ServerError, whose
    `wait_s` is the pause that the server asks for (`Retry-After`)."""
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            said = answer.read()
            return json.loads(said) if said else None
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())
        asked = error.headers.get("Retry-After") or ""
        wait_s = float(asked) if asked.isdigit() else 0.0
        raise ServerError(f"{url}: HTTP {error.code}: {said[:300]}", error.code, wait_s) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerError(f"{url}: no answer: {error}") from None
