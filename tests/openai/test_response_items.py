from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from helpers_output import SPELLINGS, make_router
from octavo.openai.response_items import ItemEvents
from octavo.text.output.router import OutputRouter, read_whole

TEXT = "<think>\nhm\n</think>\n\nSee:\n" + SPELLINGS["hermes"][0]([("get_weather", {"city": "Rom"}), ("clock", {})])
TEXT += "\nDone."


def numbered() -> Any:
    numbers = count()
    return lambda prefix: f"{prefix}{next(numbers)}"


def items_of(router: OutputRouter, text: str, *, incomplete: bool = False) -> list[dict[str, Any]]:
    """The output items of a whole completion."""
    told = ItemEvents(numbered())
    told.feed(read_whole(router, text))
    told.finish(incomplete)
    return told.items


def test_whole_items_are_openais() -> None:
    items = items_of(make_router("hermes", "think"), TEXT)
    adapter: Any = TypeAdapter(ResponseOutputItem)
    parsed = [adapter.validate_python(item, strict=True) for item in items]
    assert [item.type for item in parsed] == ["reasoning", "message", "function_call", "function_call", "message"]
    assert parsed[0].content[0].text == "hm"
    assert [parsed[1].content[0].text, parsed[4].content[0].text] == ["See:", "Done."]
    assert [(c.call_id, c.name, c.arguments) for c in parsed[2:4]] == [
        ("id0", "get_weather", '{"city": "Rom"}'),
        ("id1", "clock", "{}"),
    ]
    assert [item.id for item in parsed] == ["rs_0", "msg_1", "fc_2", "fc_3", "msg_4"]
    assert {item.status for item in parsed} == {"completed"}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_events_are_openais_and_add_up_to_the_items(size: int) -> None:
    router, told, events = make_router("hermes", "think"), ItemEvents(numbered()), list[dict[str, Any]]()
    for i in range(0, len(TEXT), size):
        events += told.feed(router.feed(TEXT[i : i + size]))
    events += told.feed(router.finish()) + told.finish()
    adapter: Any = TypeAdapter(ResponseStreamEvent)
    grown: dict[str, str] = {}
    done: list[Any] = []
    for i, event in enumerate(events):
        parsed = adapter.validate_python({**event, "sequence_number": i})
        assert parsed.type == event["type"]
        if event["type"] == "response.output_item.added":
            assert event["item"]["status"] == "in_progress"
            assert event["output_index"] == len(done)
            grown[event["item"]["id"]] = ""
        elif event["type"].endswith(".delta"):
            grown[event["item_id"]] += event["delta"]
        elif event["type"] == "response.output_item.done":
            done.append(event["item"])
    assert done == told.items == items_of(make_router("hermes", "think"), TEXT)
    texts = [item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"] for item in done]
    assert texts == list(grown.values())


@pytest.mark.parametrize(("text", "status"), [("Half", "incomplete"), ('<tool_call>{"name":"clock"', "incomplete")])
def test_what_was_cut_off_says_so(text: str, status: str) -> None:
    items = items_of(make_router("hermes"), text, incomplete=True)
    assert [item["status"] for item in items] == [status]


def test_a_call_that_was_cut_off_is_incomplete_by_itself() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {"a'
    items = items_of(make_router("hermes"), text)
    assert [(item["type"], item["status"]) for item in items] == [("function_call", "incomplete")]
