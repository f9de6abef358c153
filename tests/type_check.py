"""The run-time checker behind jaxtyping's import hook. An int where a float is declared is fine, as for mypy."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments and result with beartype, except where the type is a protocol that only mypy can check."""
    for name, hint in inspect.get_annotations(function).items():
        if any(_is_opaque(part) for part in (hint, *get_args(hint))):
            function.__annotations__[name] = Any
    checked: Callable[..., Any] = _beartype(function)
    return checked


def _is_opaque(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
