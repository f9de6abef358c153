"""Log-probabilities of tokens in the forms of the two endpoints. A token that ends the answer is left out."""

import math
from collections.abc import Sequence
from typing import Any

from cutaway.generation.engine import Engine, Piece
from cutaway.tokenization.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0
"""Stands for minus infinity, which JSON lacks, as in OpenAI's answers."""


def shown_bytes(tokenizer: Tokenizer, index: int) -> bytes:
    """Bytes of a token; of a control token those of its name."""
    if index >= tokenizer.vocab_size:
        return b""
    name = tokenizer.control_text(index)
    return tokenizer.token_bytes(index) if name is None else name.encode()


def chat_logprobs(engine: Engine, piece: Piece) -> list[dict[str, Any]]:
    """`[{"token", "logprob", "bytes", "top_logprobs"}]` of the tokens of a step."""
    entries = []
    for index, logprob, top in _kept(engine, piece):
        best = [_entry(engine.tokenizer, other, value) for other, value in top]
        entries.append(_entry(engine.tokenizer, index, logprob) | {"top_logprobs": best})
    return entries


def completion_logprobs(engine: Engine, piece: Piece, offset: int) -> dict[str, list[Any]]:
    """`{"tokens", "token_logprobs", "top_logprobs", "text_offset"}` of the tokens of a step, in parallel lists.

    `offset` is the length of the text before; tokens that share a character share its place.
    """
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for index, logprob, top in _kept(engine, piece):
        lists["tokens"].append(_text(engine.tokenizer, index))
        lists["token_logprobs"].append(_finite(logprob))
        lists["top_logprobs"].append({_text(engine.tokenizer, other): _finite(value) for other, value in top})
        lists["text_offset"].append(offset)
    return lists


def _kept(engine: Engine, piece: Piece) -> Sequence[tuple[int, float, Sequence[tuple[int, float]]]]:
    tops = piece.top_logprobs or [[]] * len(piece.ids)
    rows = list(zip(piece.ids, piece.logprobs, tops, strict=True))
    if piece.completion is not None and rows and rows[-1][0] in engine.stop_ids:
        rows.pop()
    return rows


def _entry(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    data = shown_bytes(tokenizer, index)
    return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _text(tokenizer: Tokenizer, index: int) -> str:
    return shown_bytes(tokenizer, index).decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
