from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import ContentBlock, RawMessageStreamEvent
from pydantic import TypeAdapter

from helpers_output import SPELLINGS, make_router
from octavo.anthropic.blocks import BlockEvents, content_blocks, stop_reason
from octavo.text.output.router import read_whole

TEXT = "<think>\nhm\n</think>\n\nSee:\n" + SPELLINGS["hermes"][0]([("get_weather", {"city": "Rom"}), ("clock", {})])
TEXT += "\nDone."


def test_whole_blocks_are_anthropics() -> None:
    blocks = content_blocks(read_whole(make_router("hermes", "think"), TEXT))
    adapter: Any = TypeAdapter(ContentBlock)
    assert [adapter.validate_python(block).type for block in blocks] == [block["type"] for block in blocks]
    assert blocks == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "See:"},
        {"type": "tool_use", "id": "id0", "name": "get_weather", "input": {"city": "Rom"}},
        {"type": "tool_use", "id": "id1", "name": "clock", "input": {}},
        {"type": "text", "text": "Done."},
    ]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_events_are_anthropics_and_add_up_to_the_blocks(size: int) -> None:
    router, told, events = make_router("hermes", "think"), BlockEvents(), list[dict[str, Any]]()
    for i in range(0, len(TEXT), size):
        events += told.feed(router.feed(TEXT[i : i + size]))
    events += told.feed(router.finish()) + told.finish()
    adapter: Any = TypeAdapter(RawMessageStreamEvent)
    blocks, is_open, inputs = list[dict[str, Any]](), False, dict[int, str]()
    for event in events:
        assert adapter.validate_python(event).type == event["type"]
        assert is_open == (event["type"] != "content_block_start")
        is_open = event["type"] != "content_block_stop"
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            kind, text = event["delta"]["type"].removesuffix("_delta"), [*event["delta"].values()][1]
            if kind == "input_json":
                inputs[event["index"]] = inputs.get(event["index"], "") + text
            else:
                blocks[-1][kind] += text
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text)
    assert not is_open
    assert blocks == content_blocks(read_whole(make_router("hermes", "think"), TEXT))


@pytest.mark.parametrize("arguments", ['{"a', "{'a': 1}"])
def test_arguments_that_are_no_json(arguments: str) -> None:
    text = f'<tool_call>{{"name": "clock", "arguments": {arguments}'
    (block,) = content_blocks(read_whole(make_router("hermes"), text))
    assert block["input"] == {"INVALID_JSON": arguments}


@pytest.mark.parametrize(
    ("reason", "called", "stopped", "expected"),
    [
        ("stop", False, False, "end_turn"),
        ("stop", True, False, "tool_use"),
        ("stop", False, True, "stop_sequence"),
        ("length", True, False, "max_tokens"),
        (None, False, False, None),
    ],
)
def test_stop_reasons(reason: str | None, called: bool, stopped: bool, expected: str | None) -> None:
    assert stop_reason(reason, called, stopped) == expected
