"""Verifiers of what an answer says in words: exact, contains, contains_all, choice, refusal."""

import re
import unicodedata
from fractions import Fraction

from cutaway.errors import UserError
from cutaway.verifiers.numerals import normal_digits, numbers_in, read_number
from cutaway.verifiers.verdict import Verdict, failed, passed, shown

MAX_ANSWER = 20_000
"""Characters of an answer that are looked at, counted from its end: what counts stands there."""

_PUNCTUATION = str.maketrans("、，。！？；：「」『』“”‘’（）【】《》", ',,.!?;:""\'\'""\'\'()[]""')
_ENDS = " \t\r\n.!?,;:~…*_`\"'"
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_DIGIT = re.compile("[0-9]")
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
"""A number with commas in it: without a space, before exactly three digits."""
_TOLERANCE = Fraction(1, 10**6)
_MARKER = re.compile(
    r"(?:最[終终]答案|答案|正解|[應应]?[該该]?[選选]擇?择?(?:的是|項|项)?|選項|选项"
    r"|final answer|(?:the )?correct (?:answer|option|choice)|(?:the |my )?answer|option|choice)"
    r"\s*(?:是|為|为|應為|应为|is|:|=)*\s*",
    re.IGNORECASE,
)
_REFUSALS = (
    "不知道", "不清楚", "不曉得", "不晓得", "沒有提到", "没有提到", "沒有說", "没有说",
    "沒有記載", "没有记载", "沒有資料", "没有资料", "沒有相關", "没有相关",
    "無法回答", "无法回答", "無法得知", "无法得知", "無法確定", "无法确定",
    "不能回答", "沒辦法回答", "没办法回答", "查不到", "並未提及", "并未提及", "無從得知", "无从得知",
    "i don't know", "i do not know", "i'm not sure", "i am not sure", "does not say", "doesn't say", "not mentioned",
    "no information", "cannot answer", "can't answer", "cannot say", "can't say", "not known", "no record",
    "unable to answer",
)  # fmt: skip


def normalise(text: str) -> str:
    """The form in which answers are compared.

    NFKC (full-width letters and digits become ASCII), case folded, Chinese punctuation as its ASCII counterpart, white
    space collapsed and dropped beside Chinese characters and after punctuation, and punctuation, quotation marks and
    Markdown emphasis at either end removed. A minus sign, brackets and everything inside the answer stay.
    """
    text = unicodedata.normalize("NFKC", text.translate(_PUNCTUATION)).translate(_PUNCTUATION).replace("−", "-")
    text = " ".join(text.casefold().split()).strip(_ENDS)
    text = re.sub(rf"(?<=[{_HAN}]) | (?=[{_HAN}])", "", text)
    return re.sub(r" ?([,;:!?\"']) ?", r"\1", text)


def exact(answer: str, expected: str | list[str]) -> Verdict:
    """The answer is `expected`, or one of several, after `normalise`."""
    wanted = _texts(expected)
    got = normalise(answer[-MAX_ANSWER:])
    if any(got == normalise(text) for text in wanted):
        return passed("equal")
    return failed(f"{shown(answer)} is not {' or '.join(map(shown, wanted[:4]))}")


def contains(answer: str, expected: str | list[str], without: list[str] | None = None) -> Verdict:
    """The answer contains `expected` (or one of several) and nothing of `without`. A number or a Latin word must stand
    alone: 12 is not in 112 or 12.5. A number in digits is also found by its value: 9472 in 9,472, 12 in 12.0."""
    return _contains(answer, _texts(expected), without, needed=1)


def contains_all(answer: str, expected: list[str], without: list[str] | None = None) -> Verdict:
    """The answer contains every text of `expected` and nothing of `without`, found as in `contains`; the score is the
    share found."""
    wanted = _texts(expected)
    return _contains(answer, wanted, without, needed=len(wanted))


def _contains(answer: str, wanted: list[str], without: list[str] | None, needed: int) -> Verdict:
    unwanted = _texts(without) if without else []
    answer = normal_digits(answer[-MAX_ANSWER:])
    text, numbers = _ungrouped(answer), {value for value, written in numbers_in(answer) if _DIGIT.search(written)}
    for part in unwanted:
        if _stands_in(part, text, numbers):
            return failed(f"contains {shown(part)}")
    missing = [part for part in wanted if not _stands_in(part, text, numbers)]
    found = len(wanted) - len(missing)
    if found >= needed:
        return passed("contained")
    return failed(f"does not contain {', '.join(map(shown, missing[:4]))}", found / needed)


