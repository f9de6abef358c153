"""The verifier of numbers: which number an answer gives, and whether it is the right one."""

import re
from fractions import Fraction

from cutaway.errors import UserError
from cutaway.verifiers.numerals import normal_digits, numbers_in, read_number
from cutaway.verifiers.text import MAX_ANSWER
from cutaway.verifiers.verdict import Verdict, failed, passed, shown

_MARKER = re.compile(
    r"(?:最[終终]答案|答案|[結结]果|final answer|answer|result)\s*(?:應該|应该|就)?"
    r"(?:是|為|为|等於|等于|is|equals|:|=)+\s*",
    re.IGNORECASE,
)
_LAST_MARKERS, _CLAUSE_LENGTH = 20, 500
_CLAUSE = re.compile(r"[;。!?\n]|,(?!\d)|\.(?!\d)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d{1,50})\s*\}\s*\{\s*(\d{1,50})\s*\}")


def numeric(answer: str, expected: int | float | str, tolerance: float = 1e-6, relative: float = 0.0) -> Verdict:
    """The number that the answer gives differs from `expected` by at most max(tolerance, relative * |expected|).

    Compared exactly, as fractions. `expected` may be text (`"1/3"`, `"25%"`, `"一百二十"`). 25% is 0.25; where it is
    written with a percent sign, a bare 25 counts as well. For the way a number is found see `find_number`.
    """
    wanted = read_number(repr(expected) if isinstance(expected, (int, float)) else expected)
    if wanted is None or isinstance(expected, bool):
        raise UserError(f"expected must be a number, is {shown(expected)}")
    if not (0 <= tolerance < float("inf") and 0 <= relative < float("inf")):
        raise UserError("tolerance and relative must not be negative")
    found = find_number(answer)
    if found is None:
        return failed(f"no number in {shown(answer)}")
    value, written = found
    allowed = max(Fraction(tolerance), Fraction(relative) * abs(wanted))
    targets = [wanted]
    if isinstance(expected, str) and normal_digits(expected).strip().endswith("%") and "%" not in written:
        targets.append(wanted * 100)
    if any(abs(value - target) <= allowed for target in targets):
        return passed(f"gives {shown(written)}")
    return failed(f"gives {shown(written)}, not {shown(expected)}")


def find_number(answer: str) -> tuple[Fraction, str] | None:
    """The number that an answer gives, and how it is written; None where it gives none.

    1. what is in the last `\\boxed{}`, else what follows the last `####`;
    2. else the clause after the last marker (答案是, the answer is): behind its last `=`, the first number;
    3. else the last number of the text.

    In text with digits, Chinese numerals count only where no digits stand: 一 in Chinese prose is seldom the answer.
    """
    text = normal_digits(answer[-MAX_ANSWER:]).replace("**", "").replace("$", "").replace("\\%", "%")
    text = _FRACTION.sub(r" \1/\2 ", text)
    if "\\boxed{" in text:
        return _pick(_boxed(text), last=True)
    if "####" in text:
        lines = text.rpartition("####")[2].strip().splitlines()
        return _pick(lines[0] if lines else "", last=True)
    for marker in list(_MARKER.finditer(text))[: -_LAST_MARKERS - 1 : -1]:
        clause = _CLAUSE.split(text[marker.end() : marker.end() + _CLAUSE_LENGTH], maxsplit=1)[0]
        if found := _pick(clause.rpartition("=")[2], last=False) or _pick(clause, last=True):
            return found
    return _pick(text, last=True)


def _boxed(text: str) -> str:
    """The inside of the last box, to its closing brace."""
    inside = text.rpartition("\\boxed{")[2]
    depth = 1
    for i, char in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return inside[:i]
    return inside


def _pick(text: str, last: bool) -> tuple[Fraction, str] | None:
    found = numbers_in(text)
    found = [number for number in found if any(char.isascii() and char.isdigit() for char in number[1])] or found
    return found[-1 if last else 0] if found else None
