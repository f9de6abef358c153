"""One way to write the same text: composed characters, plain spaces and newlines, nothing that cannot be seen."""

import re
import unicodedata

_INVISIBLE = "\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069"
_ODD = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u2000-\u200a\u2028\u2029\u202f\u205f{_INVISIBLE}]")
_DROPPED = (
    *(*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x2060, 0xFEFF),
    *(*range(0x202A, 0x202F), *range(0x2066, 0x206A)),
)
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(_DROPPED),
    **dict.fromkeys((0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029), "\n"),
    **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F), " "),
    0x09: "\t",
}
_TRAILING = re.compile(r"[ \t\u3000]+\n")
_EMPTY_LINES = re.compile(r"\n{3,}")

_BROKEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\ufff0-\uffff]")


def count_broken(text: str) -> int:
    """Characters that no text has and a wrong decoding leaves behind: controls, private use, replacement characters."""
    return len(_BROKEN.findall(text))


def normalise_text(text: str, nfkc: bool = False) -> str:
    """NFC, newlines as \\n, special spaces as a space, no control and no invisible formatting characters, no spaces at
    the end of a line, at most one empty line in a row, none at either end.

    The joiners that emoji and Persian need stay, as do indentation and the full-width space. With `nfkc`, NFKC instead:
    full-width letters, digits and punctuation, Chinese commas among them, become ASCII.
    """
    form = "NFKC" if nfkc else "NFC"
    if not text.isascii() and not unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    if _ODD.search(text):
        text = text.replace("\r\n", "\n").translate(_TABLE)
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:
        text = _TRAILING.sub("\n", text)
    if "\n\n\n" in text:
        text = _EMPTY_LINES.sub("\n\n", text)
    # A document that begins with an indented line keeps the indentation.
    return text.rstrip(" \t\n\u3000").lstrip("\n")
