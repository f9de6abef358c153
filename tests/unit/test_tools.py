"""Schemas from signatures, and a toolbox that answers whatever it is asked."""

import datetime
import json
import math
import re
import threading
import time
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.tools.calendar import add_days, days_between, read_date, weekday
from cutaway.tools.schema import ToolError, make_tool, tool_schema
from cutaway.tools.standard import standard_toolbox
from cutaway.tools.toolbox import Toolbox
from cutaway.tools.units import unit_convert
from cutaway.verifiers.json_schema import check_schema, mismatch


def order(
    item: str, count: int = 1, price: float | None = None, size: Literal["s", "l"] = "s", tags: list[str] | None = None,
    *, gift: bool = False, note: Optional[str] = None,  # noqa: UP045
) -> dict[str, Any]:  # fmt: skip
    """Order something
    from a shop.

    Longer text.

    Args:
        item: What to order,
            on two lines.
        count (int): How many: one or more.

    Returns:
        The order.
    """
    return {"item": item, "count": count, "price": price, "size": size, "tags": tags, "gift": gift, "note": note}


def test_schema_of_a_function():
    schema = tool_schema(order)
    assert schema["type"] == "function"
    function = schema["function"]
    assert function["name"] == "order" and function["description"] == "Order something from a shop. Longer text."
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "item": {"type": "string", "description": "What to order, on two lines."},
            "count": {"type": "integer", "description": "How many: one or more.", "default": 1},
            "price": {"type": ["number", "null"]},
            "size": {"type": "string", "enum": ["s", "l"], "default": "s"},
            "tags": {"type": ["array", "null"], "items": {"type": "string"}},
            "gift": {"type": "boolean", "default": False},
            "note": {"type": ["string", "null"]},
        },
        "required": ["item"],
    }
    assert check_schema(function["parameters"]) is None


def test_functions_that_cannot_be_tools():
    def untyped(x):
        """No type."""

    def many(*numbers: int) -> int:
        """Many."""
        return 0

    def strange(x: complex) -> str:
        """Complex."""
        return ""

    async def later(x: int) -> int:
        """Later."""
        return x

    def documented(x: int) -> int:
        """Text.

        Args:
            y: Not there.
        """
        return x

    for function in (untyped, many, strange, later, documented, lambda: 0):
        with pytest.raises(UserError):
            make_tool(function)
    with pytest.raises(UserError, match="two tools"):
        Toolbox([order, order])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [({}, "'item' is missing"), ({"item": 3}, "arguments.item must be a string, is an integer"),
     ({"item": "x", "colour": "red"}, "'colour' is unknown"), ({"item": "x", "count": "3"}, "an integer"),
     ({"item": "x", "count": 1.5}, "an integer"), ({"item": "x", "count": True}, "is true or false"),
     ({"item": "x", "size": "m"}, "one of 's', 'l'"), ({"item": "x", "tags": ["a", 1]}, r"tags\[1\]"),
     ({"item": "x", "price": float("nan")}, "finite"), ({"item": "x", "price": 10**400}, "too large"),
     ("{", "not valid JSON"), ("[1]", "must be an object"), ("[" * 10_000,
     "nested|valid JSON"), (5, "must be an object"),
     ('{"item": "x", "count": 1' + "0" * 5000 + "}", "JSON"), ("x" * 30_000, "longer"), ({1: 2}, "must be an object")],
)  # fmt: skip
def test_unfit_arguments_are_an_observation(arguments, why):
    result = Toolbox([order]).call("order", arguments)
    assert not result.ok
    assert result.text.startswith("Error: ")
    assert re.search(why, result.text), result.text


def test_arguments_take_the_declared_types():
    result = Toolbox([order]).call("order", '{"item": "x", "count": 3.0, "price": 3}')
    assert result.ok
    assert result.text == (
        '{"count": 3, "gift": false, "item": "x", "note": null, "price": 3.0, "size": "s", "tags": null}'
    )
    assert Toolbox([order]).call("order", {"item": "x", "price": None}).ok


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["item", "count", "price", "size", "tags", "gift", "note", "other"]), VALUES))
def test_a_call_is_refused_exactly_when_the_arguments_do_not_fit(arguments):
    box = Toolbox([order])
    parameters = {**box.schemas()[0]["function"]["parameters"], "additionalProperties": False}
    result = box.call("order", arguments)
    fits = mismatch(arguments, parameters) is None
    assert result.ok == fits or "too large" in result.text
    count, price, tags = (arguments.get(key) for key in ("count", "price", "tags"))
    by_hand = [
        isinstance(arguments.get("item"), str),
        "other" not in arguments,
        "count" not in arguments or (is_real(count) and count == int(count)),
        price is None or is_real(price),
        arguments.get("size", "s") in ("s", "l"),
        tags is None or (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)),
        isinstance(arguments.get("gift", True), bool),
        isinstance(arguments.get("note"), (str, type(None))),
    ]
    assert fits == all(by_hand)


