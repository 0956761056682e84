"""From Anthropic's messages and tools to OpenAI's, which chat templates are written for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.anthropic.schema import PromptFields
from octavo.openai.errors import FieldError
from octavo.openai.items import string_in, text_part

Message = dict[str, Any]

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def messages_of(body: PromptFields) -> list[Message]:
    """The conversation. Raises ``FieldError`` for a block that is malformed or of a kind that is not read."""
    system = [{"role": "system", "content": _system(body.system)}] if body.system else []
    turns = [turn for i, message in enumerate(body.messages) for turn in _turns(f"messages[{i}]", message)]
    if not turns:
        raise FieldError("messages must be a non-empty list", "messages")
    return [*system, *turns]


def goes_on(messages: Sequence[Message]) -> bool:
    """Whether the assistant has begun its answer, so that it is to go on with it."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last


def tools_of(body: PromptFields) -> list[dict[str, Any]] | None:
    """The tools. Raises ``FieldError`` for those that Anthropic's own servers would run."""
    if not body.tools:
        return None
    return [_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools)]


def choice_of(body: PromptFields) -> tuple[Any, bool]:
    """OpenAI's ``tool_choice``, and whether several calls at once are wanted. Raises ``FieldError``."""
    choice = body.tool_choice or {"type": "auto"}
    parallel = choice.get("disable_parallel_tool_use") is not True
    kind, name = choice.get("type"), choice.get("name")
    if kind == "tool" and isinstance(name, str):
        return {"type": "function", "function": {"name": name}}, parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise FieldError(f"tool_choice.type={kind!r:.40}; accepted: auto, any, none, tool with a name", "tool_choice")
    return _CHOICES[kind], parallel


def template_variables(body: PromptFields) -> dict[str, Any]:
    """Whether the model shall think, for templates that ask. A budget is a target at Anthropic, too, not a limit."""
    kind = None if body.thinking is None else body.thinking.get("type")
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise FieldError(f"thinking.type={kind!r:.40}; accepted: enabled, disabled, adaptive", "thinking")
    return {} if kind in (None, "adaptive") else {"enable_thinking": kind == "enabled"}


def _system(system: str | list[dict[str, Any]]) -> str:
    if isinstance(system, str):
        return system
    return "\n".join(text_part(f"system[{i}]", block, "messages") for i, block in enumerate(system))


def _turns(where: str, message: Mapping[str, Any]) -> list[Message]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise FieldError(f"{where}.role={role!r:.40}; accepted: user, assistant", "messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise FieldError(f"{where}.content must be a text or a list of blocks", "messages")
    blocks = [(f"{where}.content[{i}]", block) for i, block in enumerate(content)]
    return _user(blocks) if role == "user" else [_assistant(blocks)]


def _user(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Message]:
    """Results of tools are messages of their own, in front of what the user says."""
    results = [_result(where, block) for where, block in blocks if block.get("type") == "tool_result"]
    texts = [text_part(where, block, "messages") for where, block in blocks if block.get("type") != "tool_result"]
    return [*results, {"role": "user", "content": "\n".join(texts)}] if texts or not results else results


def _result(where: str, block: Mapping[str, Any]) -> Message:
    content, name = block.get("content", ""), block.get("tool_use_id")
    if not isinstance(name, str):
        raise FieldError(f"{where} has no tool_use_id", "messages")
    if isinstance(content, list):
        content = "\n".join(text_part(f"{where}.content[{i}]", part, "messages") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise FieldError(f"{where}.content must be a text or a list of blocks", "messages")
    return {"role": "tool", "tool_call_id": name, "content": content}


def _assistant(blocks: Sequence[tuple[str, Mapping[str, Any]]]) -> Message:
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(where, block))
        elif kind == "thinking":
            thoughts.append(string_in(where, block, "thinking", "messages"))
        elif kind != "redacted_thinking":  # nobody but who wrote it can read that
            texts.append(text_part(where, block, "messages"))
    message: Message = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, Mapping):
        raise FieldError(f"{where}.input must be an object", "messages")
    name, call_id = (string_in(where, block, field, "messages") for field in ("name", "id"))
    function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": call_id, "type": "function", "function": function}


def _tool(where: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom":
        message = f"{where} is of type {tool['type']!r:.60}; accepted: custom (no tool runs on this server)"
        raise FieldError(message, "tools")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}
