"""What the fields ``tools``, ``tool_choice`` and ``parallel_tool_calls`` ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.openai.errors import FieldError
from octavo.text.output.calls import Function
from octavo.text.output.choice import ToolUse

MAX_TOOLS = 1024
_ACCEPTED = "'auto', 'none', 'required', or {'type': 'function', 'function': {'name': …}} of one of the tools"


def tool_use(
    tools: Sequence[Mapping[str, Any]] | None,
    choice: str | Mapping[str, Any] | None = None,
    parallel: bool | None = None,
) -> ToolUse:
    """Which calls a completion may make.

    Args:
        tools: as in chats, ``{"type": "function", "function": {…}}``, or flat, as in responses.
        choice: "auto" (as None), "none", "required", one function, or some of them (``allowed_tools``); in the form of
            chats or of responses.
        parallel: False: one call at most.

    Raises:
        FieldError: saying what is malformed.
    """
    functions = functions_of(tools)
    if isinstance(choice, Mapping):
        return _use_of_some(functions, choice, parallel is not False)
    if choice not in (None, "auto", "none", "required"):
        raise FieldError(f"tool_choice={choice!r:.80}; accepted: {_ACCEPTED}", "tool_choice")
    if choice == "required" and not functions:
        raise FieldError("tool_choice is 'required', but there are no tools", "tool_choice")
    return ToolUse(() if choice == "none" else functions, choice == "required", parallel is not False)


def functions_of(tools: Sequence[Mapping[str, Any]] | None) -> tuple[Function, ...]:
    """The functions that tools define. Raises ``FieldError`` for another kind of tool, and for a name given twice."""
    if len(tools or ()) > MAX_TOOLS:
        raise FieldError(f"tools: {len(tools or ())} are given; at most {MAX_TOOLS} are accepted", "tools")
    functions = tuple(_function(f"tools[{i}]", tool) for i, tool in enumerate(tools or ()))
    names = [function.name for function in functions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FieldError(f"tools: {twice!r:.80} is defined twice", "tools")
    return functions


def _function(where: str, tool: Any) -> Function:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise FieldError(f"{where} is of type {kind!r:.40}; accepted: function", "tools")
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name or len(name) > 256:
        raise FieldError(f"{where} has no name; accepted: {{'type': 'function', 'function': {{'name': …}}}}", "tools")
    schema = inner.get("parameters")
    if schema is not None and not isinstance(schema, Mapping):
        raise FieldError(f"{where}.parameters of {name!r:.80} is no JSON schema; accepted: an object", "tools")
    return Function(name, schema or {"type": "object", "properties": {}})


def _use_of_some(functions: tuple[Function, ...], choice: Mapping[str, Any], parallel: bool) -> ToolUse:
    if choice.get("type") == "function":
        name = _name_in(choice)
        return ToolUse((_known(functions, name),), required=True, parallel=False)
    if choice.get("type") != "allowed_tools":
        raise FieldError(f"tool_choice={dict(choice)!r:.80}; accepted: {_ACCEPTED}", "tool_choice")
    allowed = choice.get("allowed_tools", choice)
    names = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if not isinstance(names, list) or not names or allowed.get("mode", "auto") not in ("auto", "required"):
        raise FieldError("tool_choice: allowed_tools takes mode ('auto' or 'required') and tools", "tool_choice")
    chosen = tuple(_known(functions, _name_in(tool)) for tool in names)
    return ToolUse(chosen, allowed.get("mode") == "required", parallel)


def _name_in(tool: Any) -> Any:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def _known(functions: tuple[Function, ...], name: Any) -> Function:
    found = next((function for function in functions if function.name == name), None)
    if found is None:
        names = ", ".join(function.name for function in functions) or "none, as there are no tools"
        raise FieldError(f"tool_choice names {name!r:.80}; accepted: {names:.400}", "tool_choice")
    return found
