"""Grammars that force a model to call, in its own way of writing calls."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.text.output.choice import ToolUse
from octavo.text.output.formats import OutputFormat, ReasoningFormat, ToolFormat
from octavo.text.output.lark import Speller, speller


def call_grammar(
    format: OutputFormat, use: ToolUse, special: Mapping[str, int], *, in_reasoning: bool = False
) -> str | None:
    """The grammar, in llguidance's dialect of Lark, of a completion that must call; None if it need not.

    It may reason first, if the model does. Give it as ``structured_outputs=StructuredOutputs(grammar=…)``.

    Args:
        special: the markers that are special tokens; see `special_markers`.
        in_reasoning: the prompt has opened the reasoning already.
    """
    if not use.required or not use.functions or format.tools is None:
        return None
    spell, opening = speller(special), format.tools.section[0] + format.tools.start
    lines = [f"start: {_reasoning(format.reasoning, in_reasoning)} {calls_from(opening, format.tools, use, spell)}"]
    if format.reasoning is not None:
        lines.append(reasoning_rules(format.reasoning, special))
    return "\n".join([*lines, *call_rules(format.tools, use, spell)])


def call_rules(format: ToolFormat, use: ToolUse, spell: Speller) -> list[str]:
    """The rules of ``call``, which is a call of one of the functions."""
    any_of = f"call: {' | '.join(f'call_{i}' for i in range(len(use.functions)))}"
    return [any_of, *(format.shape.rules(f"call_{i}", f, spell) for i, f in enumerate(use.functions))]


def calls_from(opening: str, format: ToolFormat, use: ToolUse, spell: Speller) -> str:
    """One call, or one or more, with the format's markers: from ``opening``, the end of those before a call, on."""
    start, end, after = spell(opening), spell("".join(format.ends)), spell(format.section[1])
    if format.shape.as_list:
        more = '(", " call)*' if use.parallel else ""
        return f'{start} "[" call {more} "]" {end} {after}'
    again = spell((format.between or "") + format.start)
    more = f"({again} call {end})*" if use.parallel and format.between is not None else ""
    return f"{start} call {end} {more} {after}"


def _reasoning(format: ReasoningFormat | None, in_reasoning: bool) -> str:
    if format is None:
        return ""
    return "thinking" if in_reasoning else "(thinking_start thinking)?"


def reasoning_rules(format: ReasoningFormat, special: Mapping[str, int]) -> str:
    """The rules of ``thinking_start``, its marker, and of ``thinking``: any text up to the end marker.

    What a special token ends needs no look-ahead; a text is found lazily.
    """
    spell = speller(special)
    start = f"thinking_start: {spell(format.start)}\n"
    if format.end in special:
        return start + f"thinking: /(.|\\n)*/ {spell(format.end)} /[ \\n]{{0,2}}/"
    return start + f"thinking: thought /[ \\n]{{0,2}}/\nthought[lazy]: /(.|\\n)*/ {spell(format.end)}"
