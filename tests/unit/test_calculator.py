"""The calculator: agrees with Python, stays within its limits, and answers every text."""

import ast
import operator
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.tools.calculator import MAX_BITS, calculate, calculator, format_number
from cutaway.tools.schema import ToolError

OPERATORS = {
    "+": (operator.add, 1),
    "-": (operator.sub, 1),
    "*": (operator.mul, 2),
    "/": (operator.truediv, 2),
    "//": (operator.floordiv, 2),
    "%": (operator.mod, 2),
}
numbers = st.one_of(
    st.integers(0, 10**6).map(str), st.decimals(0, 10**4, places=3, allow_nan=False, allow_infinity=False).map(str)
)
trees = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner),
        st.tuples(st.just("neg"), inner),
        st.tuples(st.just("**"), inner, st.integers(-3, 4)),
    ),
    max_leaves=8,
)


def value_of(tree):
    """Python's own arithmetic on fractions, walking the tree."""
    if isinstance(tree, str):
        return Fraction(tree)
    if tree[0] == "neg":
        return -value_of(tree[1])
    if tree[0] == "**":
        base = value_of(tree[1])
        if tree[2] < 0 and base == 0:
            raise ZeroDivisionError
        return Fraction(base ** tree[2])
    return Fraction(OPERATORS[tree[0]][0](value_of(tree[1]), value_of(tree[2])))


def rendered(tree, draw, level=0):
    """Text of the tree with only the parentheses that precedence needs, some more, and random white space."""
    if isinstance(tree, str):
        text, own = tree, 5
    elif tree[0] == "neg":
        text, own = "-" + draw(SPACE) + rendered(tree[1], draw, 3), 3
    elif tree[0] == "**":
        exponent = str(tree[2]) if tree[2] >= 0 or draw(st.booleans()) else f"({tree[2]})"
        text, own = rendered(tree[1], draw, 5) + draw(SPACE) + draw(st.sampled_from(["**", "^", "＊＊"])) + exponent, 4
    else:
        own = OPERATORS[tree[0]][1]
        sign = draw(
            st.sampled_from({"*": ["*", "×", "＊"], "/": ["/", "÷", "／"], "+": ["+", "＋"]}.get(tree[0], [tree[0]]))
        )
        # The calculator refuses a sign directly after %, which people read as percent.
        right = 5 if tree[0] == "%" else own + 1
        text = rendered(tree[1], draw, own) + draw(SPACE) + sign + draw(SPACE) + rendered(tree[2], draw, right)
    if own < level or draw(st.integers(0, 9)) == 0:
        left, right = draw(st.sampled_from(["()", "（）"]))
        text = left + text + right
    return text


SPACE = st.sampled_from(["", " ", "  ", "\u3000"])


@given(trees, st.data())
def test_agrees_with_python(tree, data):
    text = rendered(tree, data.draw)
    try:
        wanted = value_of(tree)
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            calculate(text)
        return
    try:
        assert calculate(text) == wanted
    except ToolError as error:
        assert "large" in str(error)


@given(trees, st.data())
def test_precedence_is_that_of_python_source(tree, data):
    text = (
        rendered(tree, data.draw).translate(str.maketrans("×＊÷／＋（）\u3000", "**//+() ")).replace("^", "**").strip()
    )
    try:
        wanted = value_of(python_tree(ast.parse(text, mode="eval").body, text))
    except (ZeroDivisionError, OverflowError):
        return
    try:
        assert calculate(text) == wanted
    except ToolError as error:
        assert "large" in str(error)


SIGN_OF_NODE = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}


def python_tree(node, source):
    """A tree of ours as Python's own parser reads the text; numbers are taken from the source, so none is rounded."""
    if isinstance(node, ast.Constant):
        return ast.get_source_segment(source, node)
    if isinstance(node, ast.UnaryOp):
        return "neg", python_tree(node.operand, source)
    if isinstance(node.op, ast.Pow):
        return "**", python_tree(node.left, source), int(value_of(python_tree(node.right, source)))
    return SIGN_OF_NODE[type(node.op)], python_tree(node.left, source), python_tree(node.right, source)


@given(st.one_of(st.text(max_size=60), st.text("0123456789+-*/%().,×÷（）^ ", max_size=80)))
def test_any_text_is_answered_quickly(text):
    start = time.perf_counter()
    try:
        assert calculator(text)
    except ToolError as error:
        assert 0 < len(str(error)) < 300
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "9**9**9**9", "(" * 100_000 + "1" + ")" * 100_000, "(" * 400 + "1" + ")" * 400, "-" * 900 + "1",
     "2**" * 300 + "2", "9" * 101, "1+" * 10**6 + "1", "(2**4000)*(2**4000)", "10**-9999", "1/(10**1200)*1/(10**1200)"],
)  # fmt: skip
def test_limits_hold(text):
    start = time.perf_counter()
    with pytest.raises(ToolError):
        calculator(text)
    assert time.perf_counter() - start < 0.5


def test_values_within_the_limits_can_be_written():
    assert calculate(f"2**{MAX_BITS - 1}") == 2 ** (MAX_BITS - 1)
    assert len(calculator(f"2**{MAX_BITS - 1}")) == 1233
    assert calculate("1**" + "9" * 90) == 1 and calculate("(-1)**" + "9" * 90) == -1
    assert calculate("0**0") == 1 and calculate("(-1)**4") == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("１２＋３４", "46"), ("（3＋4）×５", "35"), ("7÷2", "3.5"), ("1,234,567 + 1", "1234568"),
     ("１，０００×2", "2000"),
     ("200 * 15%", "30"), ("50%", "0.5"), ("7 % 3", "1"), ("-7 // 2", "-4"), ("-7 % 3", "2"), ("-2**2", "-4"),
     ("2**3**2", "512"), ("2^-2", "0.25"), ("0.1 + 0.2", "0.3"), (".5 + 5.", "5.5"), ("1/3", "1/3 ≈ 0.333333333333"),
     ("-2/3", "-2/3 ≈ -0.666666666667"), ("3 + 4 =", "7"), ("-0.05", "-0.05"), ("10**20", "1" + "0" * 20),
     ("1/3/10**10", "1/30000000000 ≈ 3.33333333333e-11"), ("7 % (-3)", "-2"), ("(7%) - 2", "-1.93")],
)  # fmt: skip
def test_what_people_type(text, wanted):
    assert calculator(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "empty"), ("1/0", "division by zero"), ("5 % 0", "division by zero"), ("2 3", "operator is missing"),
     ("2**0.5", "whole number"), ("3²", "cannot read"), ("50%+1", "two ways"), ("12,34",
     "comma"), ("(1", "without its"),
     ("1)", "out of place"), ("2 +", "too early"), ("__import__('os')", "cannot read"), ("1.2.3", "missing")],
)  # fmt: skip
def test_errors_say_what_is_wrong(text, why):
    with pytest.raises(ToolError, match=why):
        calculator(text)


@given(st.fractions())
def test_a_written_number_is_close_to_the_value(value):
    text = format_number(value).rpartition("≈ ")[2]
    assert abs(Fraction(text) - value) <= abs(value) / 10**11
