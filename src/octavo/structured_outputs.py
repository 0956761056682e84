"""What a completion must look like: JSON of a schema, a regular expression, a choice, a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from octavo.errors import RequestError, reject_unknown

MAX_CHARACTERS = 1 << 18
"""Of a schema, regular expression or grammar, and of all choices together."""

MAX_CHOICES = 10_000

KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """The form of a completion, given in exactly one of five ways. Names are those of vLLM's
    ``StructuredOutputsParams``.

    Attributes:
        json: a JSON schema, as a dictionary or as text; kept as text, whose order of properties is that of the answer.
        regex: a regular expression that matches the whole completion (syntax of Rust's ``regex``, no look-around).
        choice: the completion is one of these texts.
        grammar: a context-free grammar in Lark's notation (as llguidance extends it) or in llama.cpp's GBNF.
        json_object: any JSON object.
        disable_any_whitespace: JSON without whitespace between its parts; else there is a little at most, so that a
            small model cannot fill its answer with it.
    """

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> StructuredOutputs:
        reject_unknown("StructuredOutputs", kwargs, (f.name for f in fields(cls)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs has {', '.join(given) or 'no form'}; give one of {', '.join(KINDS)}"
            )
        for name in ("json_object", "disable_any_whitespace"):
            _boolean(name, getattr(self, name))
        if self.disable_any_whitespace and given[0] not in ("json", "json_object"):
            raise RequestError("disable_any_whitespace goes with json or json_object")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("json", "regex", "grammar"):
            _check_text(name, getattr(self, name))

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(name for name in KINDS if getattr(self, name))

    @property
    def key(self) -> tuple[Any, ...]:
        """Hashable; equal for equal forms."""
        value = getattr(self, self.kind)
        return self.kind, tuple(value) if isinstance(value, list) else value, self.disable_any_whitespace


def _schema_text(schema: Any) -> str:
    """The JSON text of a schema that is a dictionary, or the text of an object. Raises ``RequestError`` for others."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
        found = json.loads(text) if len(text) <= MAX_CHARACTERS else {}
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"json is no JSON schema: {str(error)[:200]}; accepted: a dictionary or its text") from None
    if not isinstance(schema, str | Mapping) or not isinstance(found, dict):
        raise RequestError(f"json={schema!r:.80}; accepted: a JSON schema as a dictionary or as text")
    return text


def _choices(choices: Any) -> list[str]:
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise RequestError(f"choice={choices!r:.80}; accepted: a list of texts that are not empty")
    size = sum(map(len, choices))
    if len(choices) > MAX_CHOICES or size > MAX_CHARACTERS:
        raise RequestError(
            f"choice has {len(choices)} texts with {size} characters; "
            f"at most {MAX_CHOICES} with {MAX_CHARACTERS} are accepted"
        )
    for choice in choices:
        _check_text("choice", choice)
    return list(choices)


def _check_text(name: str, text: Any) -> None:
    """Raise ``RequestError`` unless it is None or a text that can be encoded, not empty and not too long."""
    if text is None:
        return
    if not isinstance(text, str) or not text:
        raise RequestError(f"{name}={text!r:.80}; accepted: a text that is not empty")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"{name} has {len(text)} characters; at most {MAX_CHARACTERS} are accepted")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds half of a surrogate pair; accepted: valid Unicode") from None


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"{name}={value!r:.80}; accepted: True, False")
