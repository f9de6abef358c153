import builtins
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data import scripts
from cutaway.data.scripts import (
    HAN,
    HANS,
    HANT,
    KANA,
    LATIN,
    OTHER,
    choose_script,
    convert_conversation,
    convert_document,
    count_scripts,
    parse_scripts,
)
from cutaway.errors import UserError

SIMPLIFIED, TRADITIONAL = "头发发展，皇后在后面，为了台湾。", "頭髮發展，皇后在後面，為了臺灣。"


def test_parse() -> None:
    assert parse_scripts("keep") == parse_scripts("keep:1") == {}
    assert parse_scripts("hant") == {"hant": 1.0}
    assert parse_scripts(" hant:0.2, hans:0.8") == {"hans": 0.8, "hant": 0.2}
    assert parse_scripts("hans:1,hant:0") == {"hans": 1.0}


@pytest.mark.parametrize(
    "spec", ["", "zh", "hans:", "hans:x", "hans:0.8", "hans:0.8,hant:0.3", "hans:-1,hant:2", "hans:nan", "hans,hans:0"]
)
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="scripts "):
        parse_scripts(spec)


def test_conversion_both_ways() -> None:
    pytest.importorskip("opencc")
    assert convert_document(SIMPLIFIED, {"hant": 1.0}, 0) == TRADITIONAL
    assert convert_document(TRADITIONAL, {"hans": 1.0}, 0) == SIMPLIFIED
    for text in (SIMPLIFIED, TRADITIONAL):
        for mix in ({"hans": 1.0}, {"hant": 1.0}):
            once = convert_document(text, mix, 0)
            assert convert_document(once, mix, 0) == once


@pytest.mark.parametrize("text", ["plain English", "日本語の文章はそのままにする。東京へ行きます", "", "1 + 1"])
def test_other_text_is_left_alone(text: str) -> None:
    assert convert_document(text, {"hans": 0.5, "hant": 0.5}, 3) == text


@given(st.integers(0, 9))
def test_shares_are_kept_and_depend_on_seed_and_content_only(seed: int) -> None:
    mix = parse_scripts("hans:0.7,hant:0.2,keep:0.1")
    texts = [f"文章{number}" for number in range(2000)]
    drawn = [choose_script(text, mix, seed) for text in texts]
    assert drawn == [choose_script(text, mix, seed) for text in reversed(texts)][::-1]
    assert all(abs(drawn.count(name) / 2000 - share) < 0.05 for name, share in mix.items())
    assert drawn != [choose_script(text, mix, seed + 1) for text in texts]


def test_conversations_are_converted_whole() -> None:
    pytest.importorskip("opencc")
    schema = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"长度": {}}}}}]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "", "tools": json.dumps(schema)},
        {"role": "user", "content": "头发多长？"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"长度": "头发"}}]},
        {"role": "assistant", "content": "很长", "reasoning_content": "后面"},
    ]
    before = copy.deepcopy(turns)
    converted = convert_conversation(turns, {"hant": 1.0}, 0)
    assert turns == before
    assert converted[1:] == [
        {"role": "user", "content": "頭髮多長？"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"長度": "頭髮"}}]},
        {"role": "assistant", "content": "很長", "reasoning_content": "後面"},
    ]
    assert json.loads(converted[0]["tools"])[0]["function"]["parameters"]["properties"] == {"長度": {}}
    assert convert_conversation(turns, {}, 0) is turns


def test_keep_does_not_need_opencc_and_others_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "opencc":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    scripts._converter.cache_clear()
    assert convert_document(SIMPLIFIED, parse_scripts("keep"), 0) == SIMPLIFIED
    with pytest.raises(UserError, match="pip install opencc"):
        convert_document(SIMPLIFIED, {"hant": 1.0}, 0)


def test_two_steps_are_opencc_s_own_conversion_for_taiwan() -> None:
    opencc = pytest.importorskip("opencc")
    text = "皇后后来头发发白，一只手只有干净的面条；台湾的台风过了三公里。\n里面的群众为了喝汤着急，关系系好。"
    converted = convert_document(text, {"hant": 1.0}, 0)
    assert converted == opencc.OpenCC("s2tw").convert(text)
    assert "皇后後來頭髮發白" in converted and "裡面的群眾為了" in converted


def test_classes_of_characters() -> None:
    counts = count_scripts("头頭天aZé1。のア！")
    assert {name: int(counts[name]) for name in (HANS, HANT, HAN, LATIN, KANA, OTHER)} == {
        HANS: 1,
        HANT: 1,
        HAN: 1,
        LATIN: 3,
        KANA: 2,
        OTHER: 3,
    }


def test_classes_agree_with_opencc_on_one_sided_characters() -> None:
    """Of the characters that OpenCC converts in one direction only, few are put on the wrong side."""
    opencc = pytest.importorskip("opencc")
    to_hans, to_hant = opencc.OpenCC("t2s"), opencc.OpenCC("s2t")
    han = [chr(code) for code in range(0x4E00, 0x9FA6)]
    wrong = right = 0
    for char in han:
        simplified, traditional = to_hant.convert(char) != char, to_hans.convert(char) != char
        if simplified != traditional:
            found = int(count_scripts(char).argmax())
            right += found == (HANS if simplified else HANT)
            wrong += found == (HANT if simplified else HANS)
    assert right > 3500 and wrong < 0.01 * right
