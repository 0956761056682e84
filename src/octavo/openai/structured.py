"""From a body's fields to the form that its completions must have.

OpenAI's ``response_format``, vLLM's ``structured_outputs``, and the ``guided_…`` fields of vLLM's older versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo.errors import RequestError, UsageError
from octavo.openai.errors import FieldError
from octavo.structured_outputs import StructuredOutputs

GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
"""vLLM's older fields -> the fields of ``StructuredOutputs``."""

FIELDS = ("response_format", "structured_outputs", *GUIDED)
"""The fields of a body that say a form."""

CALLS = "tools"
"""The field to blame where the form is that of a tool call."""

_SCHEMA_KEYS = frozenset({"type", "json_schema", "name", "description", "schema", "strict"})


def structured_outputs_of(fields: Mapping[str, Any]) -> StructuredOutputs | None:
    """The form that a body asks for, of those of its ``fields`` that are in `FIELDS`; None if it asks for none.

    Raises:
        FieldError: a field is malformed, or two say a form.
    """
    forms = {name: form for name in FIELDS if (form := _form_of(name, fields.get(name))) is not None}
    if len(forms) > 1:
        names = list(forms)
        raise FieldError(f"{names[1]}: {names[0]} says a form already; give one of the two", names[1])
    return next(iter(forms.values()), None)


def form_field(body: object) -> str:
    """Which field of a body says the form of its completions; `CALLS` if none does."""
    return next((name for name in FIELDS if getattr(body, name, None) is not None), CALLS)


def form_error(field: str, why: object) -> FieldError:
    """A form cannot be used: the mistake of the ``field`` that asks for it."""
    return FieldError(f"{field}: {why}", field)


def _form_of(name: str, value: Any) -> StructuredOutputs | None:
    if value is None:
        return None
    if name == "response_format":
        return response_form(value)
    options = {GUIDED[name]: value} if name in GUIDED else value
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise FieldError(f"{name}={value!r:.80}; accepted: an object", name)
    return _make(name, {key: option for key, option in options.items() if option is not None})


def response_form(value: Any, name: str = "response_format") -> StructuredOutputs | None:
    """The form of a ``response_format``, or of the ``text.format`` of a response, whose field is ``name``.

    A schema is always kept, whether it is ``strict`` or not.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True)
    if kind == "json_schema":
        return _make(name, {"json": _schema_of(value, name)})
    raise FieldError(f"{name}={value!r:.80}; accepted: an object of type text, json_object or json_schema", name)


def _schema_of(value: Mapping[str, Any], name: str) -> Any:
    """The schema of a format, which stands in it or in its ``json_schema``."""
    holder = value.get("json_schema", value)
    if not isinstance(holder, Mapping) or not isinstance(holder.get("schema"), Mapping):
        raise FieldError(f"{name}: json_schema.schema is missing; accepted: a JSON schema", name)
    unknown = sorted(set(map(str, {**value, **holder})) - _SCHEMA_KEYS)
    if unknown:
        raise FieldError(f"{name} has no field {unknown[0]!r:.60}", name, "unknown_parameter")
    label = holder.get("name")
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", label)):
        raise FieldError(f"{name}: name={label!r:.80}; accepted: up to 64 letters, digits, _ and -", name)
    if not isinstance(holder.get("strict"), bool | None):
        raise FieldError(f"{name}: strict={holder['strict']!r:.80}; accepted: true, false", name)
    return holder["schema"]


def _make(name: str, options: Mapping[str, Any]) -> StructuredOutputs:
    try:
        return StructuredOutputs(**options)
    except (RequestError, UsageError) as error:
        raise FieldError(f"{name}: {error}", name) from None
