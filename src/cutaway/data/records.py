"""What a record of each kind must look like; the reason why a bad one is refused is one short sentence."""

import json
from typing import Any, Literal, get_args

from cutaway.errors import UserError
from cutaway.tokenization.messages import normalise, validate_conversation

Kind = Literal["pretrain", "sft", "preference", "rl", "multiple_choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class BadRecordError(Exception):
    """One record cannot be used; the message is the reason, without file and line."""


def parse_record(raw: bytes | dict[str, Any], kind: Kind | None) -> dict[str, Any]:
    """Parse one line (or take a row that is parsed already) and validate it as `kind`; None: found from the keys.

    Raises BadRecordError with the reason.
    """
    value = parse_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(value, dict):
        raise BadRecordError(f"a record must be a JSON object, this is {_type(value)}")
    validate(value, kind or detect_kind(value))
    return value


def parse_json(raw: bytes) -> Any:
    """Decode one line. Raises BadRecordError: invalid UTF-8 or JSON, nested too deeply, half a surrogate pair."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecordError(f"invalid JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BadRecordError("invalid JSON: nested too deeply") from None
    except ValueError as error:
        raise BadRecordError(f"invalid JSON: {error}") from None
    if "\\u" in text and _has_surrogate(value):
        raise BadRecordError("half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    return value


def detect_kind(value: dict[str, Any]) -> Kind:
    """The kind of a record by its keys. A conversation without an assistant, or with `gt` or a verifier, is for RL."""
    if "text" in value:
        return "pretrain"
    if "chosen" in value or "rejected" in value:
        return "preference"
    if "question" in value and "choices" in value:
        return "multiple_choice"
    if "conversations" in value:
        if any(value.get(key) is not None for key in ("gt", "verifier", "environment")):
            return "rl"
        turns = value["conversations"]
        if isinstance(turns, list) and not any(isinstance(t, dict) and t.get("role") == "assistant" for t in turns):
            return "rl"
        return "sft"
    keys = ", ".join(map(str, list(value)[:8])) or "none"
    raise BadRecordError(
        f"no known kind of record has these keys: {keys} (known: text; conversations; chosen; question)"
    )


def validate(value: dict[str, Any], kind: Kind) -> None:
    """Raise BadRecordError where the record is not of `kind`."""
    if kind == "pretrain":
        _need_text(value, "text")
    elif kind == "sft":
        _conversation(value, "conversations")
        if reason := validate_conversation(value["conversations"]):
            raise BadRecordError(reason)
    elif kind == "preference":
        for key in ("chosen", "rejected"):
            if _conversation(value, key)[-1]["role"] != "assistant":
                raise BadRecordError(f"'{key}' must end with an assistant turn")
        if value["chosen"][0] != value["rejected"][0]:
            raise BadRecordError("'chosen' and 'rejected' start with different turns, they must answer the same prompt")
    elif kind == "rl":
        _validate_rl(value)
    else:
        _validate_multiple_choice(value)


def _validate_rl(value: dict[str, Any]) -> None:
    turns = _conversation(value, "conversations")
    if not any(turn["role"] == "user" for turn in turns):
        raise BadRecordError("no user turn to answer")
    if not isinstance(value.get("gt"), (str, int, float, list, type(None))):
        raise BadRecordError(f"'gt' must be a string, a number or a list, is {_type(value['gt'])}")
    for key, member in (("verifier", "name"), ("environment", "name")):
        part = value.get(key)
        if part is not None and not (isinstance(part, dict) and isinstance(part.get(member), str)):
            raise BadRecordError(f"'{key}' must be an object with a string '{member}'")


def _validate_multiple_choice(value: dict[str, Any]) -> None:
    _need_text(value, "question")
    choices, answer = value.get("choices"), value.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise BadRecordError("'choices' must be a list of two or more strings")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRecordError(f"'answer' must be an index from 0 to {len(choices) - 1}, is {answer!r}")


def _conversation(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The turns as they are in the record, once they are known to be a conversation."""
    if key not in value:
        raise BadRecordError(f"'{key}' is missing")
    turns = value[key]
    if not isinstance(turns, list) or not turns:
        raise BadRecordError(f"'{key}' must be a list of at least one turn, is {_type(turns) if turns else 'empty'}")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRecordError(f"'{key}': turn {number} must be an object with role and content, is {_type(turn)}")
    try:
        normalise(turns)
    except UserError as error:
        raise BadRecordError(f"'{key}': {error}") from None
    return turns


def _need_text(value: dict[str, Any], key: str) -> None:
    text = value.get(key)
    if not isinstance(text, str):
        raise BadRecordError(f"'{key}' must be a string, is {_type(text) if key in value else 'missing'}")
    if not text.strip():
        raise BadRecordError(f"'{key}' is empty")


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, dict):
        return any(_has_surrogate(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(_has_surrogate(item) for item in value)


def _type(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
