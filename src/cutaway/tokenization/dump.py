"""Looking at token ids: every token in a box, the trained ones in colour (`--dump-tokens`)."""

import html
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from cutaway.tokenization.tokenizer import Tokenizer

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tokens</title><style>
body {{ font: 15px/2 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222; background: #fff }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
span {{ border: 1px solid #ccc; border-radius: 3px; padding: 1px 2px; color: #777 }}
span.t {{ background: #cdeccd; border-color: #7a7; color: #030 }}
span.c {{ font-style: italic; font-size: 85% }}
</style></head><body>
<h1>Tokens</h1><p>Green tokens are trained: the loss asks the model to predict them. Grey ones are context only.
Characters split over tokens show as their bytes.</p>
{rows}
</body></html>
"""


def token_label(index: int, tokenizer: Tokenizer) -> str:
    """What one token shows as: its text, with bytes that are no whole character as ⟨e4⟩ and whitespace made visible."""
    name = tokenizer.control_text(index)
    if name is not None:
        return name
    # Undecodable bytes come back as the surrogates U+DC80 to U+DCFF, one a byte.
    text = tokenizer.token_bytes(index).decode("utf-8", "surrogateescape")
    return "".join(_visible(character) for character in text) or "⟨⟩"


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"⟨{ord(character) - 0xDC00:02x}⟩"
    named = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}
    return named.get(character, character if character.isprintable() else f"⟨{character.encode().hex(' ')}⟩")


def dump_terminal(ids: Sequence[int], mask: Sequence[bool] | None, tokenizer: Tokenizer) -> Text:
    """One row of tokens for a rich console: trained ones green, others dim; no mask means that all are trained."""
    line = Text()
    for index, trained in zip(ids, _mask(ids, mask), strict=True):
        label = token_label(index, tokenizer)
        style = "black on green" if trained else "dim"
        line.append(label, style=style + (" italic" if tokenizer.control_text(index) else ""))
        line.append("\n" if "↵" in label else "|", style="dim")
    return line


def dump_html(
    rows: Sequence[tuple[Sequence[int], Sequence[bool] | None]], tokenizer: Tokenizer, path: str | Path
) -> Path:
    """A page by itself (no scripts, nothing loaded) with every row of `(ids, mask)`; hovering shows id and bytes."""
    blocks = [f"<h2>Row {number}</h2>\n<p>{_row(ids, mask, tokenizer)}</p>" for number, (ids, mask) in enumerate(rows)]
    target = Path(path)
    target.write_text(_PAGE.format(rows="\n".join(blocks)), encoding="utf-8")
    return target


def _row(ids: Sequence[int], mask: Sequence[bool] | None, tokenizer: Tokenizer) -> str:
    spans = []
    for index, trained in zip(ids, _mask(ids, mask), strict=True):
        label = token_label(index, tokenizer)
        kinds = ("t" if trained else "") + (" c" if tokenizer.control_text(index) else "")
        hint = f"{index}: {tokenizer.token_bytes(index).hex(' ') or 'control token'}"
        spans.append(f'<span class="{kinds.strip()}" title="{hint}">{html.escape(label)}</span>')
        if "↵" in label:
            spans.append("\n")
    return "".join(spans)


def _mask(ids: Sequence[int], mask: Sequence[bool] | None) -> Sequence[bool]:
    return [True] * len(ids) if mask is None else mask
