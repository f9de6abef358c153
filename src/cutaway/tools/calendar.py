"""Dates: weekday, days between, add days. Pure functions; what day it is today must be handed in."""

import datetime
import re
from collections.abc import Callable
from typing import Any, Literal

from cutaway.tools.schema import ToolError

Language = Literal["en", "zh"]

_DATE = re.compile(
    r"\s*([0-9]{4})\s*(?:-|/|\.|年)\s*([0-9]{1,2})\s*(?:-|/|\.|月)\s*([0-9]{1,2})\s*(?:日|号|號)?\s*", re.ASCII
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WIDE = {0xFF10 + i: 0x30 + i for i in range(10)} | {0xFF0D: "-", 0xFF0F: "/"}


def read_date(text: str) -> datetime.date:
    """2026-05-03, 2026/5/3 or 2026年5月3日. Raises ToolError for what is no day of the calendar."""
    found = _DATE.fullmatch(text.translate(_WIDE)) if len(text) <= 40 else None
    if not found:
        raise ToolError(f"{text[:40]!r} is no date; write it as 2026-05-03")
    try:
        return datetime.date(*map(int, found.groups()))
    except ValueError as error:
        raise ToolError(f"{text[:40]!r} is no date: {error}") from None


def weekday(date: str, language: Language = "en") -> str:
    """Tell which day of the week a date is.

    Args:
        date: The date, such as 2026-05-03.
        language: Language of the answer.
    """
    number = read_date(date).weekday()
    return "星期" + "一二三四五六日"[number] if language == "zh" else _WEEKDAYS[number]


def days_between(start: str, end: str) -> int:
    """Count the days from one date to another; negative if the end comes first.

    Args:
        start: The first date, such as 2026-05-03.
        end: The second date.
    """
    return (read_date(end) - read_date(start)).days


def add_days(date: str, days: int) -> str:
    """Give the date a number of days after another.

    Args:
        date: The date to start from, such as 2026-05-03.
        days: How many days later; negative for earlier.
    """
    try:
        return (read_date(date) + datetime.timedelta(days=days)).isoformat()
    except OverflowError:
        raise ToolError("the result lies outside the years 1 to 9999") from None


def calendar_tools(today: datetime.date | None = None) -> list[Callable[..., Any]]:
    """The functions above and, where `today` is given, one that tells it: no clock is read, so answers repeat."""
    tools: list[Callable[..., Any]] = [weekday, days_between, add_days]
    if today is not None:
        day = today.isoformat()

        def current_date() -> str:
            """Tell today's date."""
            return day

        tools.append(current_date)
    return tools
