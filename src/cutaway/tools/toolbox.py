"""A set of tools that answers calls: whatever a model asks for, the answer is a text, never an exception."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cutaway.errors import UserError
from cutaway.tools.schema import Tool, ToolError, make_tool
from cutaway.verifiers.json_schema import Schema, mismatch

MAX_ARGUMENTS = 20_000
"""Characters of arguments that are given as a JSON string."""


@dataclass(frozen=True)
class ToolResult:
    """What the model is shown, and whether the tool did its work."""

    text: str
    ok: bool


class Toolbox:
    """Tools by name.

    Args:
        tools: tools, or functions that become tools.
        seconds: time limit of a call. A tool runs in a daemon thread of its own, from whichever thread it is called.
            Python cannot end a thread: after the limit the call is answered, and the thread goes on until it is done.
            Nor can a limit help while one C call holds the interpreter (`9**9**9`), so tools bound their own work.
        max_characters: length of a result, the note of what was cut included.
        max_running: overdue threads at a time. As long as so many run, every call is refused.
    """

    def __init__(
        self,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        *,
        seconds: float = 5.0,
        max_characters: int = 4000,
        max_running: int = 8,
    ) -> None:
        if seconds <= 0 or max_characters < 100 or max_running < 1:
            raise UserError("Toolbox: seconds must be positive, max_characters at least 100, max_running at least 1")
        self.seconds, self.max_characters, self.max_running = seconds, max_characters, max_running
        self._tools: dict[str, Tool] = {}
        self._overdue: list[threading.Thread] = []
        self._lock = threading.Lock()
        for item in tools:
            tool = item if isinstance(item, Tool) else make_tool(item)
            if tool.name in self._tools:
                raise UserError(f"Toolbox: two tools are called {tool.name}")
            self._tools[tool.name] = tool

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def only(self, names: Iterable[str]) -> "Toolbox":
        """A toolbox of some of these tools. UserError for a name that is not here."""
        wanted = list(names)
        for name in wanted:
            if name not in self._tools:
                raise UserError(f"no tool {name!r} (known: {', '.join(self._tools) or 'none'})")
        limits: dict[str, Any] = {"seconds": self.seconds, "max_characters": self.max_characters}
        return Toolbox([self._tools[name] for name in wanted], **limits, max_running=self.max_running)

    def schemas(self) -> list[dict[str, Any]]:
        """The schemas of all tools, for `tools` of a conversation or a request."""
        return [tool.schema() for tool in self]

    def call(self, name: Any, arguments: Any = None) -> ToolResult:
        """Answer a call. Arguments are an object or its JSON text; they are checked against the schema first.

        Never raises: an unknown tool, unfit arguments, a tool that raises or takes too long, and a result that is no
        JSON are results that are not ok, each with a text for the model.
        """
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return self._error(f"no tool {str(name)[:60]!r} (known: {', '.join(self._tools) or 'none'})")
        given, why = _read_arguments(arguments)
        why = why or mismatch(given, {**tool.parameters, "additionalProperties": False}, "arguments")
        if why:
            return self._error(why)
        try:
            prepared = {key: _converted(value, tool.parameters["properties"][key]) for key, value in given.items()}
        except OverflowError:
            return self._error("arguments: a number is too large")
        return self._run(tool, prepared)

    def _run(self, tool: Tool, arguments: dict[str, Any]) -> ToolResult:
        answer: list[ToolResult] = []

        def work() -> None:
            try:
                answer.append(ToolResult(self._text(tool.function(**arguments)), True))
            except ToolError as error:
                answer.append(self._error(str(error)))
            except BaseException as error:
                answer.append(self._error(f"{tool.name} failed: {type(error).__name__}: {_message(error)}"))

        with self._lock:
            self._overdue = [thread for thread in self._overdue if thread.is_alive()]
            if len(self._overdue) >= self.max_running:
                return self._error("too many earlier calls are still running; try again later")
        thread = threading.Thread(target=work, name=f"tool-{tool.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return self._error(f"{tool.name} could not be started: {error}")
        thread.join(self.seconds)
        if answer:
            return answer[0]
        if thread.is_alive():
            with self._lock:
                self._overdue.append(thread)
            return self._error(f"{tool.name} took longer than {self.seconds:g} seconds")
        return self._error(f"{tool.name} gave no result")

    def _error(self, message: str) -> ToolResult:
        return ToolResult(self._bounded(f"Error: {message}"), False)

    def _text(self, value: Any) -> str:
        """A string as it is, anything else as JSON with sorted keys, so that equal values give equal text."""
        if isinstance(value, str):
            return self._bounded(value)
        return self._bounded(json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False))

    def _bounded(self, text: str) -> str:
        if len(text) > self.max_characters:
            note = f"… ({len(text)} characters, cut)"
            text = text[: self.max_characters - len(note)] + note
        return text.encode("utf-8", "replace").decode("utf-8")


def _read_arguments(arguments: Any) -> tuple[dict[str, Any], str | None]:
    """The arguments as an object and None, or why they are none."""
    value = {} if arguments is None else arguments
    if isinstance(value, str):
        if len(value) > MAX_ARGUMENTS:
            return {}, f"arguments: longer than {MAX_ARGUMENTS} characters"
        try:
            value = json.loads(value or "{}")
        except RecursionError:
            return {}, "arguments: nested too deeply"
        except ValueError as error:
            return {}, f"arguments are not valid JSON: {error}"
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return {}, 'arguments must be an object, such as {"name": "value"}'
    return dict(value), None


def _converted(value: Any, schema: Schema) -> Any:
    """The number types that the function declares: 3.0 for an integer is 3, 3 for a number is 3.0."""
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if isinstance(value, list) and "items" in schema:
        return [_converted(item, schema["items"]) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if "integer" in kinds and "number" not in kinds:
        return int(value)
    return float(value) if "number" in kinds else value


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "no message"
