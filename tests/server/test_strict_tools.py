"""``strict: true``: the calls that a model makes of its own accord hold their schemas, or the request is refused."""

from __future__ import annotations

from typing import Any

import pytest

from helpers_http import call, make, post

HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
FORM = {"type": "json_object"}


def chat(strict: Any = True, **more: Any) -> tuple[str, dict[str, Any]]:
    function = {"name": "clock", "parameters": SCHEMA, "strict": strict}
    return "/v1/chat/completions", {"messages": HI, "tools": [{"type": "function", "function": function}], **more}


def response(strict: Any = True, **more: Any) -> tuple[str, dict[str, Any]]:
    tool = {"type": "function", "name": "clock", "parameters": SCHEMA, "strict": strict}
    return "/v1/responses", {"input": "Hi", "tools": [tool], **more}


def message(strict: Any = True, **more: Any) -> tuple[str, dict[str, Any]]:
    tool = {"name": "clock", "input_schema": SCHEMA, "strict": strict}
    return "/v1/messages", {"messages": HI, "max_tokens": 5, "tools": [tool], **more}


@pytest.mark.parametrize("ask", [chat, response, message])
def test_calls_are_held_to_their_schema_only_where_that_is_asked_for(ask: Any) -> None:
    app, client = make(tool_call_parser="hermes")
    for strict in (True, False, None):
        post(app, *ask(strict))
    forms = [one["params"].structured_outputs for one in client.calls]
    assert forms[1:] == [None, None]
    assert "answer_before[lazy]" in forms[0].grammar
    assert '"zone"' in forms[0].grammar
    none = {"type": "none"} if ask is message else "none"
    post(app, *ask(tool_choice=none))
    assert client.calls[-1]["params"].structured_outputs is None


@pytest.mark.parametrize("ask", [chat, response, message])
def test_what_cannot_be_held_is_refused_by_name(ask: Any) -> None:
    for format, why in (
        ("json", r"its calls (json) begin with no marker"),
        ("none", "no format of its calls is known"),
    ):
        app, client = make(tool_call_parser=format)
        answer = call(app, "POST", *ask())
        error = answer.json()["error"]
        assert (answer.status_code, error.get("param", "tools")) == (400, "tools")
        assert why in error["message"]
        assert "accepted: tools without strict" in error["message"]
        assert client.calls == []
    app, _ = make(tool_call_parser="json")
    post(app, *ask(tool_choice={"type": "any"} if ask is message else "required"))  # a forced one can be held


def test_two_forms_are_one_too_many() -> None:
    app, _ = make(tool_call_parser="hermes")
    for path, body in (chat(response_format=FORM), response(text={"format": FORM})):
        answer = call(app, "POST", path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert "contradicts the form" in answer.json()["error"]["message"]


def test_strict_is_true_or_false() -> None:
    app, _ = make(tool_call_parser="hermes")
    answer = call(app, "POST", *chat("yes"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert "strict='yes'; accepted: true, false" in answer.text
