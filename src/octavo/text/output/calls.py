"""Where a reader puts the tool calls that it finds, and what all kinds of calls share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from octavo.text.output.lark import Speller
from octavo.text.output.pieces import Piece, ToolArguments, ToolCallEnd, ToolCallStart
from octavo.text.output.source import NotACallError, Parse, Source

Schema = Mapping[str, Any] | bool
"""A JSON schema."""


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call, and the JSON schema of its arguments. ``strict``: these must hold it."""

    name: str
    parameters: Schema
    strict: bool = False


def properties_of(schema: Schema) -> dict[str, Any]:
    """The properties that a schema lists, with their schemas; none where it is malformed."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return dict(properties) if isinstance(properties, Mapping) else {}


def required_of(schema: Schema) -> list[Any]:
    """The names that a schema requires."""
    required = schema.get("required") if isinstance(schema, Mapping) else None
    return required if isinstance(required, list) else []


class CallShape(Protocol):
    """How a call is spelled between the markers of a format."""

    @property
    def as_list(self) -> bool:
        """Whether calls are written as a list, even a single one."""
        ...

    def read(self, calls: Calls) -> Parse[None]:
        """Read a call, or a list of calls, from ``calls.source`` on.

        Raises:
            NotACallError: at the character where the text stops to be one.
        """
        ...

    @property
    def markers(self) -> tuple[str, ...]:
        """The fixed texts within a call, of which special tokens may be a part."""
        ...

    def rules(self, symbol: str, function: Function, spell: Speller) -> str:
        """Lark rules, in llguidance's dialect, of which ``symbol`` is a call of ``function``.

        ``spell`` gives the terminals of what may hold special tokens.
        """
        ...


class Calls:
    """The calls of one completion, told piece by piece.

    From ``start`` on a call cannot be taken back; all that was read before is used up by it.

    Args:
        source: where they are read from.
        emit: takes the pieces.
        functions: what may be called, by name; None: anything.
        new_id: makes the id of a call that the model has given none.
        parallel: tell all of them, not only the first.
    """

    def __init__(
        self,
        source: Source,
        emit: Callable[[Piece], None],
        functions: Mapping[str, Function] | None,
        new_id: Callable[[], str],
        parallel: bool,
    ) -> None:
        self.source = source
        self._emit = emit
        self._functions = functions
        self._new_id = new_id
        self._parallel = parallel
        self._count = 0
        self._open = False

    def check_name(self, name: str) -> None:
        """Raise ``NotACallError`` unless there is such a function."""
        if not name or (self._functions is not None and name not in self._functions):
            raise NotACallError

    def schema(self, name: str) -> Schema:
        """The JSON schema of a function's arguments; that of anything for one that is not known."""
        return self._functions[name].parameters if self._functions is not None else {}

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call of ``name`` begins."""
        self.check_name(name)
        self.source.take()
        self._open = True
        self._tell(ToolCallStart(self._count, call_id or self._new_id(), name))

    def arguments(self, text: str) -> None:
        """More of the arguments."""
        if text:
            self._tell(ToolArguments(self._count, text))

    def end(self) -> None:
        """The arguments are complete."""
        self._close(complete=True)

    def break_off(self) -> None:
        """The text is no call any more: if one has begun, that is all of it."""
        if self._open:
            self._close(complete=False)

    def _close(self, complete: bool) -> None:
        self._tell(ToolCallEnd(self._count, complete))
        self._open = False
        self._count += 1

    def _tell(self, piece: Piece) -> None:
        if self._parallel or self._count == 0:
            self._emit(piece)


def is_json(text: str) -> bool:
    """Whether it is one JSON value; ``NaN`` and ``Infinity``, which Python reads too, are none."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def read_name(calls: Calls) -> Parse[str]:
    """Read the name of a function that may be called."""
    source = calls.source
    start = source.at
    while (char := (yield from source.peek())).isalnum() or char in "_.-":
        source.advance(source.at + 1)
    name = source.text[start : source.at]
    calls.check_name(name)
    return name
