"""The chat page in a real browser, in front of a real server: conversations."""

import json
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="the oracle extra is not installed")

from playwright.sync_api import expect

from cutaway.cli import chat as chat_cli
from cutaway.data.records import parse_record
from cutaway.generation.conversation import Conversation
from cutaway.generation.engine import Request
from cutaway.tokenization.messages import normalise
from cutaway.tools.standard import standard_toolbox
from page_helpers import (
    ATTACK,
    ATTACKED,
    BECAUSE,
    BEGINNING,
    BRIEF,
    BRIEF_ANSWER,
    CHINESE,
    CHINESE_ANSWER,
    COUNT,
    COUNTED,
    GREETING,
    SUM,
    SUMMED,
    THOUGHT,
    WHY,
    Chat,
    serve_learned,
)  # fmt: skip
from serving_helpers import Live, wait_until

pytestmark = pytest.mark.slow


def test_an_answer_comes_as_a_stream_and_as_markdown(chat: Chat, slowly: None) -> None:
    chat.send(GREETING)
    lengths = []
    while chat.page.locator("#stop").is_visible():
        lengths.append(len(chat.answer.inner_text()))
        time.sleep(0.05)
    assert len({length for length in lengths if length}) > 4
    body = chat.answer.locator(".body")
    assert body.locator("strong").inner_text() == "how"
    assert body.locator("li").all_inner_texts() == ["a list", "of code"]
    assert body.locator("pre").inner_text().strip() == "print(1)"
    assert "tokens/s" in chat.answer.locator(".stats").inner_text()
    assert chat.page.input_value("#question") == "" and chat.page.inner_text("#title") == GREETING
    # What a screen reader is told: the whole, in sentences.
    assert "can I help?" in chat.page.inner_text("#live").replace("**", "")


def test_stop_ends_the_generation_and_regenerate_replaces_the_answer(chat: Chat, server: Live, slowly: None) -> None:
    chat.send(COUNT)
    expect(chat.answer).to_contain_text("1 2 3")
    chat.button("Stop").click()
    wait_until(server.idle)
    part = chat.answer.locator(".body").inner_text()
    assert COUNTED.startswith(part) and len(part) < len(COUNTED)
    assert "Stopped." in chat.answer.inner_text()
    chat.button("Answer again").click()
    expect(chat.answer.locator(".body")).to_have_text(COUNTED)
    chat.wait()
    assert chat.answers.count() == 1 and "Stopped." not in chat.answer.inner_text()
    first, second = chat.sent()
    assert first["messages"] == second["messages"] == [{"role": "user", "content": COUNT}]


def test_thinking_is_folded_and_opens(chat: Chat) -> None:
    chat.page.select_option("#thinking", "on")
    assert chat.ask(WHY) == BECAUSE
    assert chat.sent()[-1]["chat_template_kwargs"] == {"open_thinking": True}
    thought = chat.answer.locator(".thought")
    expect(thought).to_be_hidden()
    chat.answer.get_by_text("Thoughts").click()
    expect(thought).to_have_text(THOUGHT)
    # It is sent back, so that the next prompt continues this one.
    chat.ask(WHY)
    assert chat.sent()[-1]["messages"][1] == {"role": "assistant", "content": BECAUSE, "reasoning_content": THOUGHT}


def test_a_tool_call_is_run_and_the_answer_goes_on(chat: Chat) -> None:
    chat.choose_tool("calculator")
    assert chat.ask(SUM) == SUMMED
    card = chat.answer.locator(".card")
    assert card.count() == 1 and "done" in card.inner_text()
    assert card.locator("dt, dd").all_inner_texts() == ["expression", "12*34+5"]
    assert card.locator(".result pre").inner_text() == "413"
    last = chat.sent()[-1]
    assert [tool["function"]["name"] for tool in last["tools"]] == ["calculator"]
    assert [turn["role"] for turn in last["messages"]] == ["user", "assistant", "tool"]
    assert last["messages"][2]["tool_call_id"] == last["messages"][1]["tool_calls"][0]["id"]
    chat.reload()
    assert chat.answer.locator(".card .result pre").inner_text() == "413"


