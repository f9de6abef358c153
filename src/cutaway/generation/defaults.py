"""How an answer is sampled where nobody says otherwise: in `cutaway chat`, in `benchmarks/behaviour.py`, and, through
`generation_config.json`, in every other runtime that loads the model."""

import json
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.generation.sampling import Sampling
from cutaway.tokenization.tokenizer import IM_END, Tokenizer

CHAT = Sampling(temperature=1.0, top_k=0, top_p=0.9, min_p=0.0)
"""A small model that is cooled down falls into loops: measured on `nano`, at temperature 0.7 a third of the answers
never ended and two fifths repeated themselves. At 1.0 it does not, and top-p cuts the long tail of wrong words, so no
repetition penalty is needed (benchmarks/RESULTS.md)."""

MAX_NEW_TOKENS = 512
"""Longest answer of a chat."""


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer or a document: `<|im_end|>` where there is one, and the end of text."""
    turn_end = tokenizer.control_ids.get(IM_END)
    return tuple(dict.fromkeys(token for token in (turn_end, tokenizer.eos_id) if token is not None))


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `generation_config.json` of a trained model. `top_k` 0 is written since absent means 50 to Transformers 4."""
    return {
        "do_sample": True,
        "temperature": CHAT.temperature,
        "top_k": CHAT.top_k,
        "top_p": CHAT.top_p,
        "min_p": CHAT.min_p,
        "max_new_tokens": MAX_NEW_TOKENS,
        "eos_token_id": list(stop_ids(tokenizer)),
        "pad_token_id": tokenizer.eos_id,
    }


def load_sampling(directory: Path) -> Sampling:
    """The sampling that a model's `generation_config.json` asks for; `CHAT` where it has none.

    Keys that are absent count as off, as their authors' tools read them. UserError where the file is no JSON object or
    has an impossible value.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return CHAT
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        keys = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        wanted = {key: table[key] for key in keys if table.get(key) is not None}
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object: {error}") from None
    if not wanted:
        return CHAT
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in wanted.values())
    if not numbers or wanted.get("top_k", 0) != int(wanted.get("top_k", 0)):
        raise UserError(f"{path}: all settings of sampling must be numbers and top_k a whole one")
    return Sampling(**wanted)
