"""From the bytes of a request's body to one of the structs of this package, or an error that names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from octavo.errors import nearest
from octavo.openai.errors import FieldError

NONE: Mapping[str, tuple[Any, ...]] = {}


class Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The base of all bodies. null is the same as leaving a field out.

    Attributes:
        IGNORED: fields that do not change the answer.
        UNSUPPORTED: known fields that would change it and are not supported -> the values that ask for nothing. An
            answer that silently ignores half of a request is worse than none.
    """

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}


B = TypeVar("B", bound=Fields)


def decode_body(data: bytes | msgspec.Raw, kind: type[B], unsupported: Mapping[str, tuple[Any, ...]] = NONE) -> B:
    """Read a body from JSON. ``unsupported`` are fields that only this caller has to refuse.

    Raises:
        FieldError: it is not JSON, or a field is missing, unknown, not supported or of another type.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FieldError(f"the body is not a JSON object: {error}") from None
    return convert_body(fields, kind, unsupported)


def convert_body(fields: Mapping[str, Any], kind: type[B], unsupported: Mapping[str, tuple[Any, ...]] = NONE) -> B:
    """The body that decoded JSON stands for. Raises ``FieldError`` as `decode_body` does."""
    wanted = {name: v for name, v in fields.items() if v is not None and name not in kind.IGNORED}
    _refuse(wanted, {**kind.UNSUPPORTED, **unsupported})
    known = kind.__struct_fields__
    for name in wanted:
        if name not in known and name not in kind.UNSUPPORTED:
            raise FieldError(f"there is no field {name!r:.100}{nearest(name, known)}", name[:100], "unknown_parameter")
    try:
        return msgspec.convert({name: v for name, v in wanted.items() if name in known}, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None


def _refuse(fields: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ``FieldError`` for the first of ``fields`` that is unsupported and asks for something."""
    for name, neutral in unsupported.items():
        if fields.get(name) is not None and fields[name] not in neutral:
            raise FieldError(f"{name} is not supported; leave it out", name, "unsupported_parameter")


def _explain(message: str) -> FieldError:
    """msgspec says "Expected `int`, got `str` - at `$.n`": name the field first."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    if found is None:
        missing = re.fullmatch(r"Object missing required field `(.*)`", message)
        return FieldError(f"{missing[1]} is missing" if missing else message, missing[1] if missing else None)
    what, place = found[1][:1].lower() + found[1][1:], found[2]
    return FieldError(f"{place}: {what.replace('`', '')}", re.split(r"[.\[]", place)[0] or None)