def test_conversations_are_kept_renamed_exported_and_deleted(chat: Chat, learned: Path, tmp_path: Path) -> None:
    chat.choose_tool("calculator")
    chat.ask(SUM)
    chat.button("New chat").click()
    chat.page.click("#tools-button")
    chat.page.get_by_role("checkbox", name="calculator").uncheck()
    chat.page.keyboard.press("Escape")
    chat.ask(GREETING)
    entries = chat.page.locator("#conversation-list .open")
    assert entries.all_inner_texts() == [GREETING, SUM]
    chat.reload()
    assert chat.page.inner_text("#title") == GREETING and chat.answers.count() == 1
    entries.last.click()
    assert chat.answer.locator(".body").last.inner_text() == SUMMED

    def menu(item: str) -> None:
        chat.page.locator("#conversation-list li").filter(has=chat.page.locator("[aria-current]")).hover()
        chat.page.locator("#conversation-list li:has([aria-current]) .icon-button").click()
        chat.page.get_by_role("button", name=item).click()

    menu("Rename")
    chat.page.keyboard.type("Sums")
    chat.page.keyboard.press("Enter")
    assert entries.all_inner_texts() == [GREETING, "Sums"] and chat.page.inner_text("#title") == "Sums"
    with chat.page.expect_download() as download:
        menu("Export as training data")
    file = tmp_path / "out.jsonl"
    shutil.copy(download.value.path(), file)
    assert download.value.suggested_filename == "Sums.jsonl"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [turn["role"] for turn in record["conversations"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert record["conversations"][0]["tools"][0]["function"]["name"] == "calculator"
    parse_record(record, "sft")
    # The terminal saves the same.
    talk = Conversation(serve_learned(learned).engine, toolbox=standard_toolbox().only(["calculator"]))
    for _ in talk.ask(SUM, Request((), 400, temperature=0)):
        pass
    chat_cli._save(talk, str(tmp_path / "saved.jsonl"))
    saved = json.loads((tmp_path / "saved.jsonl").read_text(encoding="utf-8"))
    assert normalise(record["conversations"]) == normalise(saved["conversations"])
    menu("Delete")
    assert entries.all_inner_texts() == [GREETING] and chat.page.inner_text("#title") == "New chat"
    chat.button("Undo").click()
    assert sorted(entries.all_inner_texts()) == sorted([GREETING, "Sums"])
    chat.reload()
    assert sorted(entries.all_inner_texts()) == sorted([GREETING, "Sums"])


def test_nothing_that_a_model_writes_is_executed(chat: Chat) -> None:
    shown = chat.ask(ATTACK)
    assert "<script>window.hit=1</script>" in shown and "<style>" in shown
    assert chat.page.evaluate("window.hit") is None
    assert not chat.page.locator("#thread :is(script, img, iframe, style, [onerror], a[href^=javascript])").count()
    chat.reload()
    assert chat.page.evaluate("window.hit") is None and chat.page.locator("#sidebar").is_visible()
    # The second wall alone: HTML given to the sanitiser as if markdown had let it through.
    kept = chat.page.evaluate(
        """async (html) => {
            const { default: purify } = await import("./vendor/purify.es.mjs");
            const { POLICY } = await import("./markdown.js");
            const box = document.createElement("div");
            box.append(purify.sanitize(html, POLICY));
            return box.querySelectorAll("script, img, iframe, style, [href^=javascript]").length;
        }""",
        ATTACKED,
    )
    assert kept == 0
    # The third: the page cannot make HTML from a string at all, nor load from elsewhere.
    assert (
        chat.page.evaluate("() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name } }")
        == "TypeError"
    )
    chat.failing = True


def test_the_token_view_shows_probabilities_and_alternatives(chat: Chat) -> None:
    chat.page.select_option("#thinking", "on")
    chat.ask(WHY)
    chat.button("Token view").click()
    tokens = chat.answer.locator(".token")
    assert "".join(tokens.all_text_contents()).replace("↵", "").replace("</think>", "").endswith(BECAUSE)
    assert tokens.count() == chat.page.evaluate(
        "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.startsWith('cutaway.conversation.'))])"
        ".messages[1].tokens.length"
    )
    tip = chat.page.locator("#token-tip")
    tokens.nth(2).hover()
    expect(tip).to_be_visible()
    assert tip.locator("tr").count() == 5 and "%" in tip.inner_text()
    chat.page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    # One stop of the Tab key, arrows within.
    assert chat.answer.locator(".token[tabindex='0']").count() == 1
    tokens.first.focus()
    chat.page.keyboard.press("ArrowRight")
    assert tokens.nth(1).evaluate("(token) => token === document.activeElement")
    expect(tip).to_be_visible()
    described = chat.answer.locator("[aria-describedby=token-tip]")
    assert described.count() == 1 and described.evaluate("(token) => token === document.activeElement")
    chat.button("Token view").click()
    assert chat.answer.locator(".body").inner_text() == BECAUSE


def test_a_character_of_several_tokens_shows_once(chat: Chat) -> None:
    chat.ask(CHINESE)
    chat.button("Token view").click()
    shown = chat.answer.locator(".token:not(.bytes)").all_text_contents()
    assert "".join(shown) == CHINESE_ANSWER


def test_settings_go_into_the_request(chat: Chat) -> None:
    page = chat.page
    chat.button("Settings").click()
    assert page.get_attribute("#temperature", "placeholder") == "0"
    page.fill("#system", BRIEF)
    values = {"temperature": 0.3, "top_p": 0.85, "top_k": 40, "min_p": 0.02, "max_tokens": 300, "seed": 7}
    values |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    page.fill("#top_p", "3")
    page.press("#top_p", "Tab")
    assert page.get_attribute("#top_p", "aria-invalid") == "true"
    page.fill("#top_p", "0.85")
    page.uncheck("#probabilities")
    assert chat.ask(GREETING) == BRIEF_ANSWER
    sent = chat.sent()[-1]
    assert {name: sent[name] for name in values} == values
    assert sent["messages"][0] == {"role": "system", "content": BRIEF} and "logprobs" not in sent
    assert not chat.button("Token view").count()
    chat.button("Reset").click()
    chat.ask(GREETING)
    assert not values.keys() & chat.sent()[-1].keys()


def test_the_last_question_can_be_edited(chat: Chat) -> None:
    chat.ask(GREETING)
    chat.ask(COUNT)
    chat.page.locator(".question").last.hover()
    assert chat.button("Edit").count() == 1
    chat.button("Edit").click()
    area = chat.page.locator(".editor textarea")
    area.fill("nonsense")
    area.press("Escape")
    assert chat.page.locator(".bubble").all_inner_texts() == [GREETING, COUNT]
    chat.button("Edit").click()
    area.fill(CHINESE)
    area.press("Enter")
    chat.wait()
    assert chat.page.locator(".bubble").all_inner_texts() == [GREETING, CHINESE]
    assert [turn["content"] for turn in chat.sent()[-1]["messages"]][0::2] == [GREETING, CHINESE]


def test_an_answer_goes_on_while_another_conversation_is_shown(chat: Chat, slowly: None) -> None:
    chat.send(COUNT)
    expect(chat.answer).to_contain_text("1 2")
    chat.button("New chat").click()
    assert not chat.answers.count()
    chat.page.locator("#conversation-list .open").click()
    expect(chat.answer.locator(".body")).to_have_text(COUNTED)
    chat.wait()


def test_a_name_given_while_the_answer_is_written_stays(chat: Chat, slowly: None) -> None:
    chat.send(COUNT)
    expect(chat.answer).to_contain_text("1 2")
    chat.button("New chat").click()
    entry = chat.page.locator("#conversation-list li")
    entry.hover()
    entry.locator(".icon-button").click()
    chat.page.get_by_role("button", name="Rename").click()
    chat.page.keyboard.type("Numbers")
    chat.page.keyboard.press("Enter")
    entry.locator(".open").click()
    expect(chat.page.locator("#title")).to_have_text("Numbers")
    expect(chat.answer.locator(".body")).to_have_text(COUNTED)
    chat.wait()
    chat.reload()
    assert chat.page.inner_text("#title") == entry.locator(".open").inner_text() == "Numbers"


def test_leaving_in_the_middle_keeps_what_was_written(chat: Chat, server: Live, slowly: None) -> None:
    chat.send(COUNT)
    expect(chat.answer).to_contain_text("1 2 3")
    chat.reload()
    wait_until(server.idle)
    assert COUNTED.startswith(chat.answer.locator(".body").inner_text()) and chat.answer.locator(".note").count() == 1


def test_a_model_that_only_continues_text(chat: Chat) -> None:
    chat.page.select_option("#model", "base")
    assert "continues it" in chat.page.inner_text(".greeting")
    expect(chat.page.locator("#thinking")).to_be_hidden()
    expect(chat.page.locator("#tools-button")).to_be_hidden()
    assert chat.ask(BEGINNING)
    (sent,) = chat.sent("/v1/completions")
    assert sent["prompt"] == BEGINNING and sent["model"] == "base"
