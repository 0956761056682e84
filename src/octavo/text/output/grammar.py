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
    spell = speller(special)
    lines = [f"start: {_reasoning(format.reasoning, in_reasoning)} {_calls(format.tools, use, spell)}"]
    if format.reasoning is not None:
        lines.append(_thinking(format.reasoning, special))
    lines.append(f"call: {' | '.join(f'call_{i}' for i in range(len(use.functions)))}")
    rules = [format.tools.shape.rules(f"call_{i}", function, spell) for i, function in enumerate(use.functions)]
    return "\n".join([*lines, *rules])


def _calls(format: ToolFormat, use: ToolUse, spell: Speller) -> str:
    """One call, or one or more, between the format's markers."""
    start, end = spell(format.start), spell("".join(format.ends))
    before, after = map(spell, format.section)
    if format.shape.as_list:
        more = '(", " call)*' if use.parallel else ""
        return f'{before} {start} "[" call {more} "]" {end} {after}'
    more = f"({spell(format.between)} {start} call {end})*" if use.parallel and format.between is not None else ""
    return f"{before} {start} call {end} {more} {after}"


def _reasoning(format: ReasoningFormat | None, in_reasoning: bool) -> str:
    if format is None:
        return ""
    return "thinking" if in_reasoning else "(thinking_start thinking)?"


def _thinking(format: ReasoningFormat, special: Mapping[str, int]) -> str:
    """Any text up to the end marker. What a special token ends needs no look-ahead; a text is found lazily."""
    spell = speller(special)
    start = f"thinking_start: {spell(format.start)}\n"
    if format.end in special:
        return start + f"thinking: /(.|\\n)*/ {spell(format.end)} /[ \\n]{{0,2}}/"
    return start + f"thinking: thought /[ \\n]{{0,2}}/\nthought[lazy]: /(.|\\n)*/ {spell(format.end)}"
