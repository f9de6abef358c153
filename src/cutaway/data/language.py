"""Which language a text is in, as far as cleaning has to know: by its letters, and by words where letters cannot tell.

Chinese, Japanese, Korean, Thai and so on are told by their script alone. Among languages in Latin or Cyrillic letters,
English shows in its commonest words, and anything else is put to py3langid, on a few hundred characters.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Integer

from cutaway.data.units import Hashes, Text, Units, any_of, text_of, units_of
from cutaway.errors import UserError

SYMBOL, SPACE, DIGIT, OTHER, HAN, KANA, HANGUL, LATIN, CYRILLIC = range(9)
"""Classes of characters; letters are OTHER (of no script named here) and what follows it."""
NUM_CLASSES = 19
_SCRIPTS = {
    "el": (9, ((0x370, 0x400), (0x1F00, 0x2000))),
    "he": (10, ((0x590, 0x600),)),
    "ar": (11, ((0x600, 0x780), (0x8A0, 0x900), (0xFB50, 0xFE00), (0xFE70, 0xFEFF))),
    "hi": (12, ((0x900, 0x980),)),
    "bn": (13, ((0x980, 0xA00),)),
    "ta": (14, ((0xB80, 0xC00),)),
    "th": (15, ((0xE00, 0xE80),)),
    "ka": (16, ((0x10A0, 0x1100),)),
    "hy": (17, ((0x530, 0x590),)),
    "am": (18, ((0x1200, 0x13A0),)),
}
"""Scripts taken for their most written language."""
_BY_CLASS = {number: name for name, (number, _) in _SCRIPTS.items()} | {HANGUL: "ko", OTHER: "other"}
_NAMED_BY_WORDS = {LATIN: "latin", CYRILLIC: "cyrillic"}
_ENGLISH = """the of and to a in is that it for as was with be on by he his at this from are or had not an but her
she you which they were have i all their we who one there been what would has when more if will about so no said out up
into"""
IN_CYRILLIC = frozenset(("ru", "uk", "be", "bg", "sr", "mk", "kk", "ky", "mn"))
ENGLISH_SHARE = 0.12
SAMPLE = 400
SURE = 0.9


@functools.cache
def classes() -> Integer[np.ndarray, "codepoints"]:
    """Class of each code point."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x20000):
        char = chr(code)
        if char.isspace():
            table[code] = SPACE
        elif char.isdigit():
            table[code] = DIGIT
        elif char.isalpha():
            table[code] = OTHER
    letters = table == OTHER
    ranges = [(HAN, 0x2E80, 0x2FE0), (HAN, 0x3005, 0x3008), (HAN, 0x3400, 0x4DC0), (HAN, 0x4E00, 0xA000)]
    ranges += [(HAN, 0xF900, 0xFB00), (KANA, 0x3040, 0x3100), (HANGUL, 0x1100, 0x1200), (HANGUL, 0x3130, 0x3190)]
    ranges += [(HANGUL, 0xAC00, 0xD7B0), (LATIN, 0x41, 0x250), (LATIN, 0x1E00, 0x1F00), (LATIN, 0xFF21, 0xFF5B)]
    ranges += [(CYRILLIC, 0x400, 0x530)]
    ranges += [(number, start, end) for number, spans in _SCRIPTS.values() for start, end in spans]
    for number, start, end in ranges:
        span = slice(start, end)
        # Vowel signs of Indic and Thai script are no letters to Python, and belong to the script all the same.
        table[span] = np.where(letters[span] | (number > CYRILLIC) & (table[span] == SYMBOL), number, table[span])
    table[0x20000:0x323B0] = HAN
    return table


def count_classes(text: Text) -> Integer[np.ndarray, "documents 19"]:
    """Characters of each class in each document."""
    number = len(text.offsets) - 1
    owner = np.repeat(np.arange(number) * NUM_CLASSES, np.diff(text.offsets))
    return np.bincount(owner + classes()[text.codes], minlength=number * NUM_CLASSES).reshape(number, NUM_CLASSES)


def by_script(counts: Integer[np.ndarray, "19"]) -> str:
    """Language told by its script; `latin` and `cyrillic` stand for many; `none` where there is no letter."""
    letters = counts.copy()
    letters[[SYMBOL, SPACE, DIGIT]] = 0
    letters[LATIN] //= 2  # a Chinese character says about as much as two or more Latin letters
    if letters[KANA] * 10 > letters[HAN] + letters[KANA] and letters[KANA] + letters[HAN] >= letters[LATIN]:
        return "ja"
    top = int(letters.argmax())
    if not letters[top]:
        return "none"
    return "zh" if top == HAN else "ja" if top == KANA else _NAMED_BY_WORDS.get(top) or _BY_CLASS[top]


def english_shares(units: Units) -> Any:
    """Share of each document's units that are among the commonest English words: running text has a third and more."""
    known = np.zeros(len(units.hashes) + 1, np.int64)
    if len(units.hashes):
        np.cumsum(any_of(units.hashes, _english()), out=known[1:])
    count = np.diff(units.offsets)
    return np.diff(known[units.offsets]) / np.maximum(count, 1)


@functools.cache
def _english() -> Hashes:
    return np.sort(np.concatenate([units_of(text_of([word])).hashes for word in _ENGLISH.split()]))


def by_words(text: str) -> str | None:
    """What py3langid takes a text in Latin or Cyrillic letters for, or None where it is not sure."""
    middle = max(0, (len(text) - SAMPLE) // 2)
    language, confidence = _identifier().classify(text[middle : middle + SAMPLE])
    return language if confidence >= SURE else None


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("telling languages apart needs the text extra: pip install 'cutaway[text]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
