"""The toolbox of tools that stand without a world; a world's tools join it as closures over that world."""

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from cutaway.tools.calculator import calculator
from cutaway.tools.calendar import calendar_tools
from cutaway.tools.schema import Tool
from cutaway.tools.toolbox import Toolbox
from cutaway.tools.units import unit_convert


def standard_toolbox(
    today: datetime.date | None = None, more: Iterable[Tool | Callable[..., Any]] = (), **limits: Any
) -> Toolbox:
    """calculator, weekday, days_between, add_days, current_date (if `today` is given), unit_convert, and `more`.

    `limits` are those of `Toolbox`. A world hands in functions that close over its state:

        def price_tools(prices: dict[str, int]) -> list[Callable[..., Any]]:
            def price(item: str) -> int:
                \"\"\"Look up a price.\"\"\"
                if item not in prices:
                    raise ToolError(f"no price for {item}")
                return prices[item]
            return [price]
    """
    return Toolbox([calculator, *calendar_tools(today), unit_convert, *more], **limits)
