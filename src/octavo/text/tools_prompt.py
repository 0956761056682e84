"""Tools for a model whose chat template knows of none: they are described in words, and calls are JSON objects.

What such a model answers is read as the format "json".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_INSTRUCTIONS = (
    "You can call functions. Each line is one of them, in JSON:\n{tools}\n"
    "To call one, answer only with a JSON object: "
    '{{"name": the function\'s name, "arguments": an object with its arguments}}. '
    "If no function helps, answer in plain words."
)

_RESULT = "The function's result:"


def with_tools_in_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """The conversation in plain messages: the tools in the system message, calls and results as text."""
    plain = _without_tool_turns(messages)
    if not tools:
        return plain
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools))
    if plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _without_tool_turns(messages: Sequence[Message]) -> list[Message]:
    """Results join the user's words around them: many templates want turns to alternate."""
    plain = list[Message]()
    for message in messages:
        one, is_result = _in_words(message), message["role"] == "tool"
        if plain and plain[-1]["role"] == one["role"] == "user" and (is_result or _is_result(plain[-1])):
            plain[-1] = {**plain[-1], "content": f"{plain[-1]['content']}\n\n{one['content']}"}
        else:
            plain.append(one)
    return plain


def _is_result(message: Message) -> bool:
    return str(message["content"]).startswith(_RESULT)


def _in_words(message: Message) -> Message:
    """A tool's result as a user's message, and calls as the content of the assistant's."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"{_RESULT}\n{message['content']}"}
    if not message.get("tool_calls"):
        return message
    calls = [json.dumps(_call(call), ensure_ascii=False) for call in message["tool_calls"]]
    said = [message["content"]] if message.get("content") else []
    return {"role": message["role"], "content": "\n".join([*said, *calls])}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = _function(call)
    return {"name": function.get("name"), "arguments": function.get("arguments") or {}}


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else tool
