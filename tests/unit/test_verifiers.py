"""Verifiers: right answers in many renderings pass, perturbed ones do not, and nothing raises or hangs."""

import json
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.verifiers.calls import tool_calls
from cutaway.verifiers.form import format_json, language, length, regex_format
from cutaway.verifiers.json_schema import check_schema, mismatch, same
from cutaway.verifiers.numerals import read_chinese, read_number, write_chinese
from cutaway.verifiers.numeric import find_number, numeric
from cutaway.verifiers.regex import compile_pattern
from cutaway.verifiers.table import VERIFIERS, check_verifier, run_verifier
from cutaway.verifiers.text import choice, contains, contains_all, exact, refusal
from cutaway.verifiers.verdict import Verdict

WIDE = str.maketrans("0123456789.,-", "０１２３４５６７８９．，－")


@given(st.one_of(st.integers(0, 10**8), st.integers(0, 10**16 - 1)), st.booleans())
def test_chinese_numerals_round_trip(number, simplified):
    assert read_chinese(write_chinese(number, simplified=simplified)) == number
    assert read_chinese(write_chinese(-number, simplified=simplified)) == -number


def test_chinese_numerals_round_trip_below_ten_thousand():
    assert all(read_chinese(write_chinese(number)) == number for number in (*range(0, 12_000, 7), *range(1200)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("一百二十三", 123), ("两百", 200), ("兩萬五", 25000), ("一百二", 120), ("三千二", 3200), ("一百零二", 102),
     ("十", 10),
     ("二十", 20), ("一十五", 15), ("一百一十", 110), ("二〇二五", 2025), ("壹佰貳拾叁", 123),
     ("三億零四十", 300000040),
     ("三點一四", Fraction(314, 100)), ("负三点五", Fraction(-7, 2)), ("百分之五十", Fraction(1, 2)),
     ("三分之二", Fraction(2, 3)),
     ("一萬億", 10**12), ("零", 0)],
)  # fmt: skip
def test_chinese_numerals_as_written(text, wanted):
    assert read_chinese(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "百", "一二百", "十十", "三百千", "萬", "負負三", "零分之一", "三點", "一百二百", "萬萬", "蘋果"]
)
def test_what_is_no_numeral(text):
    assert read_chinese(text) is None


NUMBER_RENDERINGS = [
    "{n}", " {n}。", "答案是 {n}", "答案：{n} 元", "The answer is {n}.", "**{n}**", "#### {n}", "所以 \\boxed{{{n}}}",
    "3 + 4 = {n}", "先算 12 再算 5，答案為{n}，一定對。", "Answer: {n} apples, as 2 and 3 say.",
     "最終答案是{n}個", "共{n}隻",
    "1. first\n2. then\nfinal answer: ${n}$",
]  # fmt: skip


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(NUMBER_RENDERINGS),
    st.sampled_from(["plain", "comma", "wide", "zeros", "han"]),
)
def test_a_number_in_any_rendering(number, rendering, style):
    written = {
        "plain": str(number),
        "comma": f"{number:,}",
        "wide": str(number).translate(WIDE),
        "zeros": f"{number}.00",
        "han": write_chinese(number),
    }[style]
    if (
        style == "han"
        and re.search("[0-9]", rendering.replace("{n}", ""))
        and "是" not in rendering
        and "為" not in rendering
    ):
        return
    answer = rendering.format(n=written)
    assert numeric(answer, number).ok, answer
    for wrong in (number + 1, -number if number else 5, number * 10 + 7, Fraction(number, 2) + Fraction(1, 3)):
        assert not numeric(answer, str(wrong)).ok


@pytest.mark.parametrize(
    ("answer", "expected", "ok"),
    [("1/2", 0.5, True), ("\\boxed{\\frac{1}{3}}", "1/3", True), ("50%", 0.5, True), ("50%",
     "50%", True), ("50", "50%", True),
     ("50", 0.5, False), ("百分之五十", "50%", True), ("1.5萬", 15000, True), ("2e3", 2000, True), ("沒有", 3, False),
     ("我們一起走", 1, False), ("-5", 5, False), ("答案是−5", -5, True), ("3-5", 5, True), ("0.3333", "1/3", False),
     ("是 7，不是 8", 8, True), ("", 0, False), ("1/0", 0, False), ("####", 4, False), ("一百二十三元", 123, True),
     ("三分之一", "1/3", True), ("二十一起", 21, True), ("五十分", 50, True), ("萬一有三個", 3, True),
     ("一萬一", 11000, True)],
)  # fmt: skip
def test_numbers_of_other_kinds(answer, expected, ok):
    assert numeric(answer, expected).ok == ok


