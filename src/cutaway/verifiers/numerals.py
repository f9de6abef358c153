"""Numbers as people write them (1,234.5, 1/3, 25%, 一百二十三, 三點一四, 1.5萬), read as exact fractions."""

import re
import unicodedata
from fractions import Fraction

DIGITS = "零一二三四五六七八九"
_VARIANTS = str.maketrans(
    "〇○兩两壹貳贰參叁叄肆伍陸陆柒捌玖拾佰仟万亿点负",
    "零零二二一二二三三三四五六六七八九十百千萬億點負",
)
_BIG = (("兆", 10**12), ("億", 10**8), ("萬", 10**4))
_SECTION = re.compile(
    r"(?:([一二三四五六七八九])千)?(?:(零?)([一二三四五六七八九])百)?(?:(零?)([一二三四五六七八九]?)十)?(?:(零?)([一二三四五六七八九]))?"
)
_MAX_LENGTH = 400

_HAN = "零〇○一二三四五六七八九十百千萬万億亿兆兩两壹貳贰參叁肆伍陸陆柒捌玖拾佰仟"
_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?![\dA-Za-z]))?|(?<!\d)\.\d+"
_SIGN = r"(?:(?<![0-9A-Za-z)_])[+-])?"
_NUMBER = re.compile(
    rf"(?P<arabic>{_SIGN}(?:{_ARABIC})(?:/(?:{_ARABIC}))?%?[萬万億亿]?)"
    rf"|(?P<han>[負负]?(?:百分之|[{_HAN}]+分之)?[{_HAN}]+(?:[點点][{_HAN}]+)?)"
)
_NOT_NUMBERS = re.compile(
    rf"(?<![{_HAN}])(?:一(?:起|些|定|樣|样|般|直|共|切|下|致|旦|邊|边|面|半|會|会)|[統统唯第]一|(?<!分)之一|[萬万]一(?![{_HAN}])"
    rf"|十分(?!之)|千[萬万](?=不|別|别|要)|一[點点](?![{_HAN}])|星期[一二三四五六]|百姓|四周|三明治)"
)


def normal_digits(text: str) -> str:
    """NFKC, with U+2212 as a minus sign; a full-width comma joins digits only between full-width digits."""
    apart = re.sub("(?<![０-９])，|，(?![０-９])", "， ", text)
    return unicodedata.normalize("NFKC", apart).replace("−", "-")


def read_chinese(text: str) -> Fraction | None:
    """The value of a Chinese numeral, None where it is none: integers below 10^16, decimals, 負, 百分之, X分之Y.

    Both scripts, 兩/两, financial digits, digits in a row (二〇二五), and the short forms 一百二 (120), 三萬五 (35000).
    """
    if not text or len(text) > _MAX_LENGTH:
        return None
    text = text.translate(_VARIANTS)
    if text.startswith("負"):
        value = read_chinese(text[1:]) if not text.startswith("負負") else None
        return None if value is None else -value
    if "分之" in text:
        below, _, above = text.partition("分之")
        numerator = read_chinese(above)
        denominator = Fraction(100) if below == "百" else read_chinese(below)
        return None if numerator is None or not denominator else numerator / denominator
    whole, point, decimals = text.partition("點")
    integer = _integer(whole)
    if integer is None or (point and (not decimals or any(char not in DIGITS for char in decimals))):
        return None
    places = "".join(str(DIGITS.index(char)) for char in decimals)
    return Fraction(integer) + (Fraction(int(places), 10 ** len(places)) if places else 0)


def _integer(text: str) -> int | None:
    if not text:
        return None
    if len(text) > 1 and all(char in DIGITS for char in text):
        return int("".join(str(DIGITS.index(char)) for char in text))
    for unit, size in _BIG:
        if unit not in text:
            continue
        head, _, tail = text.rpartition(unit)
        high = _integer(head)
        if not high or (unit == "萬" and high >= 10**4) or high >= 10**8:
            return None
        if not tail:
            return high * size
        if len(tail) == 1 and tail in DIGITS[1:]:
            return high * size + DIGITS.index(tail) * size // 10
        low = _integer(tail[1:] if tail[0] == "零" else tail)
        return None if low is None or low >= size else high * size + low
    return 0 if text == "零" else _section(text)


def _section(text: str) -> int | None:
    """A numeral below 10^4."""
    found = _SECTION.fullmatch(text)
    if not found:
        return None
    thousands, _, hundreds, _, tens, gap, ones = (found.group(i) or "" for i in range(1, 8))
    value = 1000 * DIGITS.find(thousands or "零") + 100 * DIGITS.find(hundreds or "零")
    if found.group(5) is not None:
        value += 10 * (DIGITS.index(tens) if tens else 1)
    if ones:
        short = not gap and found.group(5) is None and (hundreds or thousands)
        unit = (10 if hundreds else 100) if short else 1
        value += unit * DIGITS.index(ones)
    return value


def write_chinese(number: int, *, simplified: bool = False) -> str:
    """An integer below 10^16 in absolute value as a Chinese numeral: 一百零五, 十二, 三億零四十."""
    if abs(number) >= 10**16:
        raise ValueError("write_chinese: the number must be below 10^16")
    text = "零" if number == 0 else _write(abs(number))
    text = ("負" if number < 0 else "") + (text[1:] if text.startswith("一十") else text)
    return text.translate(str.maketrans("萬億負", "万亿负")) if simplified else text


def _write(number: int) -> str:
    for unit, size in (*_BIG, ("千", 1000), ("百", 100), ("十", 10)):
        if number >= size:
            rest = number % size
            gap = "零" if rest and rest < size // 10 else ""
            return _write(number // size) + unit + (gap + _write(rest) if rest else "")
    return DIGITS[number]


def read_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None otherwise. `50%` is 1/2, `1.5萬` is 15000."""
    text = normal_digits(text).strip()
    found = _NUMBER.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    return _value(found) if found else None


def numbers_in(text: str) -> list[tuple[Fraction, str]]:
    """Every number in `text`, in order, with how it is written. Words such as 一起 and 十分 are no numbers."""
    text = _NOT_NUMBERS.sub(lambda found: "_" * len(found.group()), text)
    values = ((_value(found), found.group()) for found in _NUMBER.finditer(text))
    return [(value, written) for value, written in values if value is not None]


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found.group()) > _MAX_LENGTH:
        return None
    if found.group("han"):
        return read_chinese(found.group("han"))
    text = found.group("arabic").replace(",", "")
    scale = Fraction({"萬": 10**4, "万": 10**4, "億": 10**8, "亿": 10**8}.get(text[-1], 1))
    text = text.rstrip("萬万億亿")
    if text.endswith("%"):
        text, scale = text[:-1], scale / 100
    above, _, below = text.partition("/")
    divisor = Fraction(below) if below else Fraction(1)
    return Fraction(above) / divisor * scale if divisor else None
