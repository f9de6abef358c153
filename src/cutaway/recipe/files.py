"""Reading a recipe, checking it against the dataclasses, and writing it with every derived value."""

import dataclasses
import tomllib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from cutaway.errors import UserError
from cutaway.recipe.recipe import Recipe, RunSettings

Settings = TypeVar("Settings")


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("cutaway") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a built-in recipe by name, or any recipe by path; a run's own tables (`run`, `made`) are left alone."""
    table = read_toml(name_or_path)
    for key in ("run", "made"):
        table.pop(key, None)
    return build(Recipe, table, where=name_or_path)


def read_toml(name_or_path: str) -> dict[str, Any]:
    """Parse a recipe file; a built-in name needs no path."""
    path = Path(name_or_path)
    if name_or_path in builtin_recipes():
        text = (resources.files("cutaway") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a text file that can be read: {error}") from None
    else:
        known = ", ".join(builtin_recipes())
        raise UserError(f"no recipe '{name_or_path}': neither a file nor one of {known}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name_or_path}: not valid TOML: {error}") from None


def build(cls: type[Settings], table: dict[str, Any], where: str) -> Settings:
    """Make a settings dataclass from a plain table; an unknown key or a wrong type is one line that says where."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key '{key}' (known: {', '.join(sorted(hints))})")
        values[key] = _convert(value, hints[key], f"{where}: {key}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table")
        return build(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(value, inner, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where} is {value!r}, must be one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list")
        return tuple(_convert(item, typing.get_args(hint)[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is {value!r}, must be of type {hint.__name__}")
    return value


def load_run(path: str) -> RunSettings:
    """The `run` table of a run's recipe.toml: the files that it reads and writes."""
    return build(RunSettings, read_toml(path).get("run", {}), where=f"{path}: run")


def save_recipe(recipe: Recipe, path: Path, run: RunSettings, made: dict[str, Any]) -> None:
    """Write the fully resolved recipe with the run's files and how it was made, as TOML; `None` is left out."""
    lines: list[str] = []
    document = dataclasses.asdict(recipe) | {"run": dataclasses.asdict(run), "made": made}
    for key, value in document.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {_toml(value)}")
    for key, value in document.items():
        if isinstance(value, dict):
            lines.append(f"\n[{key}]")
            lines += [f"{name} = {_toml(item)}" for name, item in value.items() if item is not None]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(_ESCAPES.get(char, char) for char in value)
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


_ESCAPES = {"\\": "\\\\", '"': '\\"'} | {chr(code): f"\\u{code:04x}" for code in (*range(32), 127)}
