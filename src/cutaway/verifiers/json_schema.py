"""The part of JSON Schema that tools and verifiers need: types of Python to schemas, and checking values against them.

Patterns and references are left out on purpose: a pattern could take for ever, and a schema in a prompt should be read
in one go. A schema that uses what is not here is refused by `check_schema`, never half obeyed.
"""

import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from cutaway.errors import UserError

Schema = dict[str, Any]

TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
NOTES = {"description", "title", "default", "examples", "$schema"}
"""Keywords without an effect."""
KEYWORDS = {
    "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items",
    "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum",
}  # fmt: skip
MAX_DEPTH = 50


def type_schema(hint: Any) -> Schema:
    """The schema of a type: str, int, float, bool, dict, list, list[T], Literal, Optional, unions. Else UserError."""
    if hint is Any or hint is object:
        return {}
    if hint in (type(None), None):
        return {"type": "null"}
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in TYPES:
        return {"type": TYPES[hint]}
    if origin is list:
        return {"type": "array", "items": type_schema(arguments[0])}
    if origin is dict and arguments[0] is str:
        values = type_schema(arguments[1])
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if origin is Literal:
        kinds = {TYPES.get(type(value)) for value in arguments}
        kind = kinds.pop() if len(kinds) == 1 else None
        return {"type": kind, "enum": list(arguments)} if kind else {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _union([type_schema(part) for part in arguments])
    raise UserError(f"no JSON schema for {hint!r}: use str, int, float, bool, Literal, list, dict or Optional of these")


def _union(parts: list[Schema]) -> Schema:
    """Optional[X] is X with null among its types, the short form that OpenAI's strict schemas have too."""
    rest = [part for part in parts if part != {"type": "null"}]
    if len(rest) == len(parts) or len(rest) != 1 or "anyOf" in rest[0]:
        return {"anyOf": parts}
    schema = dict(rest[0])
    if "type" in schema:
        schema["type"] = [schema["type"], "null"]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def check_schema(schema: Any, where: str = "schema", depth: int = 0) -> str | None:
    """Why `schema` cannot be used, or None: unknown keywords and malformed values, which would be obeyed by nobody."""
    if not isinstance(schema, dict):
        return f"{where} must be an object, is {kind_of(schema)}"
    if depth > MAX_DEPTH:
        return f"{where}: nested more than {MAX_DEPTH} deep"
    for key, value in schema.items():
        if key not in KEYWORDS and key not in NOTES:
            return f"{where}: keyword {key!r} is not supported (supported: {', '.join(sorted(KEYWORDS))})"
        if reason := _check_keyword(key, value, where, depth):
            return reason
    return None


def _check_keyword(key: str, value: Any, where: str, depth: int) -> str | None:
    names = {*TYPES.values(), "null"}
    if key == "type":
        listed = value if isinstance(value, list) else [value]
        return None if listed and all(name in names for name in listed) else f"{where}: no type {value!r}"
    if key in ("enum", "required", "anyOf") and not isinstance(value, list):
        return f"{where}: {key} must be a list"
    if key == "required" and not all(isinstance(name, str) for name in value):
        return f"{where}: required must be a list of names"
    if key[:3] in ("min", "max") and not is_number(value):
        return f"{where}: {key} must be a number"
    parts: dict[str, Any] = {}
    if key == "properties":
        if not isinstance(value, dict):
            return f"{where}: properties must be an object"
        parts = {f"{where}.{name}": part for name, part in value.items()}
    elif key == "anyOf":
        parts = {f"{where}.anyOf[{i}]": part for i, part in enumerate(value)}
    elif key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
        parts = {f"{where}.{key}": value}
    return next((why for name, part in parts.items() if (why := check_schema(part, name, depth + 1))), None)


def mismatch(value: Any, schema: Mapping[str, Any], where: str = "value", depth: int = 0) -> str | None:
    """Why a JSON value does not fit the schema, in a few words that begin with `where`; None if it does."""
    if depth > MAX_DEPTH:
        return f"{where}: nested more than {MAX_DEPTH} deep"
    if "anyOf" in schema and all(mismatch(value, part, where, depth + 1) for part in schema["anyOf"]):
        wanted = " or ".join(describe(part) for part in schema["anyOf"])
        return f"{where} must be {wanted}, is {kind_of(value)}"
    if "type" in schema:
        listed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in listed):
            return f"{where} must be {describe(schema)}, is {kind_of(value)}"
    if "enum" in schema and not any(same(value, choice) for choice in schema["enum"]):
        return f"{where} must be {describe({'enum': schema['enum']})}"
    if "const" in schema and not same(value, schema["const"]):
        return f"{where} must be {schema['const']!r}"
    return _bounds(value, schema, where) or _members(value, schema, where, depth)


def _bounds(value: Any, schema: Mapping[str, Any], where: str) -> str | None:
    size: Any = None
    if isinstance(value, str):
        low, high, size, unit = schema.get("minLength"), schema.get("maxLength"), len(value), " characters"
    elif isinstance(value, list):
        low, high, size, unit = schema.get("minItems"), schema.get("maxItems"), len(value), " items"
    elif is_number(value):
        low, high, size, unit = schema.get("minimum"), schema.get("maximum"), value, ""
    else:
        return None
    if low is not None and size < low:
        return f"{where} must be at least {low}{unit}"
    return f"{where} must be at most {high}{unit}" if high is not None and size > high else None


def _members(value: Any, schema: Mapping[str, Any], where: str, depth: int) -> str | None:
    if isinstance(value, list) and "items" in schema:
        found = (mismatch(item, schema["items"], f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
        return next((why for why in found if why), None)
    if not isinstance(value, dict):
        return None
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", []):
        if name not in value:
            return f"{where}: {name!r} is missing"
    for name, member in value.items():
        part = properties.get(name, rest)
        if part is False:
            return f"{where}: {str(name)[:60]!r} is unknown (known: {', '.join(properties) or 'none'})"
        inside = where + "." + str(name)[:60]
        if part is not True and (why := mismatch(member, part, inside, depth + 1)):
            return why
    return None


def same(left: Any, right: Any, depth: int = 0) -> bool:
    """Equality of JSON values: 1 equals 1.0, but true is not 1."""
    if depth > MAX_DEPTH or isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b, depth + 1) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key], depth + 1) for key in left)
    return bool(left == right)


def is_number(value: Any) -> bool:
    """An int or a finite float; true and false are none."""
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    )


def _is(value: Any, name: str) -> bool:
    if name == "number":
        return is_number(value)
    if name == "integer":
        return is_number(value) and value == int(value)
    kinds: dict[str, Any] = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    return isinstance(value, kinds[name])


_WORDS = {
    "string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false",
    "object": "an object", "array": "a list", "null": "null",
}  # fmt: skip


def describe(schema: Mapping[str, Any]) -> str:
    """What a value must be, in words."""
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    listed = schema.get("type", [])
    return " or ".join(_WORDS[name] for name in (listed if isinstance(listed, list) else [listed])) or "any value"


def kind_of(value: Any) -> str:
    """The JSON type of a Python value, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    names = {bool: "boolean", type(None): "null", str: "string", int: "integer", float: "number", list: "array"}
    return _WORDS[names.get(type(value), "object")]
