"""A browser, and a server whose model knows what the page's tests ask."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cutaway.generation.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from page_helpers import Chat
    from serving_helpers import Live


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import expect, sync_playwright

    from page_helpers import CHROMIUM, FLAGS

    if not CHROMIUM.exists():
        pytest.skip("no chromium here: `make outside` installs it")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from page_helpers import page_transcripts
    from serving_helpers import make_learned

    return make_learned(tmp_path_factory.mktemp("learned"), page_transcripts())


@pytest.fixture(scope="session")
def server(learned: Path) -> "Iterator[Live]":
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from cutaway.serving.app import make_app
    from cutaway.serving.models import Models
    from page_helpers import serve_learned
    from serving_helpers import live

    models = Models([serve_learned(learned), serve_learned(learned, "base", chat=False)])
    with live(make_app(models)) as running:
        yield running


@pytest.fixture
def open_chat(browser: "Browser", server: "Live") -> "Iterator[Callable[..., Chat]]":
    """Opens the page in a browser that has never been there. What must hold in every test is checked at its end: no
    error in the console, and no request to another host."""
    from page_helpers import Chat

    chats: list[Chat] = []

    def make(url: str = server.url, failing: bool = False, locked: bool = False, **options: Any) -> Chat:
        usual: dict[str, Any] = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}}
        chats.append(Chat(browser.new_context(**(usual | options)), url, failing, locked))
        return chats[-1]

    yield make
    for chat in chats:
        outside = [request.url for request in chat.requests if not request.url.startswith((chat.url, "blob:", "data:"))]
        chat.page.context.close()
        assert not outside
        assert chat.failing or not chat.errors


@pytest.fixture
def chat(open_chat: "Callable[..., Chat]") -> "Chat":
    return open_chat()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thirty tokens a second, so that there is time to do something while an answer is being written."""
    step = Engine.step

    def slow(self: Engine) -> Any:
        time.sleep(0.03)
        return step(self)

    monkeypatch.setattr(Engine, "step", slow)
