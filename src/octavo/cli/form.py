"""Options that say which form an answer must have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from octavo.cli.options import read_text_file
from octavo.errors import UsageError
from octavo.grammar.checked import checked_grammar
from octavo.structured_outputs import StructuredOutputs

_OPTIONS = [
    click.option("--json-schema", metavar="FILE", help="Answer in JSON of this schema."),
    click.option("--regex", metavar="REGEX", help="The whole answer matches this regular expression."),
    click.option("--choice", multiple=True, metavar="TEXT", help="Answer with this text; give several to choose from."),
    click.option("--grammar", metavar="FILE", help="Answer in this grammar: Lark's notation, or llama.cpp's GBNF."),
]


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; `split_form` takes them out again."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def split_form(options: dict[str, Any]) -> StructuredOutputs | None:
    """Remove these options from ``options``; the form that they say, None if they say none.

    Raises:
        UsageError: there are two, or a file cannot be read. RequestError: the form cannot be used.
    """
    schema, regex, choice, grammar = (options.pop(name) for name in ("json_schema", "regex", "choice", "grammar"))
    given = {"json": schema, "regex": regex, "choice": list(choice) or None, "grammar": grammar}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise UsageError("give one of --json-schema, --regex, --choice, --grammar")
    if not given:
        return None
    for name, what in (("json", "the JSON schema"), ("grammar", "the grammar")):
        if name in given:
            given[name] = read_text_file(what, given[name])
    form = StructuredOutputs(**given)
    if grammar is None:  # which may name special tokens, which only the model knows
        checked_grammar(form)
    return form
