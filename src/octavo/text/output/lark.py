"""Parts of grammars in llguidance's dialect of Lark, as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Speller = Callable[[str], str]
"""Gives the terminals that a fixed text consists of."""

_DEFINITIONS = ("$defs", "definitions")
_OPEN = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "if"}
)
"""Keywords that say something about properties that are not listed."""

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as chat templates print it. Free white space would let a small model write nothing else."""


def quoted(text: str) -> str:
    """The terminal of a text without special tokens."""
    return json.dumps(text, ensure_ascii=False)


def speller(special: Mapping[str, int]) -> Speller:
    """What spells texts in which the ``special`` tokens, text -> id, stand for themselves."""
    names = sorted(special, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def spell(text: str) -> str:
        terminals, at = list[str](), 0
        for found in pattern.finditer(text):
            terminals += [quoted(text[at : found.start()]), _token(found[0], special[found[0]])]
            at = found.end()
        return " ".join(terminal for terminal in (*terminals, quoted(text[at:])) if terminal != '""')

    return spell


def json_value(schema: Any, root: Any = None) -> str:
    """The part that is a JSON value of a schema, which may refer to definitions of the schema ``root``."""
    shared = {name: root[name] for name in _DEFINITIONS if name in root} if isinstance(root, Mapping) else {}
    if isinstance(schema, Mapping):
        schema = {**shared, **schema, "x-guidance": _STYLE}
    elif schema is True:
        schema = {"x-guidance": _STYLE}
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def arguments_object(schema: Any) -> str:
    """The part that is a call's arguments: an object, even if the schema forgets to say so.

    Without a word on further properties there are none: a small model would go on with them, and no function expects
    any.
    """
    schema = schema if isinstance(schema, Mapping) else {}
    if not _OPEN.intersection(schema):
        schema = {"type": "object", **schema}
        if "properties" in schema:
            schema["additionalProperties"] = False
    return json_value(schema)


def _token(name: str, token_id: int) -> str:
    """A special token: by its name if that is in angle brackets, which the dialect wants, else by its id."""
    return name if re.fullmatch(r"<[^\s<>\[\]]+>", name) else f"<[{token_id}]>"
