from __future__ import annotations

from typing import Any

import pytest

from octavo.openai.errors import FieldError
from octavo.openai.tool_choice import MAX_TOOLS, functions_of, tool_use
from octavo.text.output.calls import Function

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "…", "parameters": SCHEMA}}
CLOCK = {"type": "function", "name": "clock", "strict": True}
TOOLS = [WEATHER, CLOCK]


def names(choice: Any = None, parallel: bool | None = None) -> tuple[list[str], bool, bool]:
    use = tool_use(TOOLS, choice, parallel)
    return [function.name for function in use.functions], use.required, use.parallel


def test_tools_of_chats_and_of_responses() -> None:
    assert functions_of(TOOLS) == (
        Function("weather", SCHEMA),
        Function("clock", {"type": "object", "properties": {}}),
    )
    assert functions_of(None) == functions_of([]) == ()


def test_choices() -> None:
    both = ["weather", "clock"]
    assert names() == names("auto") == names(None, True) == (both, False, True)
    assert names("none") == ([], False, True)
    assert names("required") == (both, True, True)
    assert names("required", False) == (both, True, False)
    assert names("auto", False) == (both, False, False)
    assert names({"type": "function", "function": {"name": "clock"}}) == (["clock"], True, False)
    assert names({"type": "function", "name": "clock"}) == (["clock"], True, False)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_some_of_the_tools(mode: str) -> None:
    flat = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "clock"}]}
    nested = {"mode": mode, "tools": [{"type": "function", "function": {"name": "clock"}}]}
    expected = (["clock"], mode == "required", True)
    assert names(flat) == names({"type": "allowed_tools", "allowed_tools": nested}) == expected


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "web_search"}], None, r"tools\[0\] is of type 'web_search'; accepted: function"),
        (["clock"], None, "is of type 'clock'; accepted: function"),
        ([{"type": "function"}], None, "has no name"),
        ([{"type": "function", "function": {"name": 5}}], None, "has no name"),
        ([{"type": "function", "function": "clock"}], None, "has no name"),
        ([{"type": "function", "name": "f", "parameters": [1]}], None, "no JSON schema"),
        ([CLOCK, CLOCK], None, "'clock' is defined twice"),
        ([CLOCK] * (MAX_TOOLS + 1), None, f"at most {MAX_TOOLS}"),
        (TOOLS, "any", "tool_choice='any'; accepted: 'auto', 'none', 'required'"),
        (TOOLS, {"type": "custom"}, "tool_choice={'type': 'custom'}; accepted"),
        (TOOLS, {"type": "function", "function": {"name": "rm"}}, "names 'rm'; accepted: weather, clock"),
        (TOOLS, {"type": "function"}, "names None"),
        (None, {"type": "function", "name": "rm"}, "accepted: none, as there are no tools"),
        (None, "required", "there are no tools"),
        (TOOLS, {"type": "allowed_tools"}, "allowed_tools takes mode"),
        (TOOLS, {"type": "allowed_tools", "mode": "never", "tools": [CLOCK]}, "allowed_tools takes mode"),
        (TOOLS, {"type": "allowed_tools", "tools": [5]}, "names None"),
    ],
)
def test_malformed_ones_give_one_line(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        tool_use(tools, choice)
    assert "\n" not in str(caught.value)
    assert caught.value.param == ("tool_choice" if "tool_choice" in str(caught.value) else "tools")