def test_tolerance():
    assert numeric("0.3333", "1/3", tolerance=1e-3).ok
    assert numeric("990", 1000, relative=0.01).ok and not numeric("989", 1000, relative=0.01).ok
    assert numeric("0.3", 0.1 + 0.2).ok


WORDS = ["橋頭麵包店", "Milla Quill", "三月", "café", "小王子", "麵包、茶", "3.5", "-4"]


@given(
    st.sampled_from(WORDS),
    st.sampled_from(["{w}", " {w} ", "「{w}」", "{w}。", "**{w}**", '"{w}"', "《{w}》", "{w}！\n"]),
)
def test_exact_in_any_rendering(word, rendering):
    for written in (word, word.upper(), word.translate(WIDE)):
        assert exact(rendering.format(w=written), word).ok
    others = [other for other in WORDS if other != word]
    assert not exact(rendering.format(w=word), others).ok
    assert not exact(rendering.format(w=word + "x"), word).ok and not exact(rendering.format(w="不" + word), word).ok


def test_exact_keeps_what_matters():
    assert not exact("-5", "5").ok and not exact("3.5", "35").ok and not exact("1/2", "12").ok
    assert exact("Ｍｉｌｌａ　 quill", "Milla Quill").ok and exact("在 三月", "在三月").ok and exact("a,b", "a， b").ok
    assert exact("b", ["a", "b"]).ok


def test_contains():
    assert contains("他住在橋頭。", "橋頭").ok and contains("x", ["y", "X"]).ok
    for answer in ("112", "12.5", "1,212", "0.12"):
        assert not contains(answer, "12").ok
    assert contains("有12個", "12").ok and contains("12.", "12").ok and not contains("category", "cat").ok
    assert not contains("Tom and Ann", "Tom", without=["Ann"]).ok
    verdict = contains_all("a b", ["a", "b", "c"])
    assert not verdict.ok and verdict.score == pytest.approx(2 / 3)
    assert contains_all("c b a", ["a", "b", "c"]).ok


@pytest.mark.parametrize(
    "answer", ["The prices are 12, 13 and 14 coins.", "12,13,14", "12，13，14", "12、13、14", "12, 13,14 coins"]
)
def test_a_list_of_numbers_is_no_number(answer):
    assert contains_all(answer, ["12", "13", "14"]).ok
    assert not contains(answer, ["2", "3", "1213", "121314"]).ok


def test_a_number_is_found_however_its_thousands_are_written():
    for answer in ("1,234", "1234 coins", "It is 1,234.0.", "１，２３４"):
        assert contains(answer, "1234").ok and contains(answer, "1,234").ok
        assert not contains(answer, ["1", "234", "123", "34"]).ok
    assert contains("1,234 coins, 13 coins", "13 coins").ok and contains("1,234 coins", "1234 coins").ok
    assert not contains("1,234", "7", without=["1234"]).ok and not contains("1,234,567", ["1,234", "234,567"]).ok
    assert contains("有一個，1,234 元", "1,234 元").ok and not contains("有一個", "1").ok


@given(
    st.sampled_from("ABCD"),
    st.sampled_from([
        "{x}", "({x})", "{x}.", "{x}. 因為如此", "答案是{x}", "答案：{x}。", "正確答案是 ({x})", "選{x}",
     "我選 {x}，因為 B 不對",
        "The answer is {x}.", "the correct answer is ({x}) because A is wrong", "**{x}**",
     "Answer: **{x}**", "\\boxed{{{x}}}",
        "（{x}）", "I would say {x}", "A and B are wrong.\nAnswer: {x}",
    ]),
)  # fmt: skip
def test_choice_in_any_rendering(letter, rendering):
    answer = rendering.format(x=letter)
    assert choice(answer, letter).ok, answer
    assert not any(choice(answer, other).ok for other in "ABCD" if other != letter)


