"""The form of an answer: `response_format`, `tools` and `tool_choice` as a constraint on the engine's tokens."""

from collections.abc import Callable
from typing import Any

from cutaway.errors import UserError
from cutaway.generation import constrain
from cutaway.generation.engine import Constraint
from cutaway.serving.errors import ApiError, unsupported
from cutaway.serving.models import ServedModel
from cutaway.serving.schemas import ChatRequest, NamedTool

Tools = list[dict[str, Any]]

_ELSEWHERE = {"$ref", "anyOf", "oneOf", "allOf", "if", "patternProperties"}
"""Where a schema may name arguments besides its `properties`."""


def shown_tools(model: ServedModel, body: ChatRequest) -> Tools:
    """The tools that the prompt shows; none with `tool_choice` none. ApiError where they cannot be served."""
    choice = body.tool_choice or "auto"
    if choice == "none":
        return []
    # `strict` is a word to the server: calls are held to the schema either way.
    tools = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in body.tools or ()]
    if tools and not model.tools:
        raise unsupported(f"calling tools with {model.name}", "tools")
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have the same name", param="tools")
    if choice != "auto" and not tools:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise ApiError(400, f"tool_choice names {choice.function.name[:64]!r}, no tool of tools", param="tool_choice")
    return tools


def form_of_answer(
    model: ServedModel, body: ChatRequest, tools: Tools, after_thinking: bool
) -> Callable[[], Constraint] | None:
    """The constraint of the answer, None for free text. ApiError 400 for a form that cannot be enforced.

    With `tool_choice` auto the model may call or not; if it does, the call is well formed. A tool whose schema cannot
    be enforced is refused only where a call is asked for.
    """
    wanted = body.response_format
    schema: dict[str, Any] | None = None
    if wanted is not None and wanted.type == "json_object":
        schema = {"type": "object"}
    elif wanted is not None and wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise ApiError(400, "response_format json_schema needs json_schema", param="response_format")
        schema = wanted.json_schema.schema_ or {"type": "object"}
    if schema is not None:
        if tools:
            raise unsupported("response_format together with tools", "response_format")
        return _made(lambda: constrain.json_schema(schema, model.tokenizer, after_thinking), "response_format")
    if not tools:
        return None
    required = body.tool_choice not in (None, "auto")
    if isinstance(body.tool_choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == body.tool_choice.function.name]
    parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)

    tools = [_closed(tool) for tool in tools]

    def calls() -> Callable[[], Constraint]:
        return constrain.tool_calls(
            tools, model.tokenizer, required=required, parallel=parallel, after_thinking=after_thinking
        )

    try:
        return _made(calls, "tools")
    except ApiError:
        if required:
            raise
        return None


def _closed(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool without arguments beyond those it names, unless its schema speaks of more, or may name some that
    `additionalProperties` does not see, and would forbid."""
    function = tool["function"]
    parameters = function.get("parameters", {"properties": {}})
    if not _ELSEWHERE & parameters.keys():
        parameters = {"additionalProperties": False} | parameters
    return {"function": function | {"parameters": parameters}}


def _made(make: Callable[[], Callable[[], Constraint]], param: str) -> Callable[[], Constraint]:
    try:
        return make()
    except (UserError, ValueError, RecursionError) as error:
        raise ApiError(400, str(error), param=param) from None
