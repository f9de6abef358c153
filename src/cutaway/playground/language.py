"""The three languages that the world is told in: English, Traditional Chinese, and Simplified Chinese made from it."""

import functools
from dataclasses import dataclass
from typing import Any

from cutaway.errors import UserError
from cutaway.playground.lexicon import LEXICON, TOWN
from cutaway.playground.wordings import FRAMES, NEW_FRAMES, OPENERS, PRACTICE_FRAMES, RELATIONS, Wording

LANGUAGES = ("en", "zh-Hant", "zh-Hans")
_NAMED = ("person", "ailment")
"""Groups whose words stand without an article; an English subject of another group has one."""


@dataclass(frozen=True)
class Language:
    """Words and sentences of one language. All texts are converted when it is made, so that telling costs nothing."""

    code: str
    words: dict[str, tuple[str, ...]]
    """The words of each group of the lexicon."""
    subjects: dict[str, tuple[str, ...]]
    """The same as they stand in a sentence: `Anna`, `the bread`."""
    wordings: dict[str, Wording]
    openers: tuple[str, ...]
    frames: tuple[str, ...]
    new_frames: tuple[str, ...]
    practice_frames: tuple[str, ...]
    town: str

    @property
    def chinese(self) -> bool:
        """Whether sentences follow one another without a space."""
        return self.code != "en"

    def pick(self, english: str, chinese: str) -> str:
        """One of two texts, the second converted to Simplified characters where the language has them."""
        return _script(self.code, chinese) if self.chinese else english

    def join(self, sentences: list[str]) -> str:
        """Sentences as a paragraph."""
        return ("" if self.chinese else " ").join(sentences)

    def list(self, words: list[str]) -> str:
        """Words as an enumeration."""
        return ("、" if self.chinese else ", ").join(words)


@functools.cache
def make_language(code: str) -> Language:
    """The language of a code. UserError for an unknown one, and where OpenCC, for Simplified Chinese, is missing."""
    if code not in LANGUAGES:
        raise UserError(f"no language {code!r} (known: {', '.join(LANGUAGES)})")
    chinese = code != "en"

    def own(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_script(code, text) for text in texts)

    words = {group: own(tuple(word[chinese] for word in entries)) for group, entries in LEXICON.items()}
    subjects = {
        group: entries if chinese or group in _NAMED else tuple(f"the {word}" for word in entries)
        for group, entries in words.items()
    }
    wordings = {}
    for name, relation in RELATIONS.items():
        said = relation.zh if chinese else relation.en
        wordings[name] = Wording(own(said.states), own(said.asks), _script(code, said.key))
    key = "zh" if chinese else "en"
    return Language(
        code, words, subjects, wordings, own(OPENERS[key]), own(FRAMES[key]), own(NEW_FRAMES[key]),
        own(PRACTICE_FRAMES[key]), _script(code, TOWN[chinese]),
    )  # fmt: skip


def sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


@functools.lru_cache(maxsize=20_000)
def _script(code: str, text: str) -> str:
    return str(_simplifier()(text)) if code == "zh-Hans" else text


@functools.cache
def _simplifier() -> Any:
    try:
        import opencc
    except ImportError:
        raise UserError("Simplified Chinese needs OpenCC: pip install opencc (or leave zh-Hans out)") from None
    return opencc.OpenCC("t2s").convert
