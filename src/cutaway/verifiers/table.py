"""Verifiers by name, for records: `"verifier": {"name": "numeric", "args": {"expected": 42}}`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from cutaway.errors import UserError
from cutaway.verifiers.calls import tool_calls
from cutaway.verifiers.form import format_json, language, length, regex_format
from cutaway.verifiers.json_schema import Schema, kind_of, mismatch, type_schema
from cutaway.verifiers.numeric import numeric
from cutaway.verifiers.text import choice, contains, contains_all, exact, refusal
from cutaway.verifiers.verdict import Verdict

Verifier = Callable[..., Verdict]

VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "contains": contains,
    "contains_all": contains_all,
    "format_json": format_json,
    "regex_format": regex_format,
    "length": length,
    "language": language,
    "refusal": refusal,
    "tool_calls": tool_calls,
}


def check_verifier(spec: Any, verifiers: Mapping[str, Verifier] = VERIFIERS) -> str | None:
    """Why `{"name", "args"?}` cannot be used as a verifier, None if it can.

    Checks the name, that every argument is known, present and of its type, and then the values: a verifier raises
    UserError for wrong arguments before it looks at the answer, so running it on an empty one tells.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return "verifier must be an object with a string 'name'"
    name, args = spec["name"], spec.get("args", {})
    if unknown := spec.keys() - {"name", "args"}:
        return f"verifier {name}: unknown key {', '.join(sorted(map(str, unknown)))} (known: name, args)"
    if name not in verifiers:
        return f"no verifier {name[:60]!r} (known: {', '.join(verifiers)})"
    if not isinstance(args, dict):
        return f"verifier {name}: args must be an object, is {kind_of(args)}"
    if why := mismatch(args, _arguments(verifiers[name]), "args"):
        return f"verifier {name}: {why}"
    try:
        verifiers[name]("", **args)
    except UserError as error:
        return f"verifier {name}: {error}"
    except Exception as error:
        return f"verifier {name}: {type(error).__name__}: {str(error)[:200]}"
    return None


def run_verifier(spec: Mapping[str, Any], answer: str, verifiers: Mapping[str, Verifier] = VERIFIERS) -> Verdict:
    """The verdict on `answer` of the verifier that a record names. Pass a larger table to add verifiers of a world.

    Raises UserError for a name that is not in the table. A verifier that raises gives a verdict that is not ok, with
    `raised` true: a run goes on, and its caller counts.
    """
    name, args = str(spec.get("name")), spec.get("args", {})
    if name not in verifiers:
        raise UserError(f"no verifier {name[:60]!r} (known: {', '.join(verifiers)})")
    try:
        return verifiers[name](answer, **args)
    except Exception as error:
        return Verdict(False, f"verifier {name} raised {type(error).__name__}: {str(error)[:200]}", 0.0, raised=True)


@functools.cache
def _arguments(verifier: Verifier) -> Schema:
    """The schema of the arguments after the answer, from the signature."""
    function = inspect.unwrap(verifier)
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {
        "type": "object",
        "properties": {parameter.name: type_schema(hints[parameter.name]) for parameter in parameters},
        "required": [parameter.name for parameter in parameters if parameter.default is parameter.empty],
        "additionalProperties": False,
    }
