"""Text as a row of units, all documents of a chunk at once: a Chinese or Japanese character is one, a word of any other
script is one, punctuation and spaces are none. What is compared (duplicates, leaked questions, repetition) are runs of
units.

A unit is a 64-bit hash. Before hashing, letters are made lower case, full-width forms plain, and the
traditional and simplified forms of a character the same: a text equals its copy in the other script or with other
punctuation.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt64

from cutaway.data.hashing import mix64

Hashes = UInt64[np.ndarray, "_items"]
Offsets = Integer[np.ndarray, "_documents_and_one"]
Mask = Bool[np.ndarray, "_items"]
Codes = Integer[np.ndarray, "_characters"]

NONE, WORD, SINGLE = 0, 1, 2
"""Kinds of code points: between units, part of a word, a unit by itself."""
_LONGEST = 64


class Text(NamedTuple):
    """Several documents as code points: those of document d are `codes[offsets[d]:offsets[d + 1]]`."""

    codes: Codes
    offsets: Offsets


class Units(NamedTuple):
    """Units of several documents: those of document d are `hashes[offsets[d]:offsets[d + 1]]`."""

    hashes: Hashes
    offsets: Offsets
    lengths: Codes
    """Characters in each unit."""


class Ngrams(NamedTuple):
    """Runs of n units inside one document; a document shorter than n has none."""

    hashes: Hashes
    offsets: Offsets


def text_of(documents: Sequence[str]) -> Text:
    """The code points of all documents, one after the other."""
    codes = np.frombuffer("".join(documents).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    return Text(codes, offsets)


def units_of(text: Text) -> Units:
    """Hash every unit: the sum over its characters of value(character) * odd(place in the word), mixed, modulo 2^64."""
    kinds, values = _tables()
    kind = kinds[text.codes]
    before = np.empty_like(kind)
    before[:1] = NONE
    before[1:] = kind[:-1]
    inner = text.offsets[1:-1]
    before[inner[inner < len(kind)]] = NONE  # a word does not go on in the next document
    first = (kind == SINGLE) | ((kind == WORD) & (before != WORD))
    places = np.flatnonzero(kind)
    starts = np.flatnonzero(first)
    offsets = np.searchsorted(starts, text.offsets)
    if not len(starts):
        return Units(np.zeros(0, np.uint64), offsets, np.zeros(0, np.int64))
    heads = np.flatnonzero(first[places])
    lengths = np.diff(heads, append=len(places))
    within = places - np.repeat(starts, lengths)
    terms = values[text.codes[places]] * _odd()[within % _LONGEST]
    return Units(_mixed(np.add.reduceat(terms, heads)), offsets, lengths)


def ngrams_of(units: Units, n: int) -> Ngrams:
    """Hash every run of n units of a document."""
    count = np.maximum(np.diff(units.offsets) - n + 1, 0)
    offsets = np.zeros(len(units.offsets), np.int64)
    np.cumsum(count, out=offsets[1:])
    windows = max(len(units.hashes) - n + 1, 0)
    if not offsets[-1]:
        return Ngrams(np.zeros(0, np.uint64), offsets)
    sums = np.zeros(windows, np.uint64)
    for place in range(n):
        sums += units.hashes[place : place + windows] * _odd()[place]
    if offsets[-1] != windows:
        sums = sums[np.arange(offsets[-1]) + np.repeat(units.offsets[:-1] - offsets[:-1], count)]
    return Ngrams(_mixed(sums), offsets)


def owners(offsets: Offsets) -> Codes:
    """Number of the document that each item belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def distinct(ngrams: Ngrams) -> Codes:
    """How many different runs each document has (48 bits of the hash are looked at)."""
    owner = owners(ngrams.offsets)
    keys = np.sort((owner.astype(np.uint64) << np.uint64(48)) | (ngrams.hashes >> np.uint64(16)))
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    counts: Codes = np.bincount((keys[new] >> np.uint64(48)).astype(np.int64), minlength=len(ngrams.offsets) - 1)
    return counts


def any_of(hashes: Hashes, wanted: Hashes) -> Mask:
    """Which hashes are among the (few) wanted ones, which are sorted."""
    place = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    among: Mask = wanted[place] == hashes
    return among


def _mixed(values: Hashes) -> Hashes:
    """A bijection that spreads every bit over the whole (the finaliser of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: Hashes = values ^ (values >> np.uint64(33))
    return mixed


@functools.cache
def _odd() -> Hashes:
    return mix64(np.arange(_LONGEST), 0x0DD) | np.uint64(1)


@functools.cache
def _tables() -> tuple[Integer[np.ndarray, "codepoints"], UInt64[np.ndarray, "codepoints"]]:
    """Kind of each code point, and the value of what it is folded to."""
    kinds = np.zeros(0x110000, np.uint8)
    folded = np.arange(0x110000, dtype=np.uint32)
    for code in range(0x20000):
        char = chr(code)
        if char.isalnum() or unicodedata.category(char).startswith("M"):
            kinds[code] = WORD
            plain = unicodedata.normalize("NFKC", char).lower()
            if len(plain) == 1:
                folded[code] = ord(plain)
    for start, end in ((0x2E80, 0x3000), (0x3005, 0x3008), (0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00)):
        kinds[start:end] = SINGLE
    kinds[0x20000:0x323B0] = SINGLE
    han = slice(0x3400, 0xA000)
    folded[han] = _same_in_both_scripts(list(map(chr, range(han.start, han.stop))))
    return kinds, mix64(folded, 0x7AB1E)


def _same_in_both_scripts(chars: list[str]) -> Codes:
    """One code point for all characters that OpenCC turns into one another: 后 for 后 and 後, 着 or 著 for both."""
    import opencc

    first = ord(chars[0])
    labels = np.arange(first, first + len(chars))
    for config in ("t2s", "s2tw", "t2s"):
        converted = opencc.OpenCC(config).convert("\n".join(chars)).split("\n")
        pairs = [(place, ord(to) - first) for place, to in enumerate(converted) if len(to) == 1]
        here, there = np.array([pair for pair in pairs if 0 <= pair[1] < len(chars)]).T
        for _ in range(4):
            least = np.minimum(labels[here], labels[there])
            np.minimum.at(labels, here, least)
            np.minimum.at(labels, there, least)
    return labels.astype(np.uint32)
