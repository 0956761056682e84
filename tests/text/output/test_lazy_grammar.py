"""Under a lazy grammar a model writes what it likes, but no call that does not hold its function's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from helpers_output import SPELLINGS, calls_of
from octavo.grammar.source import parser_limits
from octavo.text.output.calls import Function
from octavo.text.output.choice import ToolUse
from octavo.text.output.formats import TOOLS, OutputFormat, reasoning_format, tool_format
from octavo.text.output.lazy_grammar import lazy_call_grammar
from octavo.text.output.pieces import Content
from octavo.text.output.router import OutputRouter, read_whole

ORDER = Function(
    "order",
    {
        "type": "object",
        "properties": {"count": {"type": "integer"}, "gift": {"type": "boolean"}},
        "required": ["count", "gift"],
        "additionalProperties": False,
    },
    strict=True,
)
ASK = Function(
    "ask", {"type": "object", "properties": {"size": {"type": "string", "enum": ["S", "L"]}}, "required": ["size"]}
)
USE = ToolUse((ORDER, ASK))
GOOD = [("order", {"count": 3, "gift": True}), ("ask", {"size": "L"})]
BAD = [
    ("order", {"count": "three", "gift": True}),
    ("order", {"count": 3}),
    ("ask", {"size": "XL"}),  # one strict function makes all of them so
    ("steal", {"count": 3, "gift": True}),
]
MARKED = [format.name for format in TOOLS if not format.bare]


class Checker:
    """Whether texts are of a grammar; ``special`` texts are tokens of their own, all others bytes."""

    def __init__(self, grammar: str, special: Sequence[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [b"<end>"] + [name.encode() for name in special]
        self.special_token_ids, self.eos_token_id = list(range(256, len(self.tokens))), 256
        self.bos_token_id = None
        self._special = {name: 257 + i for i, name in enumerate(special)}
        self._tokenizer, self._grammar = LLTokenizer(TokenizerWrapper(self)), LLMatcher.grammar_from_lark(grammar)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def ids(self, text: str) -> list[int]:
        parts = re.split("(" + "|".join(map(re.escape, self._special)) + ")", text) if self._special else [text]
        return [i for part in parts for i in ([self._special[part]] if part in self._special else part.encode())]

    def allows(self, text: str) -> bool:
        """Whether a completion may consist of ``text``, and nothing else."""
        matcher = LLMatcher(self._tokenizer, self._grammar, log_level=0, limits=parser_limits())
        assert not matcher.is_error(), matcher.get_error()
        ids = self.ids(text)
        if matcher.validate_tokens(ids) < len(ids):
            return False
        assert matcher.consume_tokens(ids)
        return matcher.is_accepting()


def markers_of(name: str) -> list[str]:
    found = re.findall(r"<[^\s<>]+>|\[[A-Z_]+\]", " ".join(tool_format(name).markers))
    return sorted(set(found))


def spellings(name: str, calls: Sequence[Any]) -> list[str]:
    """The ways in which models of a format write calls. Grammars know one of them."""
    return [spell(calls).replace("[TOOL_CALLS] ", "[TOOL_CALLS]") for spell in SPELLINGS[name]]


def spell(name: str, calls: Sequence[Any]) -> str:
    return spellings(name, calls)[0]


def checker(name: str, use: ToolUse = USE, special: Sequence[str] = (), reasoning: str = "", **options: Any) -> Checker:
    format = OutputFormat(reasoning_format(reasoning) if reasoning else None, tool_format(name))
    grammar = lazy_call_grammar(format, use, {text: 257 + i for i, text in enumerate(special)}, **options)
    assert grammar is not None
    return Checker(grammar, special)


@pytest.mark.parametrize("are_special", [False, True])
@pytest.mark.parametrize("name", MARKED)
def test_text_is_free_and_calls_are_not(name: str, are_special: bool) -> None:
    texts = checker(name, special=markers_of(name) if are_special else [])
    format, one = tool_format(name), [[call] for call in GOOD]
    for text in ("", "Hello\n", "{}", '{"name": "order"}', "< and <to", "a\U0001f600"):
        assert texts.allows(text), text
    for calls in [*one, GOOD] if format.between is not None or format.shape.as_list else one:
        known = [text for text in spellings(name, calls) if texts.allows(text)]
        assert known, spellings(name, calls)
        written = known[0]
        assert texts.allows(f"Sure.\n{written} Done."), written
        told = read_whole(OutputRouter(OutputFormat(tools=format), USE.functions), f"Sure.\n{written} Done.")
        assert calls_of(told) == calls
    for call in BAD:
        for wrong in spellings(name, [call]):
            assert not texts.allows(f"Sure. {wrong}"), call
            assert not any(texts.allows(right + wrong) for right in spellings(name, [GOOD[0]])), call
    for marker in format.openings:
        assert not texts.allows(marker)
        assert not texts.allows(f"{marker} {json.dumps(GOOD)}")


def test_after_one_call_there_is_no_other_if_several_are_not_wanted() -> None:
    texts, call = checker("hermes", ToolUse((ORDER,), parallel=False)), spell("hermes", GOOD[:1])
    assert texts.allows(f"a {call} b")
    assert not texts.allows(f"a {call} b {call}")


@pytest.mark.parametrize("special", [[], ["<think>", "</think>"], ["<tool_call>", "</tool_call>"]])
def test_what_is_thought_is_free_and_what_is_answered_then_is_not(special: list[str]) -> None:
    good, bad = (spell("hermes", [call]) for call in (GOOD[0], BAD[0]))
    thought = "" if "<tool_call>" in special else f"maybe {bad}, or {good} "
    may_think = checker("hermes", special=special, reasoning="think")
    for text in (f"<think>{thought}</think>Hi {good}", f"<think>{thought}</think>", f"Hi {good}", "Hi"):
        assert may_think.allows(text), text
    for text in (f"<think>{thought}</think>{bad}", bad, f"a <think> {bad} </think>"):
        assert not may_think.allows(text), text
    thinks = checker("hermes", special=special, reasoning="think", in_reasoning=True)
    assert thinks.allows(f"{thought}</think>{good}")
    assert not thinks.allows(f"{thought}</think>{bad}")
    assert not thinks.allows(good), "it has not come to an end of its thoughts"


@pytest.mark.parametrize("name", ["json", "llama3_json", "pythonic"])
def test_there_is_none_where_a_call_has_no_marker(name: str) -> None:
    assert lazy_call_grammar(OutputFormat(tools=tool_format(name)), USE, {}) is None


def test_there_is_none_without_functions_or_a_format() -> None:
    assert lazy_call_grammar(OutputFormat(), USE, {}) is None
    assert lazy_call_grammar(OutputFormat(tools=tool_format("hermes")), ToolUse(), {}) is None


def test_a_text_without_calls_is_content() -> None:
    assert read_whole(OutputRouter(OutputFormat(tools=tool_format("hermes")), USE.functions), "< and <to") == [
        Content("< and <to")
    ]