def is_real(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@given(st.text(max_size=20), st.one_of(VALUES, st.text(max_size=60)))
def test_a_call_never_raises(name, arguments):
    box = standard_toolbox()
    for wanted in (name, "calculator", "add_days"):
        result = box.call(wanted, arguments)
        assert isinstance(result.text, str) and len(result.text) <= box.max_characters
        result.text.encode("utf-8")


def test_tools_that_misbehave():
    release = threading.Event()

    def hang() -> str:
        """Wait."""
        release.wait(10)
        return "late"

    def fail() -> str:
        """Fail."""
        raise KeyError("x")

    def leave() -> str:
        """Exit."""
        raise SystemExit(3)

    def refuse() -> str:
        """Refuse."""
        raise ToolError("not today")

    def long() -> str:
        """Much text."""
        return "長" * 10_000

    def broken() -> list[float]:
        """Not JSON."""
        return [float("nan")]

    def half() -> str:
        """Half a surrogate pair."""
        return "a\ud800"

    box = Toolbox([hang, fail, leave, refuse, long, broken, half], seconds=0.1, max_characters=200, max_running=2)
    start = time.perf_counter()
    assert "longer than 0.1 seconds" in box.call("hang").text
    results = []
    other = threading.Thread(target=lambda: results.append(box.call("hang")))
    other.start()
    other.join()
    assert "longer than" in results[0].text
    assert "still running" in box.call("refuse").text
    assert time.perf_counter() - start < 5
    release.set()
    for _ in range(100):
        if "still running" not in box.call("refuse").text:
            break
        time.sleep(0.02)
    assert box.call("refuse").text == "Error: not today"
    assert box.call("fail").text == "Error: fail failed: KeyError: 'x'"
    assert not box.call("leave").ok and not box.call("broken").ok
    result = box.call("long")
    assert result.ok and len(result.text) == 200 and result.text.endswith("(10000 characters, cut)")
    assert box.call("half").text == "a?"
    assert "no tool 'nothing'" in box.call("nothing").text


def test_toolbox_is_a_set_of_tools():
    box = standard_toolbox(datetime.date(2026, 5, 3), [order], seconds=2)
    assert "order" in box and "current_date" in box and len(box) == 7 and box.call("current_date").text == "2026-05-03"
    assert [tool.name for tool in box.only(["order", "calculator"])] == ["order", "calculator"]
    assert "current_date" not in standard_toolbox()
    assert json.loads(json.dumps(box.schemas())) == box.schemas()
    with pytest.raises(UserError):
        box.only(["x"])


def test_calculator_as_a_tool():
    box = standard_toolbox()
    assert box.call("calculator", {"expression": "（3＋4）×5"}).text == "35"
    result = box.call("calculator", '{"expression": "9**9**9"}')
    assert not result.ok and "too large" in result.text


@given(st.dates(), st.integers(-10_000, 10_000))
def test_calendar_agrees_with_datetime(day, days):
    text = day.isoformat()
    assert weekday(text) == day.strftime("%A")
    assert weekday(f"{day.year:04}年{day.month}月{day.day}日", "zh") == "星期" + "一二三四五六日"[day.weekday()]
    try:
        wanted = day + datetime.timedelta(days)
    except OverflowError:
        return
    assert add_days(text, days) == wanted.isoformat()
    assert days_between(text, wanted.isoformat()) == days


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01", "2026-02-29", "0000-01-01", "9" * 5000, "2026-1-1-1"])
def test_no_date(text):
    with pytest.raises(ToolError):
        read_date(text)


def test_units():
    assert unit_convert(1.0, "mi", "km") == "1.609344 km"
    assert unit_convert(100.0, "C", "F") == "212 F"
    assert unit_convert(2.5, "week", "h") == "420 h"
    for call in ((1.0, "km", "kg"), (-300.0, "C", "K"), (1e300, "m", "km")):
        with pytest.raises(ToolError):
            unit_convert(*call)
    assert not standard_toolbox().call("unit_convert", {"value": 1, "from_unit": "斤", "to_unit": "kg"}).ok
    with pytest.raises(ToolError):
        add_days("2026-01-01", 10**9)
