"""Messages as one chat template wants them: templates differ in what they can read, and say so in their text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_ASKS_FOR_NONE = re.compile(r"(?<!\w)content['\"\])]*\s+is\s+(?:not\s+)?none")
_CONCATENATES_ARGUMENTS = re.compile(r"[+~]\s*[\w.\[\]'\"]*\barguments['\"\]]*\s*[+~}]")


def knows_tools(template: str) -> bool:
    """Whether the template prints the tools that it is given."""
    return re.search(r"\btools\b", template) is not None


def fit_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """Checked messages in the form that ``template`` can read.

    - A key without a value, as clients send it, is left out: some templates only ask whether it is there.
    - An assistant's missing content is None where the template asks for that, else empty.
    - A call's arguments are an object, or text where the template puts them between texts.
    - A "developer" is "system" where the template does not know the former.
    - Reasoning is called ``reasoning_content``, whatever the client called it.
    """
    as_text = _CONCATENATES_ARGUMENTS.search(template) is not None
    empty = None if _ASKS_FOR_NONE.search(template) else ""
    renamed = {} if "developer" in template else {"developer": "system"}
    fitted = []
    for message in messages:
        role, content = message["role"], message.get("content")
        one = {key: value for key, value in message.items() if value is not None and value != []}
        one |= {"role": renamed.get(role, role), "content": content if content or role != "assistant" else empty}
        if "reasoning" in one:
            one.setdefault("reasoning_content", one["reasoning"])
        if as_text and "tool_calls" in one:
            one["tool_calls"] = [_with_text_arguments(call) for call in one["tool_calls"]]
        fitted.append(one)
    return fitted


def _with_text_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
