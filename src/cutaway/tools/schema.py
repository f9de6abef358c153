"""From a typed Python function to the schema that a model is shown."""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from cutaway.errors import UserError
from cutaway.verifiers.json_schema import Schema, type_schema

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SECTION = re.compile(r"\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?)\s*:\s*")
_ENTRY = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*[:：]\s*(.*)")


class ToolError(Exception):
    """Raised in a tool to tell the model what is wrong with its call; the message is the observation."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Schema
    function: Callable[..., Any]

    def schema(self) -> dict[str, Any]:
        """As OpenAI's API and Hermes' chat template have it."""
        inner = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": inner}


def make_tool(function: Callable[..., Any], name: str | None = None) -> Tool:
    """The tool of a function.

    Every parameter needs a type: str, int, float, bool, Literal, list, dict or Optional of these. The docstring's text
    before its sections is the description; `Args:` describes the parameters (Google style). UserError for a function
    that cannot be one: no types, `*args`, positional-only parameters, a coroutine.
    """
    inner = inspect.unwrap(function)
    name = name or str(getattr(inner, "__name__", "tool"))
    if not _NAME.fullmatch(name):
        raise UserError(f"tool {name!r}: a name has letters, digits, _ and -, at most 64")
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise UserError(f"tool {name}: must be a plain function, not a coroutine")
    description, described = _docstring(inspect.getdoc(inner) or "")
    hints = get_type_hints(inner)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for parameter in inspect.signature(inner).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"tool {name}: parameter {parameter.name} must be an ordinary or keyword-only one")
        if parameter.name not in hints:
            raise UserError(f"tool {name}: parameter {parameter.name} has no type")
        try:
            schema = type_schema(hints[parameter.name])
        except UserError as error:
            raise UserError(f"tool {name}: parameter {parameter.name}: {error}") from None
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif parameter.default is not None:
            schema["default"] = _plain(parameter.default, f"tool {name}: default of {parameter.name}")
        properties[parameter.name] = schema
    if unknown := described.keys() - properties.keys():
        raise UserError(f"tool {name}: its docstring describes {', '.join(sorted(unknown))}, which it does not take")
    return Tool(name, description, {"type": "object", "properties": properties, "required": required}, function)


def tool_schema(function: Callable[..., Any], name: str | None = None) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "description", "parameters"}}` of a function; see `make_tool`."""
    return make_tool(function, name).schema()


def _plain(value: Any, where: str) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise UserError(f"{where} must be a JSON value, is {value!r}") from None


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description on one line, and what `Args:` says of each parameter."""
    summary: list[str] = []
    described: dict[str, list[str]] = {}
    section, indent, current = "", 0, ""
    for line in text.splitlines():
        if found := _SECTION.fullmatch(line):
            section, indent = found.group(1), 0
        elif not section:
            summary.append(line.strip())
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            indent = indent or depth
            entry = _ENTRY.fullmatch(line.strip()) if depth <= indent else None
            if entry:
                current = entry.group(1)
                described[current] = [entry.group(2)]
            elif current:
                described[current].append(line.strip())
    words = {name: " ".join(part for part in parts if part) for name, parts in described.items()}
    return " ".join(part for part in summary if part), words