@pytest.mark.parametrize("answer", ["", "A or B", "我不知道", "The answer is a dog", "ABCD", "E"])
def test_no_choice(answer):
    assert not any(choice(answer, letter).ok for letter in "ABCD")


def test_format_json():
    assert format_json(' {"a": 1} ', keys=["a"]).ok and format_json("```json\n[1]\n```").ok
    assert not format_json("```json\n[1]\n```", fenced=False).ok and not format_json('Here: {"a": 1}').ok
    assert format_json('{"a": 1}', keys=["a", "b"]).score == 0.5 and not format_json('{"a": NaN}').ok
    assert (
        not format_json('{"a": 1, "a": 2}').ok and not format_json("[" * 20_000).ok and not format_json("[" * 9000).ok
    )
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    assert format_json('{"n": 3}', schema=schema).ok and not format_json('{"n": 0}', schema=schema).ok
    assert format_json('{"n": 3.0}', expected={"n": 3}).ok and not format_json('{"n": true}', expected={"n": 1}).ok
    assert "not supported" in str(check_schema({"pattern": "a"})) and check_schema({"properties": {"a": 1}})
    assert mismatch([1, "x"], {"items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}) is None
    assert not same(True, 1) and same([1, {"a": 2.0}], [1.0, {"a": 2}])


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "\\d", "[a-c1-3]", "\\.", "中"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}",
     "*?"])).map(lambda p: f"({p[0]}){p[1]}"),
    ),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.long
@given(PATTERNS, st.text("abc123.中\n", max_size=8))
def test_patterns_mean_what_they_mean_in_re(pattern, text):
    assert compile_pattern(pattern).matches(text) == bool(re.fullmatch(pattern, text))
    assert compile_pattern(pattern, whole=False).matches(text) == bool(re.search(pattern, text))
    assert compile_pattern(f"^(?:{pattern})", whole=False, dot_all=True).matches(text) == bool(
        re.match(pattern, text, re.S)
    )


def test_a_pattern_takes_bounded_time():
    start = time.perf_counter()
    assert not regex_format("a" * 5000, "(a+)+b").ok
    assert not regex_format("a" * 5000, "(a|a)*(a|aa)*c").ok
    assert regex_format("<think>x\ny</think>答", "<think>.*</think>.+", dot_all=True).ok
    assert regex_format("x 2026-05-03 y", r"\d{4}-\d\d-\d\d", whole=False).ok and regex_format("a$", r"^a\$").ok
    assert time.perf_counter() - start < 3
    for pattern in (
        "(?=a)",
        "(a",
        "a)",
        "*",
        "a**",
        "\\1",
        "[b-a]",
        "a{3,2}",
        "a^b",
        "^a|b",
        "a" * 1001,
        "((a{99}){99}){99}",
        "[",
    ):
        with pytest.raises(UserError):
            compile_pattern(pattern)


def test_length_language_refusal():
    assert length("一二三 four five", 5, 5, "words").ok and length("a\n\nb", 2, 2, "lines").ok
    assert length("abcd", maximum=2).score == 0.5 and not length("", 1).ok
    hant, hans, en = "這間麵包店賣麵包和茶。", "这间面包店卖面包和茶。", "The bakery sells bread and tea."
    for text, right in ((hant, "zh-Hant"), (hans, "zh-Hans"), (en, "en")):
        for name in ("zh-Hant", "zh-Hans", "en"):
            assert language(text, name).ok == (name == right), (text, name)
    assert language("山水", "zh-Hant").ok and language("山水", "zh-Hans").ok and not language("12", "en").ok
    assert refusal("I don’t know.").ok and refusal("書上沒有提到這件事。").ok and not refusal("是三月。").ok
    assert refusal("是三月。", expected=False).ok and refusal("略過", phrases=["略過"]).ok


def render_calls(calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls)


CALLS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("ab"),
     "arguments": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2))}),
    max_size=4,
)  # fmt: skip


@given(CALLS, CALLS, st.randoms(use_true_random=False))
def test_tool_calls(calls, others, random):
    assert tool_calls("好的。\n" + render_calls(calls), calls).ok
    shuffled = random.sample(calls, len(calls))
    assert tool_calls(render_calls(shuffled), calls, ordered=False).ok
    assert tool_calls(render_calls(others), calls).ok == (calls == others)
    key = [sorted(json.dumps(call, sort_keys=True) for call in some) for some in (calls, others)]
    assert tool_calls(render_calls(others), calls, ordered=False).ok == (key[0] == key[1])
    assert not tool_calls(render_calls([*calls, {"name": "c", "arguments": {}}]), calls).ok


