"""Conversion between units of length, mass, volume, time and temperature, in exact arithmetic."""

from fractions import Fraction
from typing import Literal

from cutaway.tools.calculator import format_number
from cutaway.tools.schema import ToolError

Unit = Literal[
    "mm", "cm", "m", "km", "in", "ft", "mi",
    "mg", "g", "kg", "t", "oz", "lb",
    "ml", "l", "s", "min", "h", "day", "week",
    "C", "F", "K",
]  # fmt: skip

_FACTORS: dict[str, dict[str, str]] = {
    "length": {"mm": "1/1000", "cm": "1/100", "m": "1", "km": "1000", "in": "0.0254", "ft": "0.3048", "mi": "1609.344"},
    "mass": {"mg": "1/1000", "g": "1", "kg": "1000", "t": "1000000", "oz": "28.349523125", "lb": "453.59237"},
    "volume": {"ml": "1/1000", "l": "1"},
    "time": {"s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"},
}
_QUANTITY = {unit: quantity for quantity, units in _FACTORS.items() for unit in units}


def unit_convert(value: float, from_unit: Unit, to_unit: Unit) -> str:
    """Convert a measurement from one unit to another.

    Args:
        value: The number of units.
        from_unit: The unit it is in.
        to_unit: The unit wanted.
    """
    exact = Fraction(repr(float(value)))
    source, target = _QUANTITY.get(from_unit, "temperature"), _QUANTITY.get(to_unit, "temperature")
    if source != target:
        raise ToolError(f"cannot convert {source} ({from_unit}) to {target} ({to_unit})")
    if abs(exact) > 10**30 or 0 < abs(exact) < Fraction(1, 10**30):
        raise ToolError("the value must lie between 1e-30 and 1e30")
    if source != "temperature":
        factors = _FACTORS[source]
        return f"{format_number(exact * Fraction(factors[from_unit]) / Fraction(factors[to_unit]))} {to_unit}"
    kelvin = {"C": exact + Fraction("273.15"), "F": (exact + Fraction("459.67")) * Fraction(5, 9), "K": exact}[
        from_unit
    ]
    if kelvin < 0:
        raise ToolError("the temperature lies below absolute zero")
    result = {"C": kelvin - Fraction("273.15"), "F": kelvin * Fraction(9, 5) - Fraction("459.67"), "K": kelvin}[to_unit]
    return f"{format_number(result)} {to_unit}"