def _stands_in(part: str, text: str, numbers: set[Fraction]) -> bool:
    number = read_number(part) if _DIGIT.search(part) else None
    if number is not None and any(abs(number - found) <= _TOLERANCE for found in numbers):
        return True
    wanted = _ungrouped(part)
    before = r"(?<![0-9])(?<![0-9]\.)" if wanted[0].isdigit() else r"(?<![a-z])" if wanted[0].isalpha() else ""
    after = r"(?![0-9])(?!\.[0-9])" if wanted[-1].isdigit() else r"(?![a-z])" if wanted[-1].isalpha() else ""
    latin = (wanted[0].isascii() and before) or "", (wanted[-1].isascii() and after) or ""
    return re.search(latin[0] + re.escape(wanted) + latin[1], text) is not None


def _ungrouped(text: str) -> str:
    """`normalise`, and 1,234 as 1234: the commas that are left stand between numbers, as in 12, 13."""
    return normalise(_GROUPED.sub(lambda found: found.group().replace(",", ""), normal_digits(text)))


def _texts(expected: str | list[str]) -> list[str]:
    wanted = [expected] if isinstance(expected, str) else expected
    if not wanted or not all(normalise(text) for text in wanted):
        raise UserError("expected must hold at least one text, and none that is only white space or punctuation")
    return wanted


def choice(answer: str, expected: str, options: str = "ABCD") -> Verdict:
    """The option letter that the answer gives is `expected`.

    Looked for in this order: `\\boxed{}`; after the last marker (the answer is, 答案是, 選); the whole answer; a letter
    that begins it and is followed by punctuation; the only capital letter of `options` that stands alone.
    """
    letters = options.upper()
    if len(set(letters)) < 2 or not re.fullmatch("[A-Z]+", letters):
        raise UserError("options must be two or more letters, such as ABCD")
    if len(expected) != 1 or expected.upper() not in letters:
        raise UserError(f"expected must be one letter of {letters}")
    got = find_choice(answer, letters)
    if got is None:
        return failed(f"no single option among {letters} in {shown(answer)}")
    return passed(f"chose {got}") if got == expected.upper() else failed(f"chose {got}, not {expected.upper()}")


def find_choice(answer: str, options: str = "ABCD") -> str | None:
    """The option letter that an answer gives (see `choice`), None where there is none or more than one."""
    text = unicodedata.normalize("NFKC", answer[-MAX_ANSWER:]).replace("**", "").replace("__", "").strip()
    either = f"[{options}{options.lower()}]"
    alone = rf"[(\[\"'「『]?({either})[)\]\"'」』]?"
    boxed = re.findall(rf"\\boxed\s*\{{\s*(?:\\text\{{)?\(?({either})\)?\s*\}}", text)
    if boxed:
        return str(boxed[-1]).upper()
    for marker in reversed(list(_MARKER.finditer(text))):
        rest = text[marker.end() :]
        if found := re.match(rf"[(\[\"'「『]?([{options}])(?![A-Za-z0-9])", rest):
            return found.group(1)
        if found := re.match(rf"{alone}\s*(?:[.。,，;!]|$)", rest):
            return found.group(1).upper()
    if found := re.fullmatch(rf"{alone}\s*[.。,、:!]?", text):
        return found.group(1).upper()
    if found := re.match(rf"(?:\(({either})\)|([{options}])\s*[.。,、:)])(?![A-Za-z0-9])", text):
        return (found.group(1) or found.group(2)).upper()
    standing = set(re.findall(rf"(?<![A-Za-z0-9'])([{options}])(?![A-Za-z0-9'])", text))
    return standing.pop() if len(standing) == 1 else None


def refusal(answer: str, expected: bool = True, phrases: list[str] | None = None) -> Verdict:
    """The answer says that it does not know (`expected` true) or does not say so (false).

    Recognised by phrases: `phrases`, or a built-in list in Traditional Chinese, Simplified Chinese and English.
    """
    wanted = _texts(phrases) if phrases is not None else list(_REFUSALS)
    text = normalise(answer[-MAX_ANSWER:]).replace("’", "'")
    found = next((phrase for phrase in wanted if normalise(phrase) in text), None)
    what = "no phrase of refusal" if found is None else f"says {shown(found)}"
    return passed(what) if (found is not None) == expected else failed(what)
