"""A browser on the chat page, and what the model behind it has learnt by heart."""

from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Request

from cutaway.generation.engine import Engine
from cutaway.generation.sampling import Sampling
from cutaway.model.weights import load_model
from cutaway.serving.models import ServedModel
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.tools.standard import standard_toolbox
from serving_helpers import Transcripts

CHROMIUM = Path("/usr/bin/chromium")
# Without the switches for its background work, Chromium calls hosts of its own at every start.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

GREETING, GREETED = "Hello!", "Hello, **how** can I help?\n\n- a list\n- of `code`\n\n```python\nprint(1)\n```"
CHINESE, CHINESE_ANSWER = "你好", "你好！有什麼事嗎？"
COUNT, COUNTED = "Count.", " ".join(str(number) for number in range(1, 31))
WHY, THOUGHT, BECAUSE = "Why?", "They ask why.\nI do not know.", "Because."
SUM, EXPRESSION, SUMMED = "What is 12 * 34 + 5?", "12*34+5", "It is 413."
BRIEF, BRIEF_ANSWER = "Be brief.", "Hi."
ATTACK = "Attack!"
ATTACKED = (
    "<script>window.hit=1</script> <img src=x onerror=window.hit=2> ![a](https://outside.example/a.png) "
    "[b](javascript:window.hit=3) <a href=javascript:window.hit=4>c</a> <iframe src=https://outside.example></iframe>"
    "<style>body{display:none}</style>"
)
BEGINNING = "Once"


def said(*turns: str) -> list[Message]:
    """Questions and answers in turn."""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": turn} for i, turn in enumerate(turns)]


def page_transcripts() -> Transcripts:
    """What the page asks in the tests."""
    thought = said(WHY, BECAUSE)
    thought[1]["reasoning_content"] = THOUGHT
    call = {"name": "calculator", "arguments": {"expression": EXPRESSION}}
    loop: list[Message] = [
        {"role": "system", "content": "", "tools": standard_toolbox().only(["calculator"]).schemas()},
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "413"},
        {"role": "assistant", "content": SUMMED},
    ]
    brief: list[Message] = [{"role": "system", "content": BRIEF}, *said(GREETING, BRIEF_ANSWER)]
    plain = [said(GREETING, GREETED), said(CHINESE, CHINESE_ANSWER), said(COUNT, COUNTED), said(ATTACK, ATTACKED)]
    return [(loop, None), (thought, True), *((turns, None) for turns in [brief, *plain])]


def serve_learned(folder: Path, name: str = "learned", chat: bool = True) -> ServedModel:
    """The model of these transcripts; it always takes the likeliest token."""
    engine = Engine(load_model(folder).eval(), Tokenizer.load(folder), slots=4)
    return ServedModel(name, engine, chat, Sampling(temperature=0.0), max_new_tokens=400)


class Chat:
    """What a user does and sees on the page."""

    def __init__(self, context: BrowserContext, url: str, failing: bool = False, locked: bool = False) -> None:
        """`failing`: the test makes requests fail, which the browser notes in its console; `locked`: it needs a key."""
        self.url, self.failing = url, failing
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        context.on("request", lambda request: self.requests.append(request))
        self.page.goto(url)
        if not locked:
            self.page.wait_for_selector("#model option", state="attached")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("#model option", state="attached")

    def send(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def wait(self) -> None:
        """Until nothing is being written."""
        self.page.wait_for_selector("#send", state="visible")
        assert not self.page.locator("[aria-busy=true]").count()

    def ask(self, text: str) -> str:
        """The text of the answer to a question."""
        self.send(text)
        self.wait()
        return self.answer.locator(".body").last.inner_text()

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answer")

    @property
    def answer(self) -> Locator:
        """The newest one."""
        return self.answers.last

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def choose_tool(self, name: str) -> None:
        self.page.click("#tools-button")
        self.page.get_by_role("checkbox", name=name).check()
        self.page.keyboard.press("Escape")

    def sent(self, path: str = "/v1/chat/completions") -> list[Any]:
        """Bodies of the requests so far."""
        return [request.post_data_json for request in self.requests if request.url.endswith(path)]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
