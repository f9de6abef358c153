"""The chat page for everyone: languages, input methods, phones, keyboards, keys, errors, light and dark."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="the oracle extra is not installed")

from playwright.sync_api import expect

from cutaway.serving.app import ServerSettings, make_app
from cutaway.serving.models import Models
from page_helpers import CHINESE, CHINESE_ANSWER, GREETING, SUM, Chat, serve_learned
from serving_helpers import live

pytestmark = pytest.mark.slow


def test_the_language_of_the_browser_and_the_switch(open_chat: Callable[..., Chat]) -> None:
    for locale, code, word in [
        ("zh-TW", "zh-Hant", "新對話"),
        ("zh-CN", "zh-Hans", "新对话"),
        ("de-DE", "en", "New chat"),
    ]:
        chat = open_chat(locale=locale)
        assert chat.page.get_attribute("html", "lang") == code
        assert chat.page.inner_text("#new-chat") == word
    assert chat.ask(CHINESE) == CHINESE_ANSWER
    for code, word in [("zh-Hant", "重新回答"), ("zh-Hans", "重新回答"), ("en", "Answer again")]:
        chat.page.select_option("#language", code)
        assert chat.page.get_attribute("html", "lang") == code
        expect(chat.button(word)).to_be_visible()
        chat.reload()
        assert chat.page.get_attribute("html", "lang") == code
        assert chat.answer.locator(".body").inner_text() == CHINESE_ANSWER


def test_tools_are_told_in_the_language_of_the_page(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(locale="zh-TW")
    chat.page.route("**/cutaway/tools/run", lambda route: None)
    chat.choose_tool("calculator")
    assert "精確計算算式。" in (chat.page.text_content("#tools-menu") or "")
    chat.send(SUM)
    expect(chat.answer.locator(".card.running")).to_be_visible()
    chat.button("停止").click()
    expect(chat.answer.locator(".result pre")).to_have_text("已停止。")
    # The model reads it in its own words.
    assert "Error: stopped by the user" in chat.page.evaluate("JSON.stringify(localStorage)")


def test_chinese_sentences_are_said_as_they_end(chat: Chat) -> None:
    said = chat.page.evaluate(
        """async () => {
            const { speak } = await import("./speak.js");
            speak({ content: "好嗎？好！看；還沒" }, false);
            return document.getElementById("live").textContent;
        }"""
    )
    assert said == "好嗎？好！看；"


def test_enter_while_composing_chinese_does_not_send(chat: Chat) -> None:
    chat.page.focus("#question")
    session = chat.page.context.new_cdp_session(chat.page)
    session.send("Input.imeSetComposition", {"text": "ㄋㄧˇ", "selectionStart": 3, "selectionEnd": 3})
    chat.page.keyboard.press("Enter")
    assert not chat.sent() and not chat.answers.count()
    session.send("Input.insertText", {"text": CHINESE})
    # Safari's order: the composition has ended, and the key that ended it arrives with code 229.
    chat.page.evaluate(
        "document.getElementById('question').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true }))"
    )
    assert not chat.sent()
    chat.page.keyboard.press("Shift+Enter")
    assert not chat.sent() and chat.page.input_value("#question").endswith("\n")
    chat.page.keyboard.press("Enter")
    chat.wait()
    assert chat.sent()[-1]["messages"][-1]["content"].endswith(CHINESE)


def test_a_phone_has_no_sideways_scrolling_and_panels_that_cover(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = chat.page
    assert chat.overflow() <= 0
    chat.ask(GREETING)
    chat.choose_tool("calculator")
    chat.ask(SUM)
    chat.ask("long" * 60)
    assert chat.overflow() <= 0
    chat.answer.get_by_role("button", name="Token view").click()
    assert chat.overflow() <= 0
    for opener, panel in [("#sidebar-open", "#sidebar"), ("#settings-open", "#settings")]:
        expect(page.locator(panel)).to_be_hidden()
        page.click(opener)
        expect(page.locator(panel)).to_be_in_viewport()
        assert chat.overflow() <= 0 and page.evaluate("document.getElementById('main').inert")
        page.keyboard.press("Escape")
        expect(page.locator(panel)).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == opener[1:]


def test_an_api_key_is_asked_for_and_kept_in_the_tab(open_chat: Callable[..., Chat], learned: Path) -> None:
    settings = ServerSettings(api_keys=["sesame"])
    with live(make_app(Models([serve_learned(learned)]), settings)) as locked:
        chat = open_chat(locked.url, failing=True, locked=True)
        key = chat.page.locator("#key")
        expect(key).to_be_focused()
        expect(chat.page.get_by_role("alert")).to_contain_text("API key")
        for attempt in ("wrong", "sesame"):
            key.fill(attempt)
            with chat.page.expect_response("**/v1/models"):
                key.press("Enter")
        expect(chat.page.locator("#model option")).to_have_text(["learned"])
        assert not chat.page.get_by_role("alert").count()
        assert chat.ask(CHINESE) == CHINESE_ANSWER
        chat.reload()
        chat.button("New chat").click()
        assert chat.ask(CHINESE) == CHINESE_ANSWER
        assert "sesame" not in chat.page.evaluate("JSON.stringify(localStorage)")


def test_errors_are_told_in_words_and_can_be_tried_again(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(failing=True)
    page = chat.page
    page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.send(GREETING)
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("cannot be reached")
    busy = json.dumps({"error": {"message": "too many", "type": "x", "param": None, "code": "queue_full"}})
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, body=busy))
    chat.button("Try again").click()
    expect(problem).to_contain_text("busy")
    page.unroute("**/v1/chat/completions")
    chat.button("Try again").click()
    expect(chat.answer).to_contain_text("can I help?")
    chat.wait()
    assert not problem.count()
    chat.send("too long " * 2000)
    expect(problem).to_contain_text("no longer fits")
    page.select_option("#language", "zh-Hant")
    expect(problem).to_contain_text("上下文長度")


def test_light_and_dark_are_legible(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = chat.page.evaluate(ground)
    assert contrast_of(chat) >= 4.5
    chat.page.click("#theme")
    light = chat.page.evaluate(ground)
    assert chat.page.get_attribute("html", "data-theme") == "light" and light != dark
    assert contrast_of(chat) >= 4.5
    chat.reload()
    assert chat.page.evaluate(ground) == light
    chat.page.click("#theme")
    assert chat.page.evaluate(ground) == dark


def contrast_of(chat: Chat) -> float:
    """The lowest contrast of text with what it stands on, tokens of every probability included (WCAG 2's ratio)."""
    return float(
        chat.page.evaluate(
            """() => {
                const probe = document.getElementById("thread").appendChild(document.createElement("i"));
                const style = getComputedStyle(probe);
                const named = (name) => {
                    probe.style.color = `var(--${name})`;
                    return style.color;
                };
                const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
                // One colour over the other, as the browser paints them.
                const luminance = (colours) => colours
                    .map((colour) => {
                        canvas.fillStyle = colour;
                        canvas.fillRect(0, 0, 1, 1);
                        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
                    })
                    .at(-1)
                    .map((value) => value / 255)
                    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
                    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
                const ratio = (a, b) => {
                    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
                    return (high + 0.05) / (low + 0.05);
                };
                const pairs = ["ink", "soft", "accent"].flatMap((text) =>
                    ["ground", "panel", "raised"].map((under) => [text, under]));
                pairs.push(["on-accent", "accent"], ["ink", "wash"], ["danger", "danger-wash"]);
                const ratios = pairs.map(([text, under]) => ratio([named(text)], [named(under)]));
                const ground = named("ground");
                probe.style.color = "";
                for (let level = 0; level < 8; level++) {
                    for (const kind of ["token", "token bytes"]) {
                        probe.className = `${kind} p${level}`;
                        ratios.push(ratio([style.color], [ground, style.backgroundColor]));
                    }
                }
                probe.remove();
                return Math.min(...ratios);
            }"""
        )
    )


def test_a_button_that_is_hidden_leaves_the_focus_on_the_page(chat: Chat, slowly: None) -> None:
    page = chat.page
    page.fill("#question", GREETING)
    page.focus("#send")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#question")).to_be_focused()
    chat.wait()
    chat.button("Answer again").press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    chat.wait()
    expect(page.locator("#question")).to_be_focused()


def test_the_keyboard_reaches_everything_with_a_visible_focus(chat: Chat) -> None:
    chat.ask(GREETING)
    page = chat.page
    reached = []
    page.focus(".skip")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    const { activeElement: at } = document;
                    const seen = (element) => getComputedStyle(element).outlineStyle !== "none";
                    const visible = seen(at) || seen(at.parentElement) || at.id === "question";
                    return [at.id || at.getAttribute("aria-label") || at.textContent, visible];
                }"""
            )
        )
    names = [name for name, _ in reached]
    order = ["new-chat", GREETING, "language", "theme", "model", "settings-open", "Answer again", "Token view"]
    order += ["question", "thinking", "tools-button", "send"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    assert all(visible for name, visible in reached if name in order)
