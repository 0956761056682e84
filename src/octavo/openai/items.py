"""Reading the parts of a conversation, which bodies hold as objects of all kinds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from octavo.openai.errors import FieldError


def string_in(where: str, item: Mapping[str, Any], name: str, field: str) -> str:
    """A text that ``item`` must have under ``name``; ``where`` it stands in ``field`` of the body.

    Raises:
        FieldError: there is none.
    """
    value = item.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{where} has no {name} that is a text", field)
    return value


def text_part(where: str, part: Any, field: str, kinds: Collection[str] = ("text",)) -> str:
    """The text of a part of a content. Raises ``FieldError`` for one that is of none of ``kinds``."""
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind not in kinds:
        raise FieldError(f"{where} is of type {kind!r:.40}; accepted: text (this model reads text only)", field)
    return string_in(where, part, "text", field)
