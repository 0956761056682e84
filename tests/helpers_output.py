"""Runs texts through the output router, cut in chosen places, and spells calls in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from octavo.text.output.calls import Function
from octavo.text.output.formats import OutputFormat, reasoning_format, tool_format
from octavo.text.output.pieces import Piece, ToolArguments, ToolCallEnd, ToolCallStart, joined
from octavo.text.output.router import OutputRouter

WEATHER = Function(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}},
        "required": ["city"],
    },
)
CLOCK = Function("clock", {"type": "object", "properties": {}})
FUNCTIONS = (WEATHER, CLOCK)

Call = tuple[str, dict[str, Any]]


def _json(name: str, arguments: dict[str, Any], key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def _args(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _tagged(value: Any) -> str:
    return value if isinstance(value, str) else _args(value)


def _qwen3_coder(calls: Sequence[Call]) -> str:
    def one(name: str, arguments: dict[str, Any]) -> str:
        tags = "".join(f"<parameter={k}>\n{_tagged(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{tags}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


def _glm45(calls: Sequence[Call]) -> str:
    def one(name: str, arguments: dict[str, Any]) -> str:
        tags = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{_tagged(v)}</arg_value>\n" for k, v in arguments.items())
        return f"<tool_call>{name}\n{tags}</tool_call>"

    return "\n".join(one(*call) for call in calls)


def _deepseek_v3(calls: Sequence[Call]) -> str:
    def one(name: str, a: dict[str, Any]) -> str:
        return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_args(a)}\n```<｜tool▁call▁end｜>"

    return f"<｜tool▁calls▁begin｜>{chr(10).join(one(*c) for c in calls)}<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Sequence[Call]) -> str:
    inner = "".join(f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{_args(a)}<｜tool▁call▁end｜>" for n, a in calls)
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def _kimi_k2(calls: Sequence[Call]) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{_args(a)}<|tool_call_end|>"
        for i, (n, a) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def _pythonic(calls: Sequence[Call]) -> str:
    def one(name: str, arguments: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    return f"[{', '.join(one(*call) for call in calls)}]"


SPELLINGS: dict[str, list[Callable[[Sequence[Call]], str]]] = {
    "hermes": [
        lambda calls: "\n".join(f"<tool_call>\n{_json(*c)}\n</tool_call>" for c in calls),
        lambda calls: f"<tool_call>[{','.join(_json(*c) for c in calls)}]</tool_call>",
    ],
    "llama3_json": [
        lambda calls: "; ".join(_json(*c, key="parameters") for c in calls),
        lambda calls: "".join(f"<|python_tag|>{_json(*c, key='parameters')}" for c in calls),
    ],
    "mistral": [
        lambda calls: f"[TOOL_CALLS] [{', '.join(_json(*c) for c in calls)}]",
        lambda calls: "".join(f"[TOOL_CALLS]{n}{_args(a)}" for n, a in calls),
    ],
    "mistral_args": [lambda calls: "".join(f"[TOOL_CALLS]{n}[ARGS]{_args(a)}" for n, a in calls)],
    "json": [
        lambda calls: "\n".join(_json(*c) for c in calls),
        lambda calls: f"[{', '.join(_json(*c) for c in calls)}]",
    ],
    "phi4_mini_json": [lambda calls: f"<|tool_call|>[{', '.join(_json(*c) for c in calls)}]<|/tool_call|>"],
    "granite": [lambda calls: f"<|tool_call|>[{', '.join(_json(*c) for c in calls)}]"],
    "qwen3_coder": [_qwen3_coder],
    "glm45": [_glm45],
    "deepseek_v3": [_deepseek_v3],
    "deepseek_v31": [_deepseek_v31],
    "kimi_k2": [_kimi_k2],
    "pythonic": [_pythonic],
}
"""Format -> the ways to write a list of calls in it, as its models do."""


def make_router(tools: str | None, reasoning: str | None = None, **options: Any) -> OutputRouter:
    """A router whose ids are id0, id1, …"""
    numbers = count()
    format = OutputFormat(reasoning_format(reasoning) if reasoning else None, tool_format(tools) if tools else None)
    options.setdefault("functions", FUNCTIONS)
    return OutputRouter(format, new_id=lambda: f"id{next(numbers)}", **options)


def route(deltas: Iterable[str], tools: str | None, reasoning: str | None = None, **options: Any) -> list[Piece]:
    """The pieces of a text, joined."""
    router, pieces = make_router(tools, reasoning, **options), list[Piece]()
    for delta in deltas:
        for piece in router.feed(delta):
            joined(pieces, piece)
    for piece in router.finish():
        joined(pieces, piece)
    return pieces


def calls_of(pieces: Sequence[Piece]) -> list[Call]:
    """The complete calls among joined pieces, with their arguments parsed."""
    calls = []
    for start, arguments, end in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if isinstance(start, ToolCallStart):
            assert isinstance(arguments, ToolArguments)
            assert isinstance(end, ToolCallEnd)
            assert end.complete
            assert start.index == arguments.index == end.index == len(calls)
            calls.append((start.name, json.loads(arguments.text)))
    return calls
