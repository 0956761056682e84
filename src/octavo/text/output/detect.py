"""Finds out from a chat template how its model writes tool calls and reasoning."""

from __future__ import annotations

from octavo.text.output.formats import (
    REASONING,
    TOOLS,
    OutputFormat,
    ReasoningFormat,
    ToolFormat,
    reasoning_format,
    tool_format,
)


def output_format(template: str | None, tools: str = "auto", reasoning: str = "auto") -> OutputFormat:
    """The format of the model that ``template`` belongs to.

    Args:
        template: its chat template; None if it has none.
        tools, reasoning: the names of formats, or vLLM's names for them, to be used instead of what the template
            says; "auto": what it says; "none": no format.

    Raises:
        UsageError: there is no format of a name.
    """
    return OutputFormat(_reasoning(template or "", reasoning), _tools(template or "", tools))


def _tools(template: str, name: str) -> ToolFormat | None:
    if name != "auto":
        return None if name == "none" else tool_format(name)
    return next((known for known in TOOLS if all(sign in template for sign in known.signs)), None)


def _reasoning(template: str, name: str) -> ReasoningFormat | None:
    if name != "auto":
        return None if name == "none" else reasoning_format(name)
    return next((known for known in REASONING if known.end in template), None)
