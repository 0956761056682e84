"""Grammars under which a model may answer as it likes, but calls, if it calls, as its functions want.

They are lazy: any text may be written, up to the marker that begins calls; from there on it must be a call whose
arguments hold their schema, and behind that any text again. So a marker cannot be written without a call. That needs
a format whose calls begin with one: where a bare JSON object is a call, any other object would have to be forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from octavo.text.output.choice import ToolUse
from octavo.text.output.formats import OutputFormat, ReasoningFormat, ToolFormat
from octavo.text.output.grammar import call_rules, calls_from, reasoning_rules
from octavo.text.output.lark import speller

_ANY = r"(.|\n)*"


def lazy_call_grammar(
    format: OutputFormat, use: ToolUse, special: Mapping[str, int], *, in_reasoning: bool = False
) -> str | None:
    """The grammar, in llguidance's dialect of Lark, of a completion that may call; None where the format of its calls
    allows none. The arguments are as in `call_grammar`.
    """
    tools, reasoning = format.tools, format.reasoning
    if not use.functions or tools is None or tools.bare:
        return None
    may_reason = reasoning is not None and not in_reasoning
    lines = [_start(reasoning, may_reason), *_answer("answer", tools, use, special)]
    if reasoning is not None:
        lines.append(reasoning_rules(reasoning, special))
    if reasoning is not None and may_reason:
        lines += _answer("first", tools, use, special, () if reasoning.start in special else (reasoning.start,))
    lines.append(f"calls: {_calls(tools, use, special)}")
    return "\n".join([*lines, *call_rules(tools, use, speller(special))])


def _start(reasoning: ReasoningFormat | None, may_reason: bool) -> str:
    if reasoning is None:
        return "start: answer"
    return "start: thinking_start thinking answer | first" if may_reason else "start: thinking answer"


def _calls(format: ToolFormat, use: ToolUse, special: Mapping[str, int]) -> str:
    """What follows the first marker: one call, or all of a section or a list. Others have a marker of their own."""
    opening = (format.section[0] + format.start).removeprefix(format.openings[0])
    several = replace(use, parallel=use.parallel and bool(format.section[0] or format.shape.as_list))
    return calls_from(opening, format, several, speller(special))


def _answer(
    name: str, format: ToolFormat, use: ToolUse, special: Mapping[str, int], not_begun_by: Sequence[str] = ()
) -> list[str]:
    """The rules of ``name``: texts and calls by turns. What it may not begin with is some other rule's to read.

    A text ends before a special token by itself. Other markers end it lazily, and no text may have one in it.
    """
    first, free, before = format.openings[0], f"{name.upper()}_TEXT", f"{name}_before"
    beginnings = [rf"~/[ \n]*{_escaped(marker)}{_ANY}/" for marker in not_begun_by]
    limits = {marker: f"~/{_ANY}{_escaped(marker)}{_ANY}/" for marker in format.openings if marker not in special}
    text = " & ".join([f"/{_ANY}/", *limits.values(), *beginnings])
    if first in special:
        rule = f"{before}: {free} {speller(special)(first)}"
    else:
        del limits[first]
        rule = f"{before}[lazy]: {' & '.join([f'/{_ANY}{_escaped(first)}/', *limits.values(), *beginnings])}"
    after = "answer" if use.parallel else "ANSWER_TEXT"
    return [f"{name}: {free} | {before} calls {after}", f"{free}: {text}", rule]


def _escaped(text: str) -> str:
    """A text within a regular expression of the dialect."""
    return re.escape(text).replace("/", r"\/")
