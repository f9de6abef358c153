"""A calculator: tokens, precedence climbing (Pratt 1973), exact fractions. Never `eval`.

    sum     = product (("+" | "-") product)*
    product = unary (("*" | "/" | "//" | "%") unary)*
    unary   = ("-" | "+") unary | power
    power   = postfix ("**" unary)?               binds tighter than a sign on its left: -2**2 is -4
    postfix = (number | "(" sum ")") "%"*         a percent sign that no operand follows: 15% is 0.15

What is written with full-width characters, ×, ÷, − or ^ means the same. Every step is bounded beforehand, so no
expression takes long or grows large, whatever is typed.
"""

import re
from fractions import Fraction

from cutaway.tools.schema import ToolError

MAX_LENGTH = 1000
MAX_DEPTH = 50
MAX_DIGITS = 100
MAX_BITS = 4096
"""Bits of the numerator and of the denominator of every intermediate value (1233 digits)."""

_SIGNS = {0xFF01 + i: 0x21 + i for i in range(94)} | {
    ord(char): plain
    for char, plain in {
        "×": "*", "✕": "*", "✖": "*", "⋅": "*", "∙": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "﹣": "-",
        "\u3000": " ", "【": "(", "】": ")", "[": "(", "]": ")", "〔": "(", "〕": ")",
    }.items()
} | {0xFF3B: "(", 0xFF3D: ")", 0xFF3E: "**", ord("^"): "**"}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)|(?P<sign>\*\*|//|[-+*/%()]))"
)
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/", "//", "%")


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression exactly.

    Args:
        expression: Numbers and + - * / // % ** with parentheses, such as (12 + 3.5) * 4 or 200 * 15%.
    """
    return format_number(calculate(expression))


def calculate(expression: str) -> Fraction:
    """The exact value of an expression. Raises ToolError with the reason where it has none, or is beyond the limits."""
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    parser = _Parser(_tokens(expression.translate(_SIGNS).rstrip().removesuffix("=").rstrip()))
    value = parser.sum()
    if parser.peek():
        raise parser.unexpected()
    return value


def format_number(value: Fraction) -> str:
    """In full up to 30 decimal places, else rounded to 12 digits: `7`, `0.25`, `1/3 ≈ 0.333333333333`.

    The fraction stands in front only where it is short. Very small and very large values have an exponent.
    """
    if value.denominator == 1:
        return str(value.numerator)
    places = _decimal_places(value.denominator)
    if places is not None and places <= 30:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        return ("-" if value < 0 else "") + digits[:-places] + "." + digits[-places:]
    fraction = f"{value.numerator}/{value.denominator}"
    return f"{fraction} ≈ {_rounded(value)}" if len(fraction) <= 20 else f"≈ {_rounded(value)}"


def _decimal_places(denominator: int) -> int | None:
    """How many decimal places 1/denominator has, None if it never ends."""
    twos = fives = 0
    while denominator % 2 == 0:
        denominator, twos = denominator // 2, twos + 1
    while denominator % 5 == 0:
        denominator, fives = denominator // 5, fives + 1
    return max(twos, fives) if denominator == 1 else None


def _rounded(value: Fraction, digits: int = 12) -> str:
    """Half to even at `digits` significant digits; an exponent outside 1e-6 to 1e15."""
    size = abs(value)
    exponent = len(str(size.numerator)) - len(str(size.denominator))
    if Fraction(10) ** exponent > size:
        exponent -= 1
    mantissa = round(size * Fraction(10) ** (digits - 1 - exponent))
    if mantissa == 10**digits:
        mantissa, exponent = mantissa // 10, exponent + 1
    sign = "-" if value < 0 else ""
    if -6 <= exponent < 15:
        whole = Fraction(mantissa) * Fraction(10) ** (exponent - digits + 1)
        places = max(0, digits - 1 - exponent)
        text = str(round(whole * 10**places)).rjust(places + 1, "0")
        text = text[: len(text) - places] + ("." + text[len(text) - places :] if places else "")
        return sign + (text.rstrip("0").rstrip(".") if "." in text else text)
    text = str(mantissa)
    return f"{sign}{(text[0] + '.' + text[1:]).rstrip('0').rstrip('.')}e{exponent:+03d}"


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if not found:
            rest = text[at:].strip()
            hint = ": a comma only separates thousands, as in 1,234,567" if rest[0] == "," else ""
            raise ToolError(
                f"cannot read {rest[:20]!r}{hint}; only numbers, + - * / // % ** and parentheses are allowed"
            )
        number = found.group("number")
        if number and tokens and tokens[-1][-1] in "0123456789.":
            raise ToolError(f"an operator is missing before {number[:20]}")
        if number and sum(map(str.isdigit, number)) > MAX_DIGITS:
            raise ToolError(f"a number has more than {MAX_DIGITS} digits")
        tokens.append(number or found.group("sign"))
        at = found.end()
    if not tokens:
        raise ToolError("the expression is empty")
    return tokens


class _Parser:
    """Evaluates while it reads."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def unexpected(self) -> ToolError:
        token = self.peek()
        return ToolError(f"{token!r} is out of place" if token else "the expression ends too early")

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in _SUMS:
            sign = self.take()
            right = self.product()
            value = _bounded(value + right if sign == "+" else value - right)
        return value

    def product(self) -> Fraction:
        value = self.unary()
        while self.peek() in _PRODUCTS:
            sign = self.take()
            if sign == "%" and self.peek() in _SUMS:
                raise ToolError(f"% before {self.peek()} can be read in two ways; write 7 % (-2), or (7%) - 2")
            right = self.unary()
            if sign != "*" and right == 0:
                raise ToolError("division by zero")
            if sign == "*":
                value = value * right
            elif sign == "/":
                value = value / right
            else:
                value = Fraction(value // right) if sign == "//" else value % right
            _bounded(value)
        return value

    def unary(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ToolError(f"nested more than {MAX_DEPTH} deep")
        if self.peek() in _SUMS:
            value = -self.unary() if self.take() == "-" else self.unary()
        else:
            value = self.postfix()
            if self.peek() == "**":
                self.take()
                value = _power(value, self.unary())
        self.depth -= 1
        return value

    def postfix(self) -> Fraction:
        token = self.peek()
        if token == "(":
            self.take()
            value = self.sum()
            if self.peek() != ")":
                raise self.unexpected() if self.peek() else ToolError("a ( without its )")
            self.take()
        elif token and token[-1] in "0123456789.":
            value = _number(self.take())
        else:
            raise self.unexpected()
        while self.peek() == "%" and self.peek(1) in ("", ")", *_PRODUCTS, "**"):
            self.take()
            value = value / 100
        return _bounded(value)


def _number(token: str) -> Fraction:
    whole, _, decimals = token.replace(",", "").partition(".")
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("an exponent must be a whole number")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    if base in (0, 1, -1):
        return base if exponent % 2 else base * base if exponent else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (bits - 1) * abs(exponent.numerator) > MAX_BITS or abs(exponent.numerator) > MAX_BITS:
        raise ToolError(f"the power is too large (over {MAX_BITS} bits)")
    return _bounded(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ToolError(f"a number in between is too large (over {MAX_BITS} bits)")
    return value
