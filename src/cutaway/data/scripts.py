"""Traditional and Simplified Chinese: which a text is in, and conversion of a share of the documents with OpenCC.

A document is converted whole. Whether it is, depends on a hash of (seed, its content) only, so neither on the order of
the documents nor on the files they come from. Text without Chinese, and Japanese text, is left alone.
"""

import contextlib
import functools
import hashlib
import json
import re
from typing import Any

import numpy as np
from jaxtyping import Integer

from cutaway.errors import UserError

ScriptMix = dict[str, float]
"""Share of the documents for each of `hans`, `hant`, `keep`; the shares add up to 1. Empty: everything is kept."""

# t2s takes every kind of traditional text. The two steps of hant lead to the character forms of Taiwan (裡, 為), words
# kept, as OpenCC's own s2tw does, which cuts the text into words first and takes twice the time.
_OPENCC = {"hans": ("t2s",), "hant": ("s2t", "t2tw")}
HAN, HANS, HANT, LATIN, KANA, OTHER = 1, 2, 3, 4, 5, 0


def parse_scripts(spec: str) -> ScriptMix:
    """`keep`, `hans`, `hant`, or shares such as `hans:0.8,hant:0.2`. Raises UserError for anything else."""
    mix: ScriptMix = {}
    for part in spec.split(","):
        name, colon, share = part.strip().partition(":")
        wrong = f"scripts '{spec}': must be keep, hans, hant, or shares that add up to 1 such as hans:0.8,hant:0.2"
        try:
            value = float(share) if colon else 1.0
        except ValueError:
            raise UserError(wrong) from None
        if name not in ("keep", "hans", "hant") or name in mix or not 0 <= value <= 1:
            raise UserError(wrong)
        mix[name] = value
    if abs(sum(mix.values()) - 1) > 1e-6:
        raise UserError(f"scripts '{spec}': the shares add up to {sum(mix.values()):g}, must be 1")
    mix = {name: mix[name] for name in sorted(mix) if mix[name] > 0}
    return {} if list(mix) == ["keep"] else mix


def convert_document(text: str, mix: ScriptMix, seed: int) -> str:
    """The text in the script that its hash draws from `mix`. Raises UserError where OpenCC is not installed."""
    return _convert(text, choose_script(text, mix, seed)) if mix else text


def convert_conversation(turns: list[dict[str, Any]], mix: ScriptMix, seed: int) -> list[dict[str, Any]]:
    """All turns of a conversation in one script, tool schemas and arguments included, keys too so that they agree."""
    if not mix:
        return turns
    text = json.dumps(turns, ensure_ascii=False, sort_keys=True)
    script = choose_script(text, mix, seed)
    if _convert(text, script) == text and "\\\\u" not in text:
        return turns
    converted: list[dict[str, Any]] = _convert_values(turns, script)
    return converted


def choose_script(text: str, mix: ScriptMix, seed: int) -> str:
    """`hans`, `hant` or `keep`, drawn with the shares of `mix` by a hash of the seed and the text."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=b"script%d" % seed).digest()
    point = int.from_bytes(digest, "little") / 2**64
    for name, share in mix.items():
        point -= share
        if point < 0:
            return name
    return list(mix)[-1]


def count_scripts(text: str) -> Integer[np.ndarray, "6"]:
    """Number of characters by class: OTHER, HAN (both scripts), HANS (simplified only), HANT, LATIN, KANA."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.bincount(_classes()[codes], minlength=6)


@functools.cache
def _classes() -> Integer[np.ndarray, "codepoints"]:
    """Class of each code point. GB 2312 holds simplified, the common plane of Big5 traditional characters: what is in
    one and not in the other is of one script only. Against OpenCC's tables on running text this agrees on over 99 % of
    the characters that it calls one-sided."""
    table = np.zeros(0x110000, dtype=np.uint8)
    table[0x3040:0x3100] = KANA
    for start, end in ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0x1E00, 0x1F00)):
        table[start:end] = LATIN
    table[[0xD7, 0xF7]] = OTHER
    for start, end in ((0x3400, 0x4DC0), (0xF900, 0xFB00), (0x20000, 0x323B0)):
        table[start:end] = HAN
    for code in range(0x4E00, 0xA000):
        simplified = bool(chr(code).encode("gb2312", "ignore"))
        big5 = chr(code).encode("big5", "ignore")
        common = bool(big5) and big5[0] < 0xC9
        table[code] = HANS if simplified and not big5 else HANT if common and not simplified else HAN
    return table


_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def _convert(text: str, script: str) -> str:
    if script == "keep" or not _HAN.search(text):
        return text
    counts = count_scripts(text)
    japanese = counts[KANA] * 10 > counts[HAN] + counts[HANS] + counts[HANT]
    if japanese or (script == "hant" and counts[HANT] > counts[HANS]) or (script == "hans" and not counts[HANT]):
        return text
    for config in _OPENCC[script]:
        text = _converter(config).convert(text)
    return text


def _convert_values(value: Any, script: str) -> Any:
    if isinstance(value, str):
        if "\\u" in value:
            with contextlib.suppress(ValueError):
                value = json.dumps(json.loads(value), ensure_ascii=False)
        return _convert(value, script)
    if isinstance(value, dict):
        return {_convert(key, script): _convert_values(item, script) for key, item in value.items()}
    return [_convert_values(item, script) for item in value] if isinstance(value, list) else value


@functools.cache
def _converter(config: str) -> Any:
    try:
        import opencc
    except ImportError:
        raise UserError("converting Chinese scripts needs OpenCC: pip install opencc (or keep scripts)") from None
    return opencc.OpenCC(config)


def opencc_version() -> str:
    """Version of the installed OpenCC, part of a cache's key. Raises UserError where it is not installed."""
    _converter("t2s")
    import opencc

    return str(opencc.__version__)
