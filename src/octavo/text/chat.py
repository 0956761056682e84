"""A conversation to the one text that a model continues.

The model's chat template is a Jinja program, as Hugging Face's ``apply_chat_template`` runs it. It comes from
whoever made the model file, so it runs in a process of its own with limits on time, memory and output
(``template_process``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import RequestError
from octavo.text.chat_messages import fit_messages, knows_tools
from octavo.text.template_process import render_template
from octavo.text.tools_prompt import with_tools_in_words

_OURS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_END_OF_FINAL = "\ue000octavo-end-of-final-message\ue000"
"""Marks where the final message ends; of letters for private use, which no honest text has."""

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize + ': ' + message.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
"""Templates that have a name, for models that bring none."""


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    bos_token: str | None = None,
    eos_token: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> str:
    """The prompt text for ``messages``.

    Encode it with ``add_special_tokens=False``: a template writes BOS itself.

    Args:
        template: the model's chat template, or the name of one of ``TEMPLATES``.
        messages: OpenAI messages; see ``check_messages``.
        tools: OpenAI tool definitions, handed to the template; described in words if it does not know of tools.
        add_generation_prompt: end with the words that open the assistant's turn.
        continue_final_message: end within the last message, so that the model goes on with it. It takes the place of
            ``add_generation_prompt``.
        bos_token, eos_token: texts of these tokens, for the template.
        chat_template_kwargs, kwargs: more variables for the template, such as ``enable_thinking``.

    Raises:
        RequestError: there is no template, it refuses or cannot handle the messages, it breaks the sandbox's
            rules or limits, or the messages are malformed.
    """
    if template is None:
        raise RequestError(
            "this model has no chat template; use generate, or give chat_template="
            f" (a template, or {' or '.join(TEMPLATES)})"
        )
    template = TEMPLATES.get(template, template) if isinstance(template, str) else template
    variables: dict[str, Any] = {"bos_token": bos_token, "eos_token": eos_token}
    variables = {name: token for name, token in variables.items() if token is not None}
    variables |= _check_kwargs(chat_template_kwargs) | _check_kwargs(kwargs)
    variables |= _conversation(template, check_messages(messages), _check_tools(tools))
    variables["add_generation_prompt"] = bool(add_generation_prompt) and not continue_final_message
    if continue_final_message:
        return _render_unfinished(template, variables)
    return render_template(template, variables)


def _conversation(template: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The messages and tools in the form that suits the template."""
    if not isinstance(template, str):
        return {"messages": messages, "tools": tools, "documents": None}
    messages = fit_messages(messages, template)
    if not knows_tools(template):
        messages, tools = with_tools_in_words(messages, tools), None
    return {"messages": messages, "tools": tools, "documents": None}


def _render_unfinished(template: str, variables: dict[str, Any]) -> str:
    """The prompt up to the end of the last message's content."""
    *before, last = variables["messages"]
    if not isinstance(last.get("content"), str) or last.get("tool_calls"):
        raise RequestError("continue_final_message needs a last message with text, and without tool calls")
    marked = {**last, "content": last["content"] + _END_OF_FINAL}
    text, found, _ = render_template(template, {**variables, "messages": [*before, marked]}).rpartition(_END_OF_FINAL)
    if not found:
        raise RequestError("continue_final_message: the chat template does not print the last message")
    return text


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI messages in the form that templates expect.

    Content that is a list of text parts becomes one string (joined by newlines), and a tool call's arguments,
    which OpenAI writes as a JSON string, become the object. Only an assistant's content may be missing or
    None.

    Raises:
        RequestError: saying which message is malformed, and how.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages must be a non-empty list of objects with role and content")
    return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _check_message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise RequestError(f"{where} must be an object with a role such as system, user, assistant or tool")
    checked = dict(message)
    if checked.get("content") is not None:
        checked["content"] = _check_content(where, checked["content"])
    elif checked["role"] != "assistant":
        raise RequestError(f"{where} has no content; only an assistant's message may go without")
    if checked.get("tool_calls") is not None:
        checked["tool_calls"] = _check_tool_calls(where, checked["tool_calls"])
    return checked


def _check_content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where}.content must be a string or a list of text parts")
    return "\n".join(_check_part(f"{where}.content[{i}]", part) for i, part in enumerate(content))


def _check_part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise RequestError(f"{where} is of type {kind!r:.40}; accepted: text (this model reads text only)")
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{where} has no text; accepted: {{'type': 'text', 'text': '...'}}")
    return part["text"]


def _check_tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise RequestError(f"{where}.tool_calls must be a list of objects")
    return [_with_parsed_arguments(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]


def _with_parsed_arguments(where: str, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        raise RequestError(
            f"{where}.function.arguments is not JSON; accepted: an object, as a string or itself"
        ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RequestError("tools must be a list of objects, each {'type': 'function', 'function': {...}}")
    return [dict(tool) for tool in tools] or None


def _check_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise RequestError("chat_template_kwargs must be an object of names and values")
    taken = next((name for name in kwargs or () if name in _OURS), None)
    if taken is not None:
        raise RequestError(f"chat_template_kwargs may not hold {taken!r}; pass it as an argument of its own")
    return dict(kwargs or {})
