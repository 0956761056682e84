"""From the form that a request asks for to a grammar of llguidance, and the limits within which one is worked on."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

LITTLE_WHITESPACE = r"[ \t\n\r]{1,40}"
"""Between the parts of JSON: enough to indent a line, too little to write nothing else until the end."""


def grammar_of(kind: str, value: Any, compact: bool) -> str:
    """The library's grammar for ``value`` of one of the kinds of ``StructuredOutputs``; it is not checked.

    ``compact``: JSON without whitespace. Raises ``ValueError`` where a conversion already fails.
    """
    if kind == "json_object":
        kind, value = "json", '{"type": "object"}'
    if kind == "json":
        if compact:
            return LLMatcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": False})
        return LLMatcher.grammar_from_json_schema(value, defaults={"whitespace_pattern": LITTLE_WHITESPACE})
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, value)))  # its strings are JSON's
    return LLMatcher.grammar_from_lark(any_to_lark(value))


def parser_limits() -> LLParserLimits:
    """What one grammar may cost: parts of a second to compile, some 20 MB, and some 10 ms for a mask.

    A rule that can be read in many ways (``s: s s | "a"``) has the dearest masks, as others wait for them; 4,000 items
    are enough for a schema of hundreds of optional properties.
    """
    return LLParserLimits(step_lexer_fuel=100_000, step_max_items=4_000, max_lexer_states=25_000, verbose_errors=False)


def explain(error: str) -> str:
    """The library's message in one line, without the excerpts of the source that it shows."""
    if error.startswith("NoExtension"):
        return "nothing can match it"
    lines = [line for line in error.splitlines() if not re.match(r"\s*(\d+ )?\||\s*\^|<non-verbose", line)]
    return " ".join(" ".join(lines).split())[:300] or "it cannot be compiled"
