"""Sums and differences of 0 to 99: which pairs of operands are held out, and how one is worked out in columns.

A column of 47 + 38 is a sum of two single digits, and one of 52 - 38 takes a digit from a number below 20. These small
pairs are the table that every calculation looks up, so they all stay in training; held out are pairs beyond it.
"""

import random

from cutaway.playground.language import Language
from cutaway.playground.world import World

LIMIT = 100
"""Operands are below this, and no difference is negative."""


def in_table(a: int, sign: str, b: int) -> bool:
    """Whether a pair belongs to the table of small sums and differences."""
    return b < 10 and (a < 10 if sign == "+" else a < 20)


def is_held_out(world: World, a: int, sign: str, b: int) -> bool:
    """Whether a pair may not occur in training; a + b and b + a go together."""
    if in_table(a, sign, b) or (sign == "+" and in_table(b, sign, a)):
        return False
    first, second = (max(a, b), min(a, b)) if sign == "+" else (a, b)
    return world.held_out("sum", first, sign, second)


def draw_pair(world: World, draw: random.Random, held_out: bool = False) -> tuple[int, str, int]:
    """Operands and sign, from the pairs in training or from those held out."""
    while True:
        a, b, sign = draw.randrange(LIMIT), draw.randrange(LIMIT), draw.choice("+-")
        if sign == "-" and a < b:
            a, b = b, a
        if is_held_out(world, a, sign, b) == held_out:
            return a, sign, b


def result(a: int, sign: str, b: int) -> int:
    """The sum or difference."""
    return a + b if sign == "+" else a - b


def working(language: Language, a: int, sign: str, b: int) -> str:
    """The calculation and its columns, ones first, the carry written out: `47+38: ones 7+8=15, tens 4+3+1=8`."""
    ones, tens = columns(a, sign, b)
    return language.pick(f"{a}{sign}{b}: ones {ones}, tens {tens}", f"{a}{sign}{b}：個位{ones}，十位{tens}")


def columns(a: int, sign: str, b: int) -> tuple[str, str]:
    """The calculation of the ones and of the tens."""
    (a1, a0), (b1, b0) = divmod(a, 10), divmod(b, 10)
    if sign == "+":
        carry = int(a0 + b0 > 9)
        return f"{a0}+{b0}={a0 + b0}", f"{a1}+{b1}" + f"+{carry}" * carry + f"={a1 + b1 + carry}"
    borrow = int(a0 < b0)
    top = a0 + 10 * borrow
    return f"{top}-{b0}={top - b0}", f"{a1}-{b1}" + f"-{borrow}" * borrow + f"={a1 - b1 - borrow}"


def worked_answer(language: Language, a: int, sign: str, b: int) -> str:
    """Working and result; small pairs are known by heart."""
    right = result(a, sign, b)
    if in_table(a, sign, b):
        return language.pick(f"{a}{sign}{b}={right}.", f"{a}{sign}{b}={right}。")
    return working(language, a, sign, b) + language.pick(f", so {right}.", f"，所以是{right}。")
