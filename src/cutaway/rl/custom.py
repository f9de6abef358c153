"""A learner's own function as the value of a flag: `--advantage my.py:fn`."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutaway.errors import UserError


def is_custom(name: str) -> bool:
    """Whether a setting names a function in a file."""
    return ".py:" in name


def load_function(name: str) -> Callable[..., Any]:
    """The function `fn` of `file.py:fn`. The file is run, as any script of the learner's is."""
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{name}: no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{path} has no function {function}")
    own: Callable[..., Any] = found
    return own
