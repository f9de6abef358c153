"""Verifiers of the form of an answer: format_json, regex_format, length, language."""

import functools
import json
import re
import unicodedata
from typing import Any, Literal

from cutaway.errors import UserError
from cutaway.verifiers.json_schema import Schema, check_schema, mismatch
from cutaway.verifiers.regex import MAX_TEXT, compile_pattern
from cutaway.verifiers.text import MAX_ANSWER
from cutaway.verifiers.verdict import Verdict, failed, passed

Unit = Literal["characters", "words", "lines"]
Language = Literal["en", "zh-Hant", "zh-Hans"]

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"


def format_json(
    answer: str,
    keys: list[str] | None = None,
    schema: Schema | None = None,
    expected: Any = None,
    fenced: bool = True,
) -> Verdict:
    """The answer is one JSON value and nothing else; an object with exactly `keys` (any order), a value that fits
    `schema` (see `json_schema`), a value equal to `expected`, where these are given. With `fenced` a Markdown code
    block around it is allowed. Valid JSON that fails a condition scores 0.5; `NaN` and repeated keys are no JSON here.
    """
    if schema is not None and (why := check_schema(schema)):
        raise UserError(why)
    text = answer.strip()
    block = _FENCE.fullmatch(text) if fenced else None
    value, why = load_json(block.group(1) if block else text)
    if why:
        return failed(why)
    if keys is not None and (not isinstance(value, dict) or value.keys() != set(keys)):
        return failed(f"must be an object with the keys {', '.join(sorted(keys))}", 0.5)
    if schema is not None and (why := mismatch(value, schema, "answer")):
        return failed(why, 0.5)
    if expected is not None and mismatch(value, {"const": expected}):
        return failed("valid JSON with other content than expected", 0.5)
    return passed("valid JSON")


def load_json(text: str) -> tuple[Any, str | None]:
    """The value and None, or None and why the text is not JSON. Never raises."""
    if len(text) > MAX_ANSWER:
        return None, f"longer than {MAX_ANSWER} characters"
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object), None
    except json.JSONDecodeError as error:
        return None, f"not valid JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return None, "not valid JSON: nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON: {str(error)[:100]}"


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key occurs twice")
    return members


def regex_format(answer: str, pattern: str, whole: bool = True, dot_all: bool = False) -> Verdict:
    """The answer, stripped, matches `pattern`: as a whole, or somewhere in it. With `dot_all` a dot matches a newline.

    An automaton decides, in time proportional to pattern times answer; answers over MAX_TEXT characters fail. What
    patterns may hold: `regex.compile_pattern`.
    """
    automaton = compile_pattern(pattern, whole, dot_all)
    text = answer.strip()
    if len(text) > MAX_TEXT:
        return failed(f"longer than {MAX_TEXT} characters")
    return passed("matches") if automaton.matches(text) else failed(f"does not match {pattern[:60]}")


def length(answer: str, minimum: int = 0, maximum: int | None = None, unit: Unit = "characters") -> Verdict:
    """The answer, stripped, has `minimum` to `maximum` units. A Chinese character is a word; blank lines do not count.

    The score falls in proportion to how far the length lies outside.
    """
    if minimum < 0 or (maximum is not None and maximum < max(minimum, 1)):
        raise UserError("minimum must be 0 or more, and maximum at least minimum and 1")
    text = answer.strip()
    if unit == "characters":
        size = len(text)
    elif unit == "lines":
        size = sum(bool(line.strip()) for line in text.splitlines())
    else:
        size = len(re.findall(rf"[{_HAN}]|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*", text))
    if size < minimum:
        return failed(f"{size} {unit}, fewer than {minimum}", size / minimum)
    if maximum is not None and size > maximum:
        return failed(f"{size} {unit}, more than {maximum}", maximum / size)
    return passed(f"{size} {unit}")


def language(answer: str, expected: Language, tolerance: float = 0.05) -> Verdict:
    """The answer is written in English, Traditional or Simplified Chinese.

    Counted over letters and Chinese characters (a run of Latin letters is one): the share of the other kind, Latin in
    Chinese text aside, must not exceed `tolerance`; among characters of one script only, neither may those of the other
    script. Text of characters that both scripts share passes as either. Chinese must outweigh Latin words.
    """
    if not 0 <= tolerance < 1:
        raise UserError("tolerance must be at least 0 and below 1")
    counts = {"han": 0, "hans": 0, "hant": 0}
    for char in answer:
        if kind := _script(char):
            counts[kind] += 1
    latin = len(re.findall(r"[A-Za-zÀ-ɏ]+", unicodedata.normalize("NFKC", answer)))
    chinese = sum(counts.values())
    if not chinese + latin:
        return failed("no letters")
    if expected == "en":
        share = chinese / (chinese + latin)
        return passed("English") if share <= tolerance and latin else failed(f"{share:.0%} Chinese", 1 - share)
    other, own = ("hans", "hant") if expected == "zh-Hant" else ("hant", "hans")
    if chinese <= latin:
        return failed("mostly Latin letters", chinese / (chinese + latin))
    share = counts[other] / max(1, counts[other] + counts[own])
    name = {"hans": "Simplified", "hant": "Traditional"}[other]
    return passed(expected) if share <= tolerance else failed(f"{share:.0%} of what tells is {name} Chinese", 1 - share)


@functools.cache
def _script(char: str) -> str | None:
    """`hans` for characters in GB 2312 that Big5 lacks, `hant` for those of Big5's common plane that GB 2312 lacks,
    `han` for other Chinese characters, None for the rest."""
    if not re.match(f"[{_HAN}]", char):
        return None
    big5 = char.encode("big5", "ignore")
    simplified = bool(char.encode("gb2312", "ignore"))
    return "hans" if simplified and not big5 else "hant" if big5 and big5[0] < 0xC9 and not simplified else "han"
