"""Regular expressions in bounded time, by simulating an automaton (Thompson 1968).

Python's `re` backtracks: `(a+)+b` on thirty letters a takes minutes, and nothing can interrupt it. Here the set of all
states that a text can be in is carried from character to character, so the work is at most states times characters.
The price: no back-references and no look-around, which no automaton can do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from cutaway.errors import UserError

MAX_PATTERN = 1000
MAX_STATES = 500
MAX_TEXT = 10_000
MAX_DEPTH = 50

Test = Callable[[str], bool]
_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not (char.isalnum() or char == "_"),
    "S": lambda char: not char.isspace(),
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


@dataclass
class Automaton:
    """State i reads one character if `tests[i]` allows it and goes to i + 1; `jumps[i]` are reached without reading."""

    tests: list[Test | None] = field(default_factory=list)
    jumps: list[list[int]] = field(default_factory=list)
    start: frozenset[int] = frozenset()
    steps: dict[tuple[frozenset[int], str], frozenset[int]] = field(default_factory=dict)

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` (at most MAX_TEXT characters, else false) fits."""
        if len(text) > MAX_TEXT:
            return False
        states = self.start
        for char in text:
            following = self.steps.get((states, char))
            if following is None:
                read = [i + 1 for i in states if (test := self.tests[i]) is not None and test(char)]
                following = self.closure(read)
                if len(self.steps) >= 10_000:
                    self.steps.clear()
                self.steps[states, char] = following
            states = following
            if not states:
                return False
        return len(self.tests) - 1 in states

    def closure(self, states: list[int]) -> frozenset[int]:
        """The states and all that are reached from them without reading."""
        seen, waiting = set(states), list(states)
        while waiting:
            for target in self.jumps[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(seen)


@lru_cache(maxsize=256)
def compile_pattern(pattern: str, whole: bool = True, dot_all: bool = False) -> Automaton:
    """The automaton of `pattern`; with `whole` false, of any text that contains it. UserError for a pattern unfit.

    Syntax as in `re`: literals, `.`, `[...]`, `\\d \\w \\s`, groups, `|`, `* + ? {m} {m,n}` (a `?` after them changes
    nothing here), `^` first and `$` last.
    """
    if len(pattern) > MAX_PATTERN:
        raise UserError(f"pattern: longer than {MAX_PATTERN} characters")
    return _Parser(pattern, dot_all).parse(whole)


class _Parser:
    """Recursive descent; a piece of the pattern is a function that appends its states to the automaton."""

    def __init__(self, pattern: str, dot_all: bool) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0
        self.dot: Test = (lambda char: True) if dot_all else (lambda char: char != "\n")
        self.automaton = Automaton()

    def parse(self, whole: bool) -> Automaton:
        body = self.pattern
        first = body.startswith("^")
        last = body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\"))) % 2 == 1
        self.pattern = body[int(first) : len(body) - int(last)]
        piece, branches = self.alternation()
        if self.at < len(self.pattern):
            raise self.error("a ) without its (")
        if (first or last) and branches > 1:
            raise self.error("^ and $ beside | need a group: ^(?:a|b)$")
        self.optional_text(not whole and not first)
        piece()
        self.optional_text(not whole and not last)
        self.state(None)
        self.automaton.start = self.automaton.closure([0])
        return self.automaton

    def optional_text(self, wanted: bool) -> None:
        if wanted:
            self.repeat(lambda: self.read(lambda char: True), 0, None)

    def error(self, why: str) -> UserError:
        return UserError(f"pattern {self.pattern[:60]!r}, character {self.at + 1}: {why}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        if not char:
            raise self.error("ends too early")
        self.at += 1
        return char

    def state(self, test: Test | None, *jumps: int) -> int:
        if len(self.automaton.tests) >= MAX_STATES:
            raise self.error(f"needs more than {MAX_STATES} states; repeat less")
        self.automaton.tests.append(test)
        self.automaton.jumps.append(list(jumps))
        return len(self.automaton.tests) - 1

    def read(self, test: Test) -> None:
        self.state(test)

    def alternation(self) -> tuple[Callable[[], None], int]:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"groups nested more than {MAX_DEPTH} deep")
        branches = [self.sequence()]
        while self.peek() == "|":
            self.take()
            branches.append(self.sequence())
        self.depth -= 1

        def emit() -> None:
            if len(branches) == 1:
                return branches[0]()
            fork, ends = self.state(None), []
            for branch in branches:
                self.automaton.jumps[fork].append(len(self.automaton.tests))
                branch()
                ends.append(self.state(None))
            for end in ends:
                self.automaton.jumps[end].append(len(self.automaton.tests))

        return emit, len(branches)

    def sequence(self) -> Callable[[], None]:
        pieces = []
        while self.peek() not in ("", "|", ")"):
            pieces.append(self.repeated())

        def emit() -> None:
            for piece in pieces:
                piece()

        return emit

    def repeated(self) -> Callable[[], None]:
        piece = self.atom()
        bounds = self.bounds()
        if bounds is None:
            return piece
        if self.peek() == "?":
            self.take()
        if self.peek() in ("*", "+", "?") and self.peek():
            raise self.error("a repeat of a repeat needs a group")
        low, high = bounds
        return lambda: self.repeat(piece, low, high)

    def bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self.peek() in simple:
            return simple[self.take()]
        close = self.pattern.find("}", self.at)
        if self.peek() != "{" or close < 0:
            return None
        low, comma, high = self.pattern[self.at + 1 : close].partition(",")
        if (
            not all(part.isascii() and part.isdigit() and len(part) < 5 for part in (low or "0", high or "0"))
            or low + high == ""
        ):
            return None
        self.at = close + 1
        least, most = int(low or 0), (int(high) if high else None) if comma else int(low)
        if most is not None and most < least:
            raise self.error("a repeat whose maximum is below its minimum")
        return least, most

    def repeat(self, piece: Callable[[], None], low: int, high: int | None) -> None:
        for _ in range(low):
            piece()
        if high is None:
            fork = self.state(None)
            self.automaton.jumps[fork].append(fork + 1)
            piece()
            back = self.state(None, fork)
            self.automaton.jumps[fork].append(back + 1)
            return
        forks = []
        for _ in range(high - low):
            fork = self.state(None)
            self.automaton.jumps[fork].append(fork + 1)
            forks.append(fork)
            piece()
        for fork in forks:
            self.automaton.jumps[fork].append(len(self.automaton.tests))

    def atom(self) -> Callable[[], None]:
        char = self.take()
        if char == "(":
            if self.peek() == "?":
                self.take()
                if self.take() != ":":
                    raise self.error("look-around, flags and named groups are not supported; use (?:...)")
            piece, _ = self.alternation()
            if self.peek() != ")":
                raise self.error("a ( without its )")
            self.take()
            return piece
        if char in "*+?":
            raise self.error(f"nothing for {char} to repeat")
        if char in "^$":
            raise self.error("^ may only stand first and $ last")
        test = self.dot if char == "." else self.brackets() if char == "[" else self.single(char)
        return lambda: self.read(test)

    def single(self, char: str) -> Test:
        literal = self.escape() if char == "\\" else char
        return literal if callable(literal) else (lambda other: other == literal)

    def escape(self) -> str | Test:
        char = self.take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isascii() and char.isalnum():
            raise self.error(f"\\{char} is not supported")
        return char

    def brackets(self) -> Test:
        negated = self.peek() == "^"
        self.at += int(negated)
        tests: list[Test] = []
        while self.peek() != "]" or not tests:
            char = self.take()
            low = self.escape() if char == "\\" else char
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                char = self.take()
                high = self.escape() if char == "\\" else char
                if callable(low) or callable(high) or high < low:
                    raise self.error("a range that runs backwards or from a class")
                tests.append(lambda other, low=low, high=high: low <= other <= high)  # type: ignore[misc]
            else:
                tests.append(low if callable(low) else lambda other, low=low: other == low)  # type: ignore[misc]
        self.take()
        return lambda other: any(test(other) for test in tests) != negated
