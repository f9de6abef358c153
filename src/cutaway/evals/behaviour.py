"""How answers read, without a judge: in the asker's language, with an end of their own, without loops.

The prompts are in `benchmarks/prompts.jsonl`; `benchmarks/behaviour.py` runs them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.data.scripts import HAN, HANS, HANT, LATIN, count_scripts
from cutaway.evals.intervals import Share

LANGUAGES = ("zh-Hans", "zh-Hant", "en")
MAX_REPEATS = 4
"""How often one 4-gram may stand in an answer."""


@dataclass(frozen=True)
class Behaviour:
    """What one answer did."""

    in_language: bool
    ended: bool
    repeats: int
    """How often its most frequent 4-gram stands in it."""
    script_share: float | None
    """Of its characters that only one Chinese script has, the share in the asker's; None without such characters."""

    @property
    def without_loops(self) -> bool:
        """No 4-gram more than `MAX_REPEATS` times."""
        return self.repeats <= MAX_REPEATS


def judge(language: str, text: str, finish_reason: str) -> Behaviour:
    """All measures of one answer; `language` is the one expected, one of `LANGUAGES`."""
    return Behaviour(
        in_language=answers_in_language(language, text),
        ended=finish_reason == "stop",
        repeats=max_repeats(text),
        script_share=script_share(language, text),
    )


def answers_in_language(language: str, text: str) -> bool:
    """Whether over half of the letters are Han (for `zh-Hans` and `zh-Hant` alike) or Latin (`en`).

    Letters are Unicode's: digits, punctuation and emoji do not count. An answer without letters is in nobody's wrong
    language if it has a digit, as a sum does, and is none otherwise. Which Chinese script it is, see `script_share`.
    """
    letters = sum(character.isalpha() for character in text)
    if not letters:
        return any(character.isdigit() for character in text)
    counts = count_scripts(text)
    own = counts[LATIN] if language == "en" else counts[HAN] + counts[HANS] + counts[HANT]
    return bool(2 * own > letters)


def script_share(language: str, text: str) -> float | None:
    """Of the characters that only simplified or only traditional Chinese has, the share in the script of `language`."""
    counts = count_scripts(text)
    both = int(counts[HANS] + counts[HANT])
    if language == "en" or not both:
        return None
    return float(counts[HANS if language == "zh-Hans" else HANT] / both)


_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNIT = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|\S")


def units(text: str) -> list[str]:
    """What 4-grams are made of: a Han or kana character, a word of other letters and digits (case ignored), or any
    other visible character, so that a row of dots counts as a loop too."""
    return _UNIT.findall(text.casefold())


def max_repeats(text: str, n: int = 4) -> int:
    """How often the most frequent n-gram of `units` stands in the text, overlaps counted; 0 for fewer than n units."""
    found = units(text)
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    return max(counts.values(), default=0)


def summarise(behaviours: Sequence[Behaviour]) -> dict[str, Share]:
    """The three requirements' shares. Answers to one prompt resemble each other, so with several seeds the intervals
    are somewhat too narrow."""
    return {
        "in_language": Share.of([one.in_language for one in behaviours]),
        "ended": Share.of([one.ended for one in behaviours]),
        "without_loops": Share.of([one.without_loops for one in behaviours]),
    }
