"""The items of ``/v1/responses`` as a chat's messages."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.openai.errors import FieldError
from octavo.openai.response_request import ResponsesRequest, response_messages


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return response_messages(ResponsesRequest(input=list(items)))


SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "It is noon."}]}
CALL = {"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "c1"}


def test_what_a_turn_thought_said_and_called_is_one_message() -> None:
    (message,) = messages(thought("First."), thought("Then."), SAID, CALL)
    assert message["reasoning_content"] == "First.\nThen."
    assert message["content"] == "It is noon."
    assert [call["id"] for call in message["tool_calls"]] == ["c1"]


def test_thoughts_between_calls_are_kept() -> None:
    (message,) = messages(thought("Ask."), CALL, thought("And again."), {**CALL, "call_id": "c2"})
    assert message["reasoning_content"] == "Ask.\nAnd again."
    assert [call["id"] for call in message["tool_calls"]] == ["c1", "c2"]


def test_two_answers_stay_two() -> None:
    assert [message["content"] for message in messages(SAID, SAID)] == ["It is noon."] * 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({**CALL, "name": 5}, r"input\[0\] has no name that is a text"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "accepted: text"),
        ({"role": "user", "content": ["x"]}, r"input\[0\].content\[0\] is of type 'str'"),
        ({"type": "web_search_call"}, "accepted: message, function_call"),
    ],
)
def test_what_is_malformed_is_told_by_its_place(item: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        messages(item)
    assert caught.value.param == "input"