def test_tool_calls_of_other_kinds():
    call = {"name": "calculator", "arguments": {"expression": "3+4"}}
    assert tool_calls(render_calls([{"name": "calculator", "arguments": {"expression": "３ + 4"}}]), [call]).ok
    assert not tool_calls(render_calls([{"name": "calculator", "arguments": {"expression": "3-4"}}]), [call]).ok
    more = render_calls([{"name": "calculator", "arguments": {"expression": "3+4", "digits": 2}}])
    assert not tool_calls(more, [call]).ok and tool_calls(more, [call], arguments="subset").ok
    assert tool_calls(more, [{"name": "calculator"}]).ok and tool_calls("7", []).ok
    for broken in ("<tool_call>{", "<tool_call>\n{]\n</tool_call>", "</tool_call>", "<tool_call>{}</tool_call>"):
        assert not tool_calls(broken, [call]).ok and not tool_calls(broken, []).ok


GOOD = {
    "exact": {"expected": "x"}, "numeric": {"expected": 3}, "choice": {"expected": "B"},
     "contains": {"expected": ["x"]},
    "contains_all": {"expected": ["x"]}, "format_json": {"keys": ["a"]},
     "regex_format": {"pattern": "a+"}, "length": {"maximum": 9},
    "language": {"expected": "zh-Hant"}, "refusal": {}, "tool_calls": {"calls": [{"name": "a"}]},
}  # fmt: skip


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_no_verifier_raises_on_any_answer(answer):
    assert GOOD.keys() == VERIFIERS.keys()
    for name, args in GOOD.items():
        verdict = run_verifier({"name": name, "args": args}, answer)
        assert not verdict.raised, verdict
        assert 0 <= verdict.score <= 1 and verdict.ok == (verdict.score == 1) and verdict.reason


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [("exact", {}, "'expected' is missing"), ("exact", {"expected": ""},
     "at least one text"), ("exact", {"expected": 3}, "string"),
     ("numeric", {"expected": "many"}, "must be a number"), ("numeric", {"expected": 1, "tolerance": -1}, "negative"),
     ("choice", {"expected": "E"}, "one letter"), ("regex_format", {"pattern": "("},
     "pattern"), ("length", {"minimum": 3, "maximum": 2}, "maximum"),
     ("language", {"expected": "fr"}, "one of"), ("refusal", {"x": 1}, "unknown"),
     ("format_json", {"schema": {"$ref": "x"}}, "supported"),
     ("tool_calls", {"calls": [{}]}, "name"), ("nothing", {}, "no verifier")],
)  # fmt: skip
def test_check_verifier(name, args, why):
    assert why in str(check_verifier({"name": name, "args": args}))


def test_check_and_run():
    assert all(check_verifier({"name": name, "args": args}) is None for name, args in GOOD.items())
    for spec in (None, {}, {"name": "exact", "args": 3}, {"name": "exact", "arg": {}}):
        assert check_verifier(spec)
    with pytest.raises(UserError):
        run_verifier({"name": "nothing"}, "x")

    def broken(answer: str) -> Verdict:
        raise ZeroDivisionError("oh")

    verdict = run_verifier({"name": "broken"}, "x", {**VERIFIERS, "broken": broken})
    assert verdict.raised and not verdict.ok and "oh" in verdict.reason
    assert "oh" in str(check_verifier({"name": "broken"}, {"broken": broken}))


@given(st.text(max_size=200))
def test_find_number_never_raises(text):
    find_number(text)
    read_number(text)


@pytest.mark.long
def test_long_answers_take_bounded_time():
    start = time.perf_counter()
    for text in (
        "9" * 10**6,
        "1," * 10**5,
        "一" * 10**5,
        "答案是" * 10**4,
        "\\boxed{" * 10**4,
        "選" * 10**5,
        "1/" * 10**5,
    ):
        for name, args in GOOD.items():
            assert not run_verifier({"name": name, "args": args}, text).raised
    assert time.perf_counter() - start < 8
