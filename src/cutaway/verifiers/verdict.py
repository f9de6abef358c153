"""What a verifier says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`ok`: the answer holds. `reason`: why not, or what was found. `score` in [0, 1]: 1 if ok, partial credit below.

    `raised` is true where the verifier itself failed: such verdicts say nothing about the answer, and callers count
    them.
    """

    ok: bool
    reason: str
    score: float
    raised: bool = False


def passed(reason: str) -> Verdict:
    """The answer holds."""
    return Verdict(True, reason, 1.0)


def failed(reason: str, score: float = 0.0) -> Verdict:
    """The answer does not hold; `score` is partial credit."""
    return Verdict(False, reason, score)


def shown(value: object, limit: int = 60) -> str:
    """A value as a reason quotes it, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
