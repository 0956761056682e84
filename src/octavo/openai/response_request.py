"""The body of ``/v1/responses``: the part of it that needs no memory of earlier responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from octavo.openai.decode import Fields
from octavo.openai.errors import FieldError
from octavo.openai.items import string_in, text_part
from octavo.openai.structured import response_form
from octavo.sampling_params import SamplingParams

Message = dict[str, Any]

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class ResponsesRequest(Fields, kw_only=True):
    """``input`` is a text, or a list of messages, calls, their results and reasoning, which may be earlier output.

    Nothing is stored: a conversation is sent whole each time.
    """

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    )
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "store": (False,),
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "prompt": (),
        "truncation": ("disabled",),
        "include": ([],),
        "max_tool_calls": (),
        "top_logprobs": (0,),
        "stream_options": ({}, {"include_obfuscation": False}),
        "context_management": (),
        "moderation": (),
    }

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None


def response_params(body: ResponsesRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """How the body wants to be sampled; ``defaults`` (the model's own) stand in for what it does not say.

    Raises:
        RequestError: a value is out of range. FieldError: ``text`` or ``reasoning`` asks for what is not supported.
    """
    given = {"temperature": body.temperature, "top_p": body.top_p, "structured_outputs": _form(body.text)}
    _check_reasoning(body.reasoning)
    said = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**{**defaults, **said, "max_tokens": body.max_output_tokens})


def response_messages(body: ResponsesRequest) -> list[Message]:
    """The conversation as a chat's messages. Raises ``FieldError`` for an item of a kind that is not read."""
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*system, {"role": "user", "content": body.input}]
    messages: list[Message] = list(system)
    for i, item in enumerate(body.input):
        _add(messages, _message(f"input[{i}]", item))
    if len(messages) == len(system):
        raise FieldError("input must not be empty", "input")
    return messages


def response_tools(body: ResponsesRequest) -> list[dict[str, Any]] | None:
    """The tools as a chat has them. Raises ``FieldError`` for those that OpenAI's own servers would run."""
    for i, tool in enumerate(body.tools or ()):
        if tool.get("type") != "function":
            kind = tool.get("type")
            raise FieldError(f"tools[{i}] is of type {kind!r:.40}; accepted: function", "tools")
    names = ("name", "description", "parameters", "strict")
    tools = [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
        for tool in body.tools or ()
    ]
    return tools or None


def response_choice(body: ResponsesRequest) -> Any:
    """``tool_choice`` as a chat has it: a name stands one level deeper there."""
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _form(text: Mapping[str, Any] | None) -> Any:
    for name in text or ():
        if name != "format" and not (name == "verbosity" and (text or {})[name] in (None, "medium")):
            raise FieldError(f"text.{name!s:.60} is not supported; leave it out", "text", "unsupported_parameter")
    given = None if text is None else text.get("format")
    return None if given is None else response_form(given, "text")


def _check_reasoning(reasoning: Mapping[str, Any] | None) -> None:
    for name, value in (reasoning or {}).items():
        if value is not None:
            message = f"reasoning.{name:.60} is not supported; leave it out"
            raise FieldError(message, "reasoning", "unsupported_parameter")


def _message(where: str, item: Mapping[str, Any]) -> Message:
    kind = item.get("type", "message")
    if kind == "function_call":
        fields = ("name", "arguments", "call_id")
        name, arguments, call_id = (string_in(where, item, field, "input") for field in fields)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        content = _content(f"{where}.output", item.get("output"))
        return {"role": "tool", "tool_call_id": string_in(where, item, "call_id", "input"), "content": content}
    if kind == "reasoning":
        thoughts = item.get("content") or item.get("summary") or []
        return {"role": "assistant", "content": "", "reasoning_content": _content(f"{where}.content", thoughts)}
    if kind != "message":
        accepted = "message, function_call, function_call_output, reasoning"
        raise FieldError(f"{where} is of type {kind!r:.60}; accepted: {accepted}", "input")
    role, content = string_in(where, item, "role", "input"), _content(f"{where}.content", item.get("content"))
    return {"role": role, "content": content}


def _add(messages: list[Message], message: Message) -> None:
    """What one turn of the assistant said, thought and called are items of their own, but one message of a chat."""
    last = messages[-1] if messages else {}
    if message["role"] != "assistant" or last.get("role") != "assistant" or (last["content"] and message["content"]):
        messages.append(message)
        return
    calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
    thoughts = [m["reasoning_content"] for m in (last, message) if "reasoning_content" in m]
    merged = {**last, "content": last["content"] or message["content"]}
    merged |= {"tool_calls": calls} if calls else {}
    messages[-1] = merged | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {})


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise FieldError(f"{where} must be a text or a list of parts", "input")
    return "\n".join(text_part(f"{where}[{i}]", part, "input", _TEXTS) for i, part in enumerate(content))
