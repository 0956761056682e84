"""``tools`` and ``tool_choice`` of a chat: what may be called, and whether something must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.openai.errors import FieldError
from octavo.text.output.calls import Function
from octavo.text.output.choice import ToolUse

MAX_TOOLS = 1024


def tool_use(tools: Sequence[Mapping[str, Any]] | None, choice: Any, parallel: bool = True) -> ToolUse:
    """What the completion may call.

    Args:
        tools: OpenAI's definitions.
        choice: "auto", "none", "required", or ``{"type": "function", "function": {"name": …}}``; None: "auto".
        parallel: whether it may call several at once.

    Raises:
        FieldError: a definition or the choice is malformed, or the choice names no tool.
    """
    functions = _functions(tools or ())
    if choice in (None, "auto", "none", "required"):
        if choice == "required" and not functions:
            raise FieldError("tool_choice 'required' needs tools", "tool_choice")
        return ToolUse(() if choice == "none" else functions, choice == "required", parallel)
    named = [function for function in functions if function.name == _chosen(choice)]
    if not named:
        raise FieldError(f"tool_choice names {_chosen(choice)!r:.80}, which is none of tools", "tool_choice")
    return ToolUse(tuple(named), True, False)


def _functions(tools: Sequence[Mapping[str, Any]]) -> tuple[Function, ...]:
    if len(tools) > MAX_TOOLS:
        raise FieldError(f"tools has {len(tools)} entries; at most {MAX_TOOLS} are accepted", "tools")
    functions = tuple(_function(i, tool) for i, tool in enumerate(tools))
    if len({function.name for function in functions}) < len(functions):
        raise FieldError("tools has two functions of the same name", "tools")
    return functions


def _function(i: int, tool: Mapping[str, Any]) -> Function:
    if tool.get("type") != "function":
        raise FieldError(f"tools[{i}] is of type {tool.get('type')!r:.40}; accepted: function", "tools")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise FieldError(f"tools[{i}] has no function with a name", "tools")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping | bool):
        raise FieldError(f"tools[{i}].function.parameters is no JSON schema", "tools")
    strict = function.get("strict")
    if not isinstance(strict, bool | None):
        raise FieldError(f"tools[{i}].function.strict={strict!r:.40}; accepted: true, false", "tools")
    return Function(name, {} if parameters is None else parameters, strict is True)


def _chosen(choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        accepted = "auto, none, required, or {'type': 'function', 'function': {'name': …}}"
        raise FieldError(f"tool_choice={choice!r:.80}; accepted: {accepted}", "tool_choice")
    return name
