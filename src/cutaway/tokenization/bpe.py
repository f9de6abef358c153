"""Byte-level BPE from scratch: the same vocabulary and ids as the `tokenizers` library, slow and readable.

Training (Sennrich, Haddow, Birch 2016, arXiv:1508.07909, algorithm 1): begin with single bytes; again and again join
the adjacent pair of tokens that occurs most often in the text into a new token. Encoding replays the merges in the
order in which they were learnt. Merges never cross the words that `split_words` makes.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from cutaway.tokenization.tokenizer import BYTE_OF_CHARACTER

Pair = tuple[int, int]

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Ids of the single bytes: the order of the characters that stand for them in a vocabulary file.
_BYTES = [BYTE_OF_CHARACTER[character] for character in sorted(BYTE_OF_CHARACTER)]
_ID_OF_BYTE = {byte: index for index, byte in enumerate(_BYTES)}


@dataclass(frozen=True)
class BPE:
    """`tokens[id]` are the bytes of a token; `ranks[pair]` is when it was merged, `merged[pair]` into what."""

    tokens: list[bytes]
    ranks: dict[Pair, int]
    merged: dict[Pair, int]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: in every word, the earliest learnt merge first, from the left."""
        return [index for word in split_words(text) for index in self._encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; broken UTF-8 shows as U+FFFD."""
        return b"".join(self.tokens[index] for index in ids).decode("utf-8", "replace")

    def _encode_word(self, word: str) -> list[int]:
        ids = [_ID_OF_BYTE[byte] for byte in word.encode("utf-8")]
        while len(ids) > 1:
            pair = min(pairwise(ids), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if pair not in self.ranks:
                break
            ids = _join(ids, pair, self.merged[pair])
        return ids


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> BPE:
    """Learn `vocab_size - 256` merges, or fewer if no pair is left that occurs `min_frequency` times.

    Of equally frequent pairs the one with the smallest ids is merged. Only words that hold the merged pair are counted
    again, which changes nothing but the time.
    """
    counts = Counter(word for text in texts for word in split_words(text))
    words = [[_ID_OF_BYTE[byte] for byte in word.encode("utf-8")] for word in counts]
    weights = list(counts.values())
    pairs: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = {}
    for number, word in enumerate(words):
        _count(word, weights[number], number, pairs, where)

    bpe = BPE([bytes([byte]) for byte in _BYTES], {}, {})
    index_of = {token: index for index, token in enumerate(bpe.tokens)}
    while len(bpe.tokens) < vocab_size and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < max(min_frequency, 1):
            break
        token = bpe.tokens[best[0]] + bpe.tokens[best[1]]
        if token not in index_of:
            index_of[token] = len(bpe.tokens)
            bpe.tokens.append(token)
        bpe.ranks[best], bpe.merged[best] = len(bpe.ranks), index_of[token]
        for number in list(where[best]):
            _count(words[number], -weights[number], number, pairs, where)
            words[number] = _join(words[number], best, index_of[token])
            _count(words[number], weights[number], number, pairs, where)
    return bpe


def _count(word: list[int], weight: int, number: int, pairs: Counter[Pair], where: dict[Pair, set[int]]) -> None:
    """Add a word's adjacent pairs to the counts; a negative weight takes them out again."""
    for pair in pairwise(word):
        pairs[pair] += weight
        if weight > 0:
            where.setdefault(pair, set()).add(number)
        else:
            where[pair].discard(number)


def _join(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Replace every occurrence of `pair`, from the left, by the token `new`."""
    joined: list[int] = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            joined.append(new)
            i += 2
        else:
            joined.append(ids[i])
            i += 1
    return joined


def split_words(text: str) -> Iterator[str]:
    """Cut `text` into words by the Qwen2 pattern, without a regular expression for Unicode classes at hand:

    `(?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\\r\\n\\p{L}\\p{N}]?\\p{L}+ | \\p{N} | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*
    | \\s*[\\r\\n]+ | \\s+(?!\\S) | \\s+`

    A letter that is newer than this Python's Unicode tables counts as a symbol here.
    """
    start = 0
    while start < len(text):
        end = _word_end(text, start)
        yield text[start:end]
        start = end


def _word_end(text: str, start: int) -> int:
    for contraction in _CONTRACTIONS:
        if _fold(text[start : start + len(contraction)]) == contraction:
            return start + len(contraction)

    letters = start if _is_letter(text[start]) or _is_number(text[start]) or text[start] in "\r\n" else start + 1
    end = _skip(text, letters, _is_letter)
    if end > letters:
        return end

    if _is_number(text[start]):
        return start + 1

    symbols = start + 1 if text[start] == " " else start
    end = _skip(text, symbols, _is_symbol)
    if end > symbols:
        return _skip(text, end, _is_newline)

    end = _skip(text, start, _is_space)
    last_newline = max(text.rfind("\n", start, end), text.rfind("\r", start, end))
    if last_newline >= 0:
        return last_newline + 1
    # The last space before a word belongs to the word.
    return end if end == len(text) or end == start + 1 else end - 1


def _skip(text: str, position: int, belongs: Callable[[str], bool]) -> int:
    while position < len(text) and belongs(text[position]):
        position += 1
    return position


def _fold(text: str) -> str:
    # U+017F, the long s, is the one other character that matches an ASCII letter of these when case is ignored.
    return text.lower().replace("\u017f", "s")


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] == "L"


def _is_number(character: str) -> bool:
    return unicodedata.category(character)[0] == "N"


def _is_newline(character: str) -> bool:
    return character in "\r\n"


def _is_space(character: str) -> bool:
    # Unicode's White_Space; str.isspace() also takes the four ASCII separators U+001C to U+001F.
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def _is_symbol(character: str) -> bool:
    return not (_is_space(character) or _is_letter(character) or _is_number(character))
