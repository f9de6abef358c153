"""Keeping shares: which kind of text comes next, so that each gets its share of the tokens."""

from collections.abc import Mapping


class Shares:
    """Hands out kinds in proportion to `shares`, by the size of what was made of each so far."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares = dict(shares)
        self.given = dict.fromkeys(self.shares, 0.0)

    def next(self) -> str:
        """The kind that lags furthest behind its share."""
        return min(self.given, key=lambda kind: self.given[kind] / self.shares[kind])

    def add(self, kind: str, size: float) -> None:
        """Count what was made."""
        self.given[kind] += size


def token_estimate(text: str) -> float:
    """Tokens of a text under a vocabulary of about 2,000: 0.7 for a Chinese character, 0.35 for another."""
    count = len(text)
    chinese = (len(text.encode()) - count) / 2
    return 0.7 * chinese + 0.35 * (count - chinese)
