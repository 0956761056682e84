from __future__ import annotations

import json

import msgspec
import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from helpers_output import SPELLINGS, make_router
from octavo.openai.tool_calls import delta_parts, finish_reason, message_parts
from octavo.text.output.pieces import Content, Reasoning, ToolArguments, ToolCallEnd, ToolCallStart
from octavo.text.output.router import read_whole

CALLS = [("get_weather", {"city": 'Zü"rich', "days": 2}), ("clock", {})]
TEXT = "<think>\nhm\n</think>\n\nSee:\n" + SPELLINGS["hermes"][0](CALLS)


def test_a_whole_message() -> None:
    pieces = read_whole(make_router("hermes", "think"), TEXT)
    message = ChatCompletionMessage.model_validate({"role": "assistant", **msgspec.to_builtins(message_parts(pieces))})
    assert message.content == "See:"
    assert message.model_extra == {"reasoning_content": "hm", "reasoning": "hm"}
    calls = message.tool_calls or []
    assert [call.type for call in calls] == ["function", "function"]
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in calls if c.type == "function"] == [
        ("id0", *CALLS[0]),
        ("id1", *CALLS[1]),
    ]


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
def test_news_add_up_to_the_message(size: int) -> None:
    """Put together as OpenAI's clients do: text is appended, calls by their index."""
    router, content, reasoning, calls = make_router("hermes", "think"), "", "", list[dict[str, str]]()
    pieces = [router.feed(TEXT[i : i + size]) for i in range(0, len(TEXT), size)]
    for parts in map(delta_parts, [*pieces, router.finish()]):
        fields = msgspec.to_builtins(parts)
        assert parts.is_empty == (fields == {})
        delta = ChoiceDelta.model_validate(fields)
        content += delta.content or ""
        reasoning += (delta.model_extra or {}).get("reasoning_content", "")
        for call in delta.tool_calls or []:
            assert call.function is not None
            if call.index == len(calls):
                assert call.type == "function"
                calls.append({"id": call.id or "", "name": call.function.name or "", "arguments": ""})
            else:
                assert (call.index, call.id, call.type, call.function.name) == (len(calls) - 1, None, None, None)
            calls[-1]["arguments"] += call.function.arguments or ""
    whole = message_parts(read_whole(make_router("hermes", "think"), TEXT))
    assert (content, reasoning) == (whole.content, whole.reasoning)
    expected = msgspec.to_builtins(whole.tool_calls)
    assert calls == [{"id": c["id"], **c["function"]} for c in expected]


def test_content_is_null_only_beside_calls() -> None:
    assert message_parts([]).content == ""
    assert message_parts([Reasoning("hm")]).content == ""
    assert message_parts([Content("x")]).tool_calls is msgspec.UNSET
    assert message_parts([ToolCallStart(0, "a", "f"), ToolArguments(0, "{}"), ToolCallEnd(0, True)]).content is None


def test_finish_reasons() -> None:
    assert finish_reason("stop", called=True) == "tool_calls"
    assert finish_reason("stop", called=False) == "stop"
    assert finish_reason("length", called=True) == "length"
    assert finish_reason(None, called=True) is None
